"""Samples of a client, and the interface that the core requires of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paceline.core.params import Buffers

__all__ = ["ClientData", "Problem"]


class Problem(Protocol):
    """Interface that the core requires of a task: loss, defaults, and a name for messages."""

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Mean loss of (outputs, targets)."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def buffers(self) -> Buffers:
        """Treatment of running statistics."""

    @property
    def lr(self) -> float:
        """Default learning rate."""

    @property
    def batch_size(self) -> int:
        """Default batch size."""


@dataclass(slots=True)
class ClientData:
    """Samples of one client: rows `index` of the task's arrays, gathered batch by batch.

    Args:
        x, y: all samples of the task, shared by all clients.
        index: rows of this client, int64, shape [n].
    """

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return self.index.shape[0]

    def rows(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples at positions `which` within this client's data."""
        rows = self.index[which]
        return self.x.index_select(0, rows), self.y.index_select(0, rows)

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all samples once, in random batches; the last batch may be smaller."""
        order = torch.randperm(len(self.index), generator=generator).to(self.index.device)
        for start in range(0, len(order), batch_size):
            yield self.rows(order[start : start + batch_size])

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all samples once, in order."""
        for start in range(0, len(self.index), batch_size):
            rows = self.index[start : start + batch_size]
            yield self.x.index_select(0, rows), self.y.index_select(0, rows)
