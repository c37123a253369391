"""Samples of a client, and the interface that the core requires of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paceline.core.layout import Buffers

__all__ = ["ClientData", "Problem", "Split"]


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


class Split:
    """Who has which samples: called with a client's number it returns its (train, test) rows, each of shape [n] (int64)."""

    def __call__(self, client: int) -> tuple[Tensor, Tensor]:
        """Return a client's training and test rows."""
        raise NotImplementedError

    def num_train(self, client: int) -> int:
        """Return how many training samples a client has."""
        return int(self(client)[0].shape[0])

    def together(self, clients: Sequence[int]) -> Tensor | None:
        """Return the training rows of several clients, shape [K, n]; None where they have unequally many."""
        rows = [self(client)[0] for client in clients]
        return torch.stack(rows) if len({len(r) for r in rows}) == 1 else None


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
