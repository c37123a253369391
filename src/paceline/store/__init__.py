"""What a run leaves on disk: its folder, metrics, checkpoints and the clients' memories."""

from paceline.store.checkpoint import load as load_checkpoint
from paceline.store.checkpoint import save as save_checkpoint
from paceline.store.files import atomic_write
from paceline.store.memory import MemoryStore
from paceline.store.run import RunFolder

__all__ = ["MemoryStore", "RunFolder", "atomic_write", "load_checkpoint", "save_checkpoint"]
