"""Samples as trees of columns: a tensor, or a tuple, list or dict of columns that have one leading dimension N.

A column is a tensor, or a `Column`: one whose samples have different lengths (`Ragged`), or one in a file that is larger
than memory (`Mapped`). A batch of a tree is a tree of tensors; `call` passes it to a module.
"""

from __future__ import annotations

import copy
import inspect
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paceline.core.errors import DataError, DataFormatError

__all__ = [
    "Column",
    "Mapped",
    "Ragged",
    "Samples",
    "call",
    "cast",
    "columns",
    "first",
    "kind_of",
    "length",
    "map_tree",
    "place",
    "positional",
    "select",
    "spread",
    "stacked",
    "take",
    "widened",
]

Samples = Any
"""A tree of columns, or a batch of one: a tree of tensors."""


_HALF = (torch.float16, torch.bfloat16)

_HASHED = 1024
"""Samples that identify an array in a file, evenly spaced."""


class Column:
    """A column whose batches are not simply rows of a tensor in memory."""

    uniform = True
    """Whether all samples have the same shape, so that batches of several clients can be stacked."""

    def __len__(self) -> int:
        raise NotImplementedError

    def take(self, rows: Tensor) -> Any:
        """Return the samples at `rows`, int64 [n], as a batch on the column's device."""
        raise NotImplementedError

    def named(self, name: str, rows: Tensor) -> dict[str, Tensor]:
        """Return the batch as an entry of a dict, with its mask if there is one."""
        return {name: self.take(rows)}

    def subset(self, rows: Tensor) -> Column:
        """Return the column of the samples at `rows`."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> Column:
        """Return the column with batches on `device`."""
        raise NotImplementedError

    def astype(self, dtype: torch.dtype) -> Column:
        """Return the column with floating-point values of another dtype."""
        raise NotImplementedError


class Ragged(Column):
    """Samples of different lengths, stored one after another; a batch is padded to its longest sample.

    A column that is all of the inputs reaches the module as ``module(values, mask)``, an entry `name` of a dict as
    ``module(name=values, name_mask=mask)``, an entry of a tuple as two arguments. Clients with ragged columns train one at a
    time.

    Args:
        values: all samples' values, one after another, shape [total, ...].
        offsets: sample i is ``values[offsets[i] : offsets[i + 1]]``, shape [N + 1], int64.
        padding: value behind the end of a shorter sample.
        mask: whether a mask (bool, [n, longest], True for values) accompanies a batch; a text is its name in a dict.

    Example:
        >>> column = Ragged.of([torch.tensor([1, 2, 3]), torch.tensor([4])])
        >>> values, mask = column.take(torch.tensor([1, 0]))
        >>> values.tolist(), mask.tolist()
        ([[4, 0, 0], [1, 2, 3]], [[True, False, False], [True, True, True]])
    """

    uniform = False

    def __init__(self, values: Tensor, offsets: Tensor, padding: float = 0, mask: bool | str = True) -> None:
        values, offsets = torch.as_tensor(values), torch.as_tensor(offsets).long()
        if offsets.dim() != 1 or not len(offsets) or int(offsets[0]) != 0 or int(offsets[-1]) != len(values):
            raise DataFormatError(f"ragged column: offsets must begin at 0 and end at {len(values)}, the number of values")
        if bool((offsets.diff() < 0).any()):
            raise DataFormatError("ragged column: offsets must not decrease")
        self.values, self.offsets, self.padding, self.mask = values, offsets, padding, mask

    @staticmethod
    def of(samples: Sequence[Any], padding: float = 0, mask: bool | str = True) -> Ragged:
        """Return the column of a list of samples, each of shape [length, ...]."""
        parts = [torch.as_tensor(sample) for sample in samples]
        if not parts:
            raise DataError("ragged column: there are no samples")
        lengths = torch.tensor([len(part) for part in parts])
        return Ragged(torch.cat(parts), torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), padding, mask)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def padded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of a batch, shape [n, longest, ...], and its mask, bool [n, longest]."""
        start = self.offsets[rows]
        lengths = self.offsets[rows + 1] - start
        place = torch.arange(int(lengths.max()) if len(rows) else 0, device=start.device)
        mask = place < lengths[:, None]
        source = torch.where(mask, start[:, None] + place, 0)
        values = self.values[source] if len(self.values) else self.values.new_zeros(*source.shape, *self.values.shape[1:])
        values[~mask] = self.padding
        return values, mask

    def take(self, rows: Tensor) -> Any:
        """Return (values, mask) of a batch, or the values alone for a column without a mask."""
        values, mask = self.padded(rows)
        return (values, mask) if self.mask else values

    def named(self, name: str, rows: Tensor) -> dict[str, Tensor]:
        """Return the values of a batch by the column's name, and the mask by its own."""
        values, mask = self.padded(rows)
        masked = {self.mask if isinstance(self.mask, str) else f"{name}_mask": mask} if self.mask else {}
        return {name: values} | masked

    def subset(self, rows: Tensor) -> Ragged:
        """Return the column of the samples at `rows` (copied)."""
        parts = [self.values[self.offsets[i] : self.offsets[i + 1]] for i in rows.tolist()]
        return Ragged.of(parts, self.padding, self.mask)

    def to(self, device: torch.device | str) -> Ragged:
        """Return the column on `device`."""
        moved = copy.copy(self)
        moved.values, moved.offsets = self.values.to(device), self.offsets.to(device)
        return moved

    def astype(self, dtype: torch.dtype) -> Ragged:
        """Return the column with floating-point values of another dtype."""
        return Ragged(self.values.to(dtype), self.offsets, self.padding, self.mask) if self.values.is_floating_point() else self


