"""Map-style data sets whose samples are read when a batch needs them, by threads that read ahead."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from paceline.core.columns import Column, cast, map_tree
from paceline.core.errors import DataError, DataFormatError, PacelineError
from paceline.core.failures import reason_of
from paceline.core.generators import GeneratorWatch, drawing

__all__ = ["Reader", "Sampled", "sample_at"]

AHEAD = 2
"""Batches that are read before they are needed."""

_HASHED = 32
"""Samples that identify a data set, evenly spaced."""


def sample_at(data: Any, index: int, which: str = "") -> Any:
    """Return a sample of a map-style data set.

    Args:
        data: the data set.
        index: of the sample.
        which: part of the task, for the message.

    Raises:
        DataError: the data set raised an error; names the sample, and where it was raised.
    """
    try:
        return data[index]
    except PacelineError:
        raise
    except Exception as error:
        whose = f"{which}: " if which else ""
        while isinstance(data, torch.utils.data.Subset):
            data, index = data.dataset, data.indices[index]
        raise DataError(f"{whose}sample {index} of {type(data).__name__} cannot be read: {reason_of(error)}") from error


class Reader:
    """Reads batches of a map-style data set.

    A data set that draws random numbers (an augmentation) is read by the calling thread, in the order of the batches, so
    that its draws come from the client's stream; any other is read ahead by threads.

    Args:
        data: the data set; its samples are pairs (inputs, targets).
        collate: makes a batch of a list of samples; torch's by default.
        workers: threads that read ahead; 0 reads each batch when it is needed.
        dtype: of floating-point inputs and targets.
        device: where batches are put.
    """

    def __init__(
        self,
        data: Any,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 2,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data, self.collate, self.workers, self.dtype, self.device = data, collate, workers, dtype, torch.device(device)
        with drawing(0):
            watch = GeneratorWatch()
            _ = sample_at(self.data, 0)
            self.draws = watch.advanced()

    def __len__(self) -> int:
        return len(self.data)

    def moved(self, device: torch.device | str) -> Reader:
        """Return the reader with batches on `device`."""
        return self._changed(device=torch.device(device))

    def astype(self, dtype: torch.dtype) -> Reader:
        """Return the reader with floating-point values of another dtype."""
        return self._changed(dtype=dtype)

    def subset(self, rows: Tensor) -> Reader:
        """Return the reader of the samples at `rows`."""
        return self._changed(data=torch.utils.data.Subset(self.data, rows.tolist()))

    def _changed(self, **values: Any) -> Reader:
        other = object.__new__(Reader)
        other.__dict__.update({**self.__dict__, **values})
        return other

    def read(self, rows: Tensor) -> tuple[Any, Any]:
        """Return the (inputs, targets) of a batch."""
        samples = [sample_at(self.data, i) for i in rows.tolist()]
        batch = self._collated(samples, rows)
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise DataFormatError(f"collate returned a {type(batch).__name__}; it must return a pair (inputs, targets)")
        inputs, targets = (map_tree(self._tensor, cast(map_tree(torch.as_tensor, part), self.dtype)) for part in batch)
        return inputs, targets

    def _collated(self, samples: list[Any], rows: Tensor) -> Any:
        """Return the batch of samples; raises `DataFormatError` where these do not fit together."""
        try:
            return default_collate(samples) if self.collate is None else self.collate(samples)
        except PacelineError:
            raise
        except Exception as error:
            advice = (
                "pad or crop them to the same shape, or pass collate=" if self.collate is None else "correct the function collate"
            )
            shown = ", ".join(map(str, rows.tolist()[:5])) + (", ..." if len(rows) > 5 else "")
            raise DataFormatError(f"samples {shown} make no batch: {reason_of(error)}; {advice}") from error

    def _tensor(self, value: Tensor) -> Tensor:
        kind = value.dtype if value.is_floating_point() or value.dtype in (torch.bool, torch.uint8) else torch.int64
        return value.to(self.device, kind)

    def ahead(self, batches: Iterator[Tensor]) -> Iterator[tuple[Tensor, tuple[Any, Any]]]:
        """Yield (rows, batch) for the rows of each batch, read ahead."""
        if self.draws or not self.workers:
            for rows in batches:
                yield rows, self.read(rows)
            return
        waiting: deque[tuple[Tensor, Future[Any]]] = deque()
        with ThreadPoolExecutor(self.workers, "paceline-read") as pool:
            try:
                for rows in itertools.islice(batches, AHEAD):
                    waiting.append((rows, pool.submit(self.read, rows)))
                while waiting:
                    rows, batch = waiting.popleft()
                    found = batch.result()
                    for following in itertools.islice(batches, 1):
                        waiting.append((following, pool.submit(self.read, following)))
                    yield rows, found
            finally:
                for _, batch in waiting:
                    batch.cancel()

    def content(self) -> list[Any]:
        """Return what identifies the data: their number, and samples at even distances."""
        step = max(len(self) // _HASHED, 1)
        with drawing(0):
            return [len(self), [list(map(_whole, [*self.data[i]])) for i in range(0, len(self), step)]]


def _whole(part: Any) -> Any:
    return map_tree(torch.as_tensor, part) if not isinstance(part, str | bytes) else part


class Sampled(Column):
    """The inputs (part 0) or the targets (part 1) of a data set; a batch of both reads each sample once.

    Args:
        reader: reads the samples.
        part: 0 for inputs, 1 for targets.
    """

    def __init__(self, reader: Reader, part: int) -> None:
        self.reader, self.part = reader, part

    def __len__(self) -> int:
        return len(self.reader)

    def take(self, rows: Tensor) -> Any:
        """Read a batch."""
        return self.reader.read(rows)[self.part]

    def named(self, name: str, rows: Tensor) -> dict[str, Tensor]:
        """Refuse: a data set returns all of its inputs."""
        raise DataFormatError("a data set that is read when needed must be all of the inputs; return a dict from its samples")

    def subset(self, rows: Tensor) -> Sampled:
        """Return the column of the samples at `rows`; nothing is read."""
        return Sampled(self.reader.subset(rows), self.part)

    def to(self, device: torch.device | str) -> Sampled:
        """Return the column with batches on `device`."""
        return Sampled(self.reader.moved(device), self.part)

    def astype(self, dtype: torch.dtype) -> Sampled:
        """Return the column with floating-point values of another dtype."""
        return Sampled(self.reader.astype(dtype), self.part)

    def content(self) -> Any:
        """Return what identifies the values."""
        return self.reader.content() if self.part == 0 else []
