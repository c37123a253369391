"""Transfer of a worker's setup to a process that does not share memory with this one."""

from __future__ import annotations

from dataclasses import replace

import torch

from paceline.core.errors import EngineError
from paceline.engines.worker import Setup

__all__ = ["complete", "lighten"]


def lighten(setup: Setup) -> Setup:
    """Return the setup without samples that the worker can load itself."""
    return setup if setup.samples is None else replace(setup, task=None, split=_elsewhere)


def complete(setup: Setup) -> Setup:
    """Load the samples where the worker runs. Raises the data errors that occur there."""
    if setup.samples is None:
        return setup
    task, split = setup.samples()
    return replace(setup, task=task, split=split)


def _elsewhere(client: int) -> tuple[torch.Tensor, torch.Tensor]:
    raise EngineError(f"the samples of client {client} are loaded where it runs")
