"""Runs in Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from paceline.core.importing import import_extra
from paceline.trackers.base import Tracker

__all__ = ["WandB"]


class WandB(Tracker):
    """Writes a run's configuration and figures, offline by default: nothing leaves this machine until ``wandb sync``.

    Args:
        place: folder of the files.
        project: name of the project.
        mode: ``offline``, or ``online`` to send the figures while the run goes on.

    Raises:
        MissingExtraError: the extra ``wandb`` is not installed.
    """

    def __init__(self, place: str = "runs", project: str = "paceline", mode: Literal["offline", "online"] = "offline") -> None:
        self._wandb: Any = import_extra("wandb", "wandb")
        self.place, self.project, self.mode = place, project, mode
        self._run: Any = None

    def begin(self, name: str, config: Mapping[str, Any]) -> None:
        """Start the run."""
        quiet = self._wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
        self._run = self._wandb.init(
            project=self.project,
            name=name,
            dir=self.place,
            mode=self.mode,
            config=dict(config),
            reinit="create_new",
            settings=quiet,
        )

    def log(self, round: int, figures: Mapping[str, float]) -> None:
        """Write the figures of a round."""
        self._run.log(dict(figures), step=round)

    def end(self, outcome: Mapping[str, Any] | None) -> None:
        """Write the outcome as the run's summary and finish it."""
        if outcome is not None:
            self._run.summary.update({k: v for k, v in outcome.items() if isinstance(v, str | int | float)})
        self._run.finish(exit_code=0 if outcome is not None else 1)
