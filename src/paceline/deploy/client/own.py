"""The samples and the device of a real client: what a simulation has for all clients together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paceline.core.errors import EmptyClientError
from paceline.core.random import numpy_rng
from paceline.core.samples import Split
from paceline.devices import Profile

if TYPE_CHECKING:
    from paceline.core.config import RunConfig
    from paceline.tasks import Task

__all__ = ["OwnDevice", "OwnSplit", "own_split"]


@dataclass(frozen=True)
class OwnSplit(Split):
    """Split in which all samples belong to this client.

    Args:
        train, test: rows of the task's training data (int64).
    """

    train: Tensor
    test: Tensor

    def __call__(self, client: int) -> tuple[Tensor, Tensor]:
        """Return the (train, test) rows."""
        return self.train, self.test


class OwnDevice:
    """Profile of the actual device: times are measured, the client measures its transfers under masks, the server otherwise."""

    def profile(self, client: int, round: int) -> Any:
        """Return a profile that adds nothing to measured seconds."""
        return Profile(up=math.inf, down=math.inf, latency=0.0)


def own_split(config: RunConfig, number: int, task: Task) -> Split:
    """Return the split that gives all samples of a task to one client, up to the run's `client_samples`.

    Args:
        config: says what share is set aside for tests, and whether a client may have no samples.
        number: the client's number.
        task: its own data.

    Raises:
        EmptyClientError: nothing is left to train on.
    """
    order = torch.from_numpy(numpy_rng(config.seed, "own", number).permutation(len(task.train)))[: config.client_samples]
    if not len(order) and not config.allow_empty:
        raise EmptyClientError(f"task {task.name!r} has no training samples for this client")
    # leave at least one to train on: otherwise participation would reveal the number of samples
    held = max(min(round(config.client_test * len(order)), len(order) - 1), 0)
    return OwnSplit(order[held:].sort().values, order[:held].sort().values)
