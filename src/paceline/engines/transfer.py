"""What a worker is built from, sent to a process that shares no memory with this one."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from paceline.core.errors import EngineError
from paceline.core.samples import Split
from paceline.engines.worker import Setup

__all__ = ["complete", "lighten"]


def lighten(setup: Setup) -> Setup:
    """Return what has to travel: samples that are loaded there need not."""
    return setup if setup.samples is None else replace(setup, task=None, split=_Elsewhere())


def complete(setup: Setup) -> Setup:
    """Load the samples where the worker runs. Raises what is wrong with the data there."""
    if setup.samples is None:
        return setup
    task, split = setup.samples()
    return replace(setup, task=task, split=split)


class _Elsewhere(Split):
    def __call__(self, client: int) -> tuple[Tensor, Tensor]:
        raise EngineError(f"the samples of client {client} are loaded where it runs")
