"""Event files for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline.core.importing import import_extra
from paceline.trackers.base import Tracker, flat

__all__ = ["TensorBoard"]


class TensorBoard(Tracker):
    """Writes scalars by round, and the configuration as hyperparameters.

    Args:
        place: folder of the event files; each run gets a folder of its name below it.

    Raises:
        MissingExtraError: the extra ``tensorboard`` is not installed.
    """

    def __init__(self, place: str = "runs/tensorboard") -> None:
        import_extra("tensorboard", "tensorboard")
        self.place = Path(place)
        self._writer: Any = None
        self._config: dict[str, Any] = {}

    def begin(self, name: str, config: Mapping[str, Any]) -> None:
        """Open the run's event file."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self.place / name)
        self._config = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in flat(config).items()}

    def log(self, round: int, figures: Mapping[str, float]) -> None:
        """Write the scalars of a round."""
        for key, value in figures.items():
            self._writer.add_scalar(key, value, round)
        self._writer.flush()

    def end(self, outcome: Mapping[str, Any] | None) -> None:
        """Write the hyperparameters with the final figures, and close the file."""
        if outcome is not None:
            numbers = {f"final/{k}": float(v) for k, v in outcome.items() if isinstance(v, int | float)}
            self._writer.add_hparams(self._config, numbers, run_name=".")
        self._writer.close()
