"""Limits on the time of a local training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

__all__ = ["StepLimit", "WorkTime", "synchronized"]

StepLimit = Callable[[int, float, float], int]
"""Returns the steps to take in all, from the steps planned, the steps done and the seconds that they took. A smaller batch is a
part of a step done: steps count by their samples."""


class WorkTime(NamedTuple):
    """Converts a client's work in one call to seconds on its device.

    Args:
        measured: whether `seconds` takes seconds on this machine; otherwise it takes FLOPs.
        seconds: the conversion.
    """

    measured: bool
    seconds: Callable[[float], float]


def synchronized(device: torch.device) -> None:
    """Wait until the device has finished its work, so that it can be timed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
