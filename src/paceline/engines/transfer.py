"""Transfer of a worker's setup to a process that does not share memory with this one."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from paceline.core.errors import EngineError
from paceline.core.samples import Split
from paceline.engines.setup import Setup

__all__ = ["complete", "lighten"]


def lighten(setup: Setup) -> Setup:
    """Return the setup without samples that the worker can load itself."""
    return setup if setup.samples is None else replace(setup, task=None, split=_Elsewhere())


def complete(setup: Setup) -> Setup:
    """Load the samples where the worker runs. Raises the data errors that occur there."""
    if setup.samples is None:
        return setup
    task, split = setup.samples()
    return replace(setup, task=task, split=split)


class _Elsewhere(Split):
    def __call__(self, client: int) -> tuple[Tensor, Tensor]:
        raise EngineError(f"the samples of client {client} are available only in the process in which it runs")
