"""Where client functions run. Results depend neither on the engine nor on the number of workers."""

from paceline.engines.debug import DebugEngine
from paceline.engines.local import LocalEngine
from paceline.engines.stacking import Choice
from paceline.engines.worker import Setup, Worker
from paceline.errors import UnknownNameError

__all__ = ["Choice", "DebugEngine", "LocalEngine", "Setup", "Worker", "load_engine"]

_ENGINES = {"local": LocalEngine, "debug": DebugEngine}


def load_engine(name: str, setup: Setup, workers: int) -> LocalEngine:
    """Start an engine by name."""
    if name not in _ENGINES:
        raise UnknownNameError("engine", name, _ENGINES)
    return _ENGINES[name](setup, workers)
