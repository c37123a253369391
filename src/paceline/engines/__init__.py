"""Engines: execution of client functions. Results depend neither on the engine nor on the number of workers."""

from collections.abc import Mapping
from typing import Any

from paceline import registry
from paceline.core.errors import ConfigError
from paceline.engines.debug import DebugEngine
from paceline.engines.local import LocalEngine
from paceline.engines.pool import Pool
from paceline.engines.setup import Setup
from paceline.engines.stacking import Choice
from paceline.engines.worker import Worker

__all__ = ["Choice", "DebugEngine", "LocalEngine", "Pool", "Setup", "Worker", "load_engine"]


def load_engine(spec: str, setup: Setup, workers: int, ray: Mapping[str, Any] | None = None) -> Pool:
    """Start an engine by name.

    Args:
        spec: a name, with options after a colon.
        setup: what workers are built from.
        workers: number of workers.
        ray: options of `RayEngine`; other engines have no such parameters.

    Raises:
        UnknownNameError: unknown name or option.
        EngineError: the engine cannot be started.
    """
    made = registry.build("engine", spec, {"setup": setup, "workers": workers, **(ray or {})})
    if not isinstance(made, Pool):
        raise ConfigError(f"engine {spec!r} is not a Pool; derive its class from paceline.engines.Pool")
    return made
