"""Where client functions run. Results depend neither on the engine nor on the number of workers."""

from typing import Any

from paceline.core.errors import UnknownNameError
from paceline.engines.debug import DebugEngine
from paceline.engines.local import LocalEngine
from paceline.engines.pool import Pool
from paceline.engines.stacking import Choice
from paceline.engines.worker import Setup, Worker

__all__ = ["Choice", "DebugEngine", "LocalEngine", "Pool", "Setup", "Worker", "load_engine"]

_ENGINES = ("local", "debug", "ray")


def load_engine(name: str, setup: Setup, workers: int, ray: dict[str, Any] | None = None) -> Pool:
    """Start an engine by name; `ray` are the options of `RayEngine`, for that one.

    Raises `UnknownNameError`, and what the engine raises.
    """
    if name == "ray":
        from paceline.engines.ray import RayEngine

        return RayEngine(setup, workers, **(ray or {}))
    if name not in _ENGINES:
        raise UnknownNameError("engine", name, _ENGINES)
    return DebugEngine(setup, workers) if name == "debug" else LocalEngine(setup, workers)
