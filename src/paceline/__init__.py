"""Paceline: secure federated learning that is not held back by its slowest client.

The face of the library: what a script or a notebook needs, each name imported when it is first used, so that ``import
paceline`` imports neither torch nor numpy.

    import paceline as pl

    task = pl.Task.from_datasets(train, test, model=Net)
    result = pl.run(pl.methods.FedProx(mu=0.1), task, clients=20, rounds=10, aggregation="secure")
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline import methods as methods
    from paceline import metrics as metrics
    from paceline import trackers as trackers
    from paceline.core import errors as errors
    from paceline.core.client import Client as Client
    from paceline.core.config import RunConfig as RunConfig
    from paceline.core.federation import Federation as Federation
    from paceline.core.method import Method as Method
    from paceline.core.method import State as State
    from paceline.core.method import on_client as on_client
    from paceline.core.params import Params as Params
    from paceline.core.task import Task as Task
    from paceline.core.update import Update as Update
    from paceline.results.comparison import Comparison as Comparison
    from paceline.results.result import Result as Result
    from paceline.run import load as load
    from paceline.run import prepare as prepare
    from paceline.run import resume as resume
    from paceline.run import run as run
    from paceline.studies import compare as compare
    from paceline.studies import sweep as sweep

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Comparison",
    "Federation",
    "Method",
    "Params",
    "Result",
    "RunConfig",
    "State",
    "Task",
    "Update",
    "compare",
    "errors",
    "load",
    "methods",
    "metrics",
    "on_client",
    "prepare",
    "resume",
    "run",
    "sweep",
    "trackers",
]

_PLACES = {
    "Client": "core.client:Client",
    "Comparison": "results.comparison:Comparison",
    "Federation": "core.federation:Federation",
    "Method": "core.method:Method",
    "Params": "core.params:Params",
    "Result": "results.result:Result",
    "RunConfig": "core.config:RunConfig",
    "State": "core.method:State",
    "Task": "core.task:Task",
    "Update": "core.update:Update",
    "compare": "studies:compare",
    "errors": "core.errors",
    "load": "run:load",
    "methods": "methods",
    "metrics": "metrics",
    "on_client": "core.method:on_client",
    "prepare": "run:prepare",
    "resume": "run:resume",
    "run": "run:run",
    "sweep": "studies:sweep",
    "trackers": "trackers",
}
"""Where each name of `__all__` is: a module below this package, and the attribute there; without one, the module itself."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    found = import_module(f"{__name__}.{module}")
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Face(ModuleType):
    """This module: `run` is the function, also once the module of that name has been imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and ":" in _PLACES.get(name, "")):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
