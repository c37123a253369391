"""Engines: execution of client functions. Results depend neither on the engine nor on the number of workers."""

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
    """Start the engine registered under a name.

    Args:
        name: ``local``, ``debug`` or ``ray``.
        setup: what workers are built from.
        workers: number of workers.
        ray: options of `RayEngine`, used by ``ray`` only.

    Raises:
        UnknownNameError: unknown engine.
        EngineError: the engine cannot be started.
    """
    if name == "ray":
        from paceline.engines.ray import RayEngine

        return RayEngine(setup, workers, **(ray or {}))
    if name not in _ENGINES:
        raise UnknownNameError("engine", name, _ENGINES)
    return DebugEngine(setup, workers) if name == "debug" else LocalEngine(setup, workers)
