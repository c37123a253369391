"""Persistent state of a run: its folder, metrics, checkpoints and client memories.

Names are imported on first use, so that code that only writes files does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.store.checkpoint import load as load_checkpoint
    from paceline.store.checkpoint import save as save_checkpoint
    from paceline.store.files import atomic_write
    from paceline.store.memory import MemoryStore
    from paceline.store.run import RunFolder

__all__ = ["MemoryStore", "RunFolder", "atomic_write", "load_checkpoint", "save_checkpoint"]

_PLACES = {
    "MemoryStore": ("memory", "MemoryStore"),
    "RunFolder": ("run", "RunFolder"),
    "atomic_write": ("files", "atomic_write"),
    "load_checkpoint": ("checkpoint", "load"),
    "save_checkpoint": ("checkpoint", "save"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
