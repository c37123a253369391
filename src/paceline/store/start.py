"""The model that a run starts from: pinned by its SHA-256 in the configuration, and kept in the run's folder.

So a run can be resumed although the file has changed or is gone, and the clients of a federation learn which model it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from paceline.core.config import RunConfig
from paceline.core.errors import StoreError
from paceline.store.weights import read_weights, save_weights, weights_digest

__all__ = ["Start", "keep_start", "open_start"]

_MARK = "#sha256="
_FILE = "start.safetensors"


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Args:
        where: as it was given, for messages.
        tensors: the weights by name.
        digest: their SHA-256.
    """

    where: str
    tensors: Mapping[str, Tensor]
    digest: str


def open_start(config: RunConfig, folder: Path | None, shared: bool = False) -> tuple[RunConfig, Start | None]:
    """Return the configuration with the pinned start, and the start; None where the run starts from random weights.

    Args:
        config: the run's configuration.
        folder: the run's folder, whose own copy comes first; or None.
        shared: leave the path of the file out of the configuration, because others receive it.

    Raises:
        StoreError: the file cannot be read, or has changed since the configuration was written.
    """
    if config.start_from is None:
        return config, None
    place, _, pinned = config.start_from.partition(_MARK)
    own = None if folder is None else folder / _FILE
    copied = own is not None and own.is_file()
    tensors = read_weights(own if copied and own is not None else place)
    digest = weights_digest(tensors)
    if pinned and digest != pinned:
        raise StoreError(
            f"{own if copied else place} has changed since this run was configured; restore it, or remove {_MARK}{pinned[:8]}..."
        )
    name = Path(place).name if shared else place
    return config.model_copy(update={"start_from": f"{name}{_MARK}{digest}"}), Start(place, tensors, digest)


def keep_start(start: Start | None, folder: Path) -> None:
    """Copy the start into a run's folder, unless it is there."""
    if start is not None and not (folder / _FILE).is_file():
        save_weights(folder / _FILE, start.tensors)