class Mapped(Column):
    """An array in a file, of which only the samples of a batch are read: for data that are larger than memory.

    Args:
        array: a memory-mapped array, as `numpy.load` returns with ``mmap_mode="r"``, shape [N, ...].
        device: where batches are put.
        dtype: of batches; by default 64-bit floats become float32, other values stay as they are.
        rows: rows of the array that are samples, int64; None for all.
    """

    def __init__(
        self, array: Any, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, rows: Tensor | None = None
    ) -> None:
        self.array, self.device, self.dtype, self.rows = array, torch.device(device), dtype, rows

    @staticmethod
    def open(path: str | Path) -> Mapped:
        """Return the array of a ``.npy`` file."""
        try:
            return Mapped(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise DataFormatError(f"{path}: not an array that NumPy can map: {error}; write it with numpy.save") from error

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the samples, [N, ...]."""
        return (len(self), *self.array.shape[1:])

    def take(self, rows: Tensor) -> Tensor:
        """Read the samples at `rows`, shape [n, ...]."""
        which = rows.cpu() if self.rows is None else self.rows[rows.cpu()]
        read = torch.from_numpy(np.ascontiguousarray(self.array[which.numpy()]))
        wanted = (self.dtype or (torch.float32 if read.dtype == torch.float64 else None)) if read.is_floating_point() else None
        return read.to(self.device, wanted or read.dtype)

    def to(self, device: torch.device | str) -> Mapped:
        """Return the column with batches on `device`."""
        return Mapped(self.array, device, self.dtype, self.rows)

    def subset(self, rows: Tensor) -> Mapped:
        """Return the column of the samples at `rows`; nothing is read."""
        return Mapped(self.array, self.device, self.dtype, rows if self.rows is None else self.rows[rows])

    def astype(self, dtype: torch.dtype) -> Mapped:
        """Return the column with floating-point values of another dtype."""
        return Mapped(self.array, self.device, dtype, self.rows)

    def content(self) -> Any:
        """Return what identifies the values: shape, type, and samples at even distances."""
        return [list(self.shape), self.array.dtype.str, self.take(torch.arange(0, len(self), max(len(self) // _HASHED, 1)))]

    def __reduce__(self) -> tuple[Any, ...]:  # pickling a mapped array would read it as a whole
        found, rest = self.array, (str(self.device), self.dtype, self.rows)
        if isinstance(getattr(found, "base", None), mmap.mmap) and found.filename is not None:
            order = "C" if found.flags.c_contiguous else "F"
            return _mapped, (str(found.filename), found.dtype.str, found.shape, found.offset, order, rest)
        return Mapped, (found, *rest)


def _mapped(path: str, kind: str, shape: tuple[int, ...], offset: int, order: Any, rest: tuple[Any, ...]) -> Mapped:
    return Mapped(np.memmap(path, np.dtype(kind), "r", offset, shape, order), *rest)


def columns(tree: Samples, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the columns of a tree, or the tensors of a batch, each with its name: ``[0]`` or ``['ids']``; empty for a single one."""
    if isinstance(tree, Mapping):
        for key, part in tree.items():
            yield from columns(part, f"{name}[{key!r}]")
    elif isinstance(tree, tuple | list):
        for place, part in enumerate(tree):
            yield from columns(part, f"{name}[{place}]")
    else:
        yield name, tree


def map_tree(fn: Callable[[Any], Any], tree: Samples) -> Samples:
    """Return the tree with a function applied to each column or tensor.

    Example:
        >>> map_tree(len, {"a": torch.zeros(2), "b": (torch.zeros(3), torch.zeros(4))})
        {'a': 2, 'b': (3, 4)}
    """
    if isinstance(tree, Mapping):
        return {key: map_tree(fn, part) for key, part in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(map_tree(fn, part) for part in tree)
    return fn(tree)


def stacked(trees: Sequence[Any]) -> Any:
    """Return trees of tensors of equal shapes as one tree of stacked tensors, shapes [K, ...].

    Example:
        >>> stacked([(torch.zeros(3), torch.ones(2)), (torch.zeros(3), torch.ones(2))])[1].shape
        torch.Size([2, 2])
    """
    first = trees[0]
    if isinstance(first, Mapping):
        return {key: stacked([tree[key] for tree in trees]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(stacked([tree[place] for tree in trees]) for place in range(len(first)))
    return torch.stack(list(trees))


def length(tree: Samples) -> int:
    """Return the number of samples."""
    return len(tree) if isinstance(tree, Tensor) else next((len(column) for _, column in columns(tree)), 0)


def take(tree: Samples, rows: Tensor) -> Samples:
    """Return the samples at `rows`, int64 [n], as a batch.

    Example:
        >>> take({"a": torch.arange(4), "b": torch.eye(4)}, torch.tensor([2]))
        {'a': tensor([2]), 'b': tensor([[0., 0., 1., 0.]])}
    """
    if isinstance(tree, Tensor):
        return tree.index_select(0, rows)
    if isinstance(tree, Column):
        return tree.take(rows)
    if isinstance(tree, Mapping):
        batch: dict[str, Any] = {}
        for key, part in tree.items():
            batch |= part.named(key, rows) if isinstance(part, Column) else {key: take(part, rows)}
        return batch
    parts: list[Any] = []
    for part in tree:
        found = take(part, rows)
        parts += found if isinstance(part, Ragged) and isinstance(found, tuple) else [found]
    return tuple(parts)


def select(tree: Samples, rows: Tensor) -> Samples:
    """Return the tree of the samples at `rows`: columns again, where `take` returns a batch."""
    return map_tree(lambda column: column[rows] if isinstance(column, Tensor) else column.subset(rows), tree)


def first(tree: Samples, count: int = 1) -> Samples:
    """Return the first samples as a batch."""
    if isinstance(tree, Tensor):
        return tree[:count]
    return take(tree, torch.arange(min(count, length(tree))))


def place(tree: Samples, device: torch.device | str) -> Samples:
    """Return the tree on a device; of columns in files the batches are put there."""
    return map_tree(lambda column: column.to(device), tree)


def cast(tree: Samples, dtype: torch.dtype) -> Samples:
    """Return the tree with all floating-point values in one dtype."""

    def one(column: Any) -> Any:
        if isinstance(column, Tensor):
            return column.to(dtype) if column.is_floating_point() else column
        return column.astype(dtype)

    return map_tree(one, tree)


def kind_of(batch: Samples) -> Any:
    """Return dtype and shape of one sample of each tensor of a batch: equal for batches that a module takes alike."""
    if isinstance(batch, Tensor):
        return batch.dtype, tuple(batch.shape[1:])
    return tuple((name, part.dtype, tuple(part.shape[1:])) for name, part in columns(batch))


def spread(inputs: Samples) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a module's call: one input, those of a tuple, or those of a dict by name."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def positional(module: nn.Module, inputs: Samples) -> tuple[Any, ...]:
    """Return the arguments of a module's call by position; those of a dict in the order in which ``forward`` names them."""
    given, named = spread(inputs)
    return given if not named else inspect.signature(module.forward).bind(**named).args


def call(module: Callable[..., Any], inputs: Samples) -> Any:
    """Return ``module(x)``, ``module(*inputs)`` for a tuple, or ``module(**inputs)`` for a dict; scores in at least float32.

    Example:
        >>> call(nn.Bilinear(2, 3, 4), (torch.zeros(5, 2), torch.zeros(5, 3))).shape
        torch.Size([5, 4])
    """
    if isinstance(inputs, Tensor):
        return widened(module(inputs))
    given, named = spread(inputs)
    return widened(module(*given, **named))


def widened(outputs: Any) -> Any:
    """Return half-precision scores in float32, in which losses and sums are formed; anything else as it is."""
    return outputs.float() if isinstance(outputs, Tensor) and outputs.dtype in _HALF else outputs
