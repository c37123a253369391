"""Samples of a client, and the interface that the core requires of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from paceline.core.columns import Samples, take
from paceline.core.layout import Buffers
from paceline.core.placement import upload
from paceline.core.reading import Sampled

__all__ = ["ClientData", "Problem", "Split", "labelled", "shuffled"]


class Problem(Protocol):
    """Interface that the core requires of a task: loss, defaults, and a name for messages."""

    @property
    def loss(self) -> Callable[[Any, Any], Tensor]:
        """Mean loss of (outputs, targets)."""

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 where there are none."""

    @property
    def buffers(self) -> Buffers:
        """Treatment of running statistics."""

    @property
    def lr(self) -> float:
        """Default learning rate."""

    @property
    def batch_size(self) -> int:
        """Default batch size."""


def labelled(problem: Problem, y: Tensor) -> Tensor:
    """Return which class labels count, bool and shaped as `y`: all but negative ones and the problem's ``ignore_index``."""
    ignored: int | None = getattr(problem, "ignore_index", None)
    return y >= 0 if ignored is None else (y >= 0) & (y != ignored)


class Split:
    """Who has which samples: called with a client's number it returns its (train, test) rows, each of shape [n] (int64)."""

    def __call__(self, client: int) -> tuple[Tensor, Tensor]:
        """Return a client's training and test rows."""
        raise NotImplementedError

    def num_train(self, client: int) -> int:
        """Return how many training samples a client has."""
        return int(self(client)[0].shape[0])

    def nums_train(self, clients: Sequence[int]) -> list[int]:
        """Return how many training samples each of some clients has."""
        return [self.num_train(client) for client in clients]

    def together(self, clients: Sequence[int]) -> Tensor | None:
        """Return the training rows of several clients, shape [K, n]; None where they have unequally many."""
        rows = [self(client)[0] for client in clients]
        return torch.stack(rows) if len({len(r) for r in rows}) == 1 else None


class ClientData:
    """Samples of one client: rows `index` of the task's columns, gathered batch by batch.

    Args:
        x, y: all inputs and targets of the task, shared by all clients; trees of columns, see `paceline.core.columns`.
        index: rows of this client, int64, shape [n].
        device: device of the columns; that of `index` by default. Rows on the host are copied there when they are first used.
    """

    __slots__ = ("_device", "_index", "_rows", "_running", "x", "y")

    def __init__(self, x: Samples, y: Samples, index: Tensor, device: torch.device | str | None = None) -> None:
        self.x, self.y, self._rows = x, y, index
        self._device = index.device if device is None else torch.device(device)
        self._index: Tensor | None = None
        self._running: bool | None = None

    def __len__(self) -> int:
        return self._rows.shape[0]

    @property
    def index(self) -> Tensor:
        """Rows of this client on the device of the columns, int64, shape [n]."""
        if self._index is None:
            self._index = upload(self._rows, self._device)
        return self._index

    @property
    def known(self) -> Tensor:
        """The same rows where they are known: on the host, if they have been passed there."""
        return self._rows

    @property
    def device(self) -> torch.device:
        """Device of the columns."""
        return self._device

    def part(self, which: Tensor) -> ClientData:
        """Return the samples at positions `which` within this client's data, int64 [n] on the CPU."""
        return ClientData(self.x, self.y, self._rows[which.to(self._rows.device)], self._device)

    def class_counts(self, problem: Problem) -> Tensor:
        """Return the number of samples of each class, shape [classes] (int64); labels that do not count are left out."""
        y = (self.y[self.index] if isinstance(self.y, Tensor) else self.at(self.index)[1]).reshape(-1)
        return torch.bincount(y[labelled(problem, y)], minlength=problem.num_classes)

    def of_classes(self, present: Tensor, problem: Problem) -> ClientData:
        """Return the samples whose class is one of those `present`, bool [classes]; without those whose label does not count."""
        y = self.y[self.index]
        known = labelled(problem, y)
        return ClientData(self.x, self.y, self.index[known & present[y.where(known, 0)]])

    def at(self, rows: Tensor) -> tuple[Samples, Samples]:
        """Return the samples at `rows` of the task's columns."""
        x, y = self.x, self.y
        if type(x) is Tensor and type(y) is Tensor:
            return x.index_select(0, rows), y.index_select(0, rows)
        if type(x) is Sampled and type(y) is Sampled:  # both are parts of one data set
            return x.reader.read(rows)
        return take(x, rows), take(y, rows)

    def each(self, batches: Iterator[Tensor]) -> Iterator[tuple[Tensor, tuple[Samples, Samples]]]:
        """Yield (rows, samples) for the rows of each batch; a data set is read ahead."""
        x, y = self.x, self.y
        if type(x) is not Sampled:
            for rows in batches:
                yield rows, self.at(rows)
            return
        for rows, batch in x.reader.ahead(batches):
            yield rows, batch if type(y) is Sampled else (batch[0], take(y, rows))

    def rows(self, which: Tensor) -> tuple[Samples, Samples]:
        """Return the samples at positions `which` within this client's data."""
        return self.at(self.index[which])

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Samples, Samples]]:
        """Yield all samples once, in random batches; the last batch may be smaller."""
        rows = shuffled(self.known, generator) if len(self) else self.known
        for _, batch in self.each(iter(torch.split(upload(rows, self.device), batch_size)) if len(rows) else iter(())):
            yield batch

    def batches(self, batch_size: int) -> Iterator[tuple[Samples, Samples]]:
        """Yield all samples once, in order; without copies where they lie one after the other in tensors on the CPU."""
        if type(self.x) is Tensor and type(self.y) is Tensor and self._consecutive():
            first, n = int(self.index[0]), len(self.index)
            for start in range(first, first + n, batch_size):
                stop = min(start + batch_size, first + n)
                yield self.x[start:stop], self.y[start:stop]
            return
        for _, batch in self.each(self.index[start : start + batch_size] for start in range(0, len(self.index), batch_size)):
            yield batch

    def _consecutive(self) -> bool:
        if self._running is None:
            index = self.index
            span = index.device.type == "cpu" and len(index) > 0 and int(index[-1]) - int(index[0]) == len(index) - 1
            self._running = span and torch.equal(index, torch.arange(int(index[0]), int(index[-1]) + 1))
        return self._running


def shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Return rows in a random order, where they are."""
    return rows[upload(torch.randperm(len(rows), generator=generator), rows.device)]
