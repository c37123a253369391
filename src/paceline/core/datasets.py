"""Data sets as users have them, made into columns of inputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.core.checks import check_finite
from paceline.core.columns import Column, Mapped, cast, columns, length, map_tree
from paceline.core.errors import DataError, DataFormatError
from paceline.core.reading import Reader, Sampled, sample_at

__all__ = ["RESIDENT", "check_lengths", "columnar", "joined", "samples"]

RESIDENT = 2 << 30
"""Bytes up to which a data set is read into memory; a larger one is read batch by batch."""


def samples(
    data: Any,
    which: str,
    dtype: torch.dtype = torch.float32,
    *,
    resident: bool | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    workers: int = 2,
) -> tuple[Any, Any]:
    """Return a data set's inputs and targets on the CPU, each a tree of columns.

    Args:
        data: a pair (inputs, targets) of columns (tensors, arrays, `Column`) or trees of them, or a map-style data set whose
            samples are such pairs of tensors, arrays or numbers, or of trees of them.
        which: name of the part, for messages.
        dtype: of floating-point inputs; targets become float64 for float64, else float32.
        resident: whether a data set is read into memory, sample by sample; by default up to `RESIDENT` bytes.
        collate: makes a batch of a list of samples; such a data set is read batch by batch.
        workers: threads that read batches ahead.

    Integer and boolean targets become int64. Each sample of a data set in memory is read once, so a random transform is applied
    once; of a data set that is read when needed, it is applied anew.

    Raises `DataError` where there are no samples, lengths differ or a value is not finite, `DataFormatError` for samples that
    are no such pairs.
    """
    if isinstance(data, torch.utils.data.TensorDataset):
        data = (data.tensors[0] if len(data.tensors) == 2 else data.tensors[:-1], data.tensors[-1])
    if isinstance(data, tuple | list) and len(data) == 2 and all(_is_columns(part) for part in data):
        x, y = (columnar(part) for part in data)
        check_lengths(x, y, which)
    else:
        _check_map_style(data, which)
        head = sample_at(data, 0, which) if len(data) else None  # read once: a sample may be drawn
        if len(data) and (resident is False or (resident is None and (collate is not None or len(data) * _size(head) > RESIDENT))):
            return _sampled(Reader(data, collate, workers, dtype), which)
        x, y = _collect(data, which, head)
    if not length(x):
        raise DataError(f"{which}: the data set has no samples")
    x, y = cast(x, dtype), map_tree(_targets, cast(y, torch.float64 if dtype == torch.float64 else torch.float32))
    check_finite(x, which, "x")
    check_finite(y, which, "y")
    return x, y


def columnar(tree: Any) -> Any:
    """Return a tree whose arrays are columns: tensors on the CPU, or `Mapped` where they lie in a file."""

    def one(value: Any) -> Any:
        if isinstance(value, np.memmap):
            return Mapped(value)
        return value if isinstance(value, Column) else torch.as_tensor(value).detach().cpu()

    return map_tree(one, tree)


def _is_columns(tree: Any) -> bool:
    parts = list(columns(tree)) if isinstance(tree, Mapping | tuple | list | Tensor | np.ndarray | Column) else []
    return bool(parts) and all(isinstance(part, Tensor | np.ndarray | Column) for _, part in parts)


def _targets(column: Any) -> Any:
    return column.long() if isinstance(column, Tensor) and not column.is_floating_point() else column


def check_lengths(x: Any, y: Any, which: str) -> None:
    """Raise `DataError` where columns have no leading dimension, or different ones."""
    parts = [(f"x{name}", part) for name, part in columns(x)] + [(f"y{name}", part) for name, part in columns(y)]
    if any(isinstance(part, Tensor) and not part.dim() for _, part in parts) or len({len(part) for _, part in parts}) > 1:
        shapes = [f"{name} has shape {_shape(part)}" for name, part in parts]
        if len(parts) == 2:
            shapes[1] = f"y {_shape(parts[1][1])}"
        raise DataError(f"{which}: {' and '.join(shapes)}; their first dimensions must be equal")


def _shape(part: Any) -> list[int]:
    return list(part.shape) if hasattr(part, "shape") else [len(part)]


def _check_map_style(data: Any, which: str) -> None:
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or isinstance(data, Mapping):
        raise DataFormatError(
            f"{which}: a {type(data).__name__} is not a map-style data set; implement __len__ and a __getitem__ that returns (x, y)"
        )


def _size(sample: Any) -> int:
    """Return the bytes of a sample."""
    parts = [part for _, part in columns(sample)] if isinstance(sample, tuple | list) else []
    return sum(int(getattr(part, "nbytes", 8)) for part in parts)


def _collect(data: Any, which: str, head: Any) -> tuple[Any, Any]:
    """Read every sample into memory; the first one has been read."""
    read: list[tuple[list[Tensor], list[Tensor]]] = []
    shape: list[Any] = []
    for i in range(len(data)):
        sample = sample_at(data, i, which) if i else head
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            if isinstance(data, tuple | list) and len(data) == 2 and isinstance(sample, list):
                raise DataFormatError(f"{which}: got a pair of lists; convert each to a tensor or an array")
            raise DataFormatError(f"{which}: sample {i} is a {type(sample).__name__}; it must be a pair (x, y)")
        made = tuple(_leaves(part, which, f"{name} of sample {i}") for part, name in zip(sample, "xy", strict=True))
        if not read:
            shape = [map_tree(lambda _: None, part) for part in sample]
        else:
            _check_alike(made, read[0], sample, which, i)
        read.append((made[0], made[1]))
    if not read:
        return torch.empty(0), torch.empty(0)
    stacks = [iter([torch.stack(same) for same in zip(*part, strict=True)]) for part in zip(*read, strict=True)]
    return _refilled(shape[0], stacks[0]), _refilled(shape[1], stacks[1])


def _leaves(part: Any, which: str, what: str) -> list[Tensor]:
    """Return the tensors of one sample's inputs or targets."""
    found = []
    for name, value in columns(part):
        if not isinstance(value, Tensor | np.ndarray | np.generic | int | float):
            hint = "; convert it in the data set's transform, as torchvision's ToTensor does" if what.startswith("x") else ""
            raise DataFormatError(
                f"{which}: {what[0]}{name}{what[1:]} is a {type(value).__name__}; it must be a tensor, array or number{hint}"
            )
        found.append(torch.as_tensor(value).detach().cpu())
    return found


def _check_alike(made: Any, first: Any, sample: Any, which: str, i: int) -> None:
    for mine, theirs, part, name in zip(made, first, sample, "xy", strict=True):
        if len(mine) != len(theirs):
            raise DataFormatError(f"{which}: {name} of sample {i} has {len(mine)} parts, but sample 0 has {len(theirs)}")
        for (place, _), a, b in zip(columns(part), mine, theirs, strict=True):
            if a.shape != b.shape:
                raise DataFormatError(
                    f"{which}: {name}{place} of sample {i} has shape {list(a.shape)}, but sample 0 has {list(b.shape)}; pad or crop "
                    "all samples to the same shape, or pass columns with Ragged.of(samples)"
                )


def _sampled(reader: Reader, which: str) -> tuple[Any, Any]:
    """Return the columns of a data set that is read when needed; targets that are one number each are read at once."""
    labels = next((v for v in (getattr(reader.data, n, None) for n in ("targets", "labels")) if v is not None), None)
    if isinstance(labels, Tensor | np.ndarray | list) and len(labels) == len(reader) and np.ndim(labels) == 1:
        return Sampled(reader, 0), torch.as_tensor(labels).long()
    _, y = reader.read(torch.arange(1))
    if not isinstance(y, Tensor) or y.dim() != 1:
        return Sampled(reader, 0), Sampled(reader, 1)
    read = [batch[1] for _, batch in reader.ahead(iter(torch.split(torch.arange(len(reader)), 256)))]
    values = _targets(torch.cat(read))
    check_finite(values, which, "y")
    return Sampled(reader, 0), values


def joined(parts: Sequence[tuple[Any, Any]], which: str) -> tuple[Any, Any]:
    """Return several data sets' columns, one after another, as those of one data set."""
    if any(isinstance(x, Sampled) for x, _ in parts):
        readers = [x.reader for x, _ in parts if isinstance(x, Sampled)]
        if len(readers) < len(parts):
            raise DataFormatError(f"{which}: some data sets are in memory and others are not; set resident=True or resident=False")
        first = readers[0]
        whole: Any = torch.utils.data.ConcatDataset([reader.data for reader in readers])
        reader = Reader(whole, first.collate, first.workers, first.dtype)
        labels = [y for _, y in parts]
        return Sampled(reader, 0), torch.cat(labels) if all(isinstance(y, Tensor) for y in labels) else Sampled(reader, 1)
    kinds = [
        [(name, part.dtype, part.shape[1:]) if isinstance(part, Tensor) else name for name, part in columns(pair)] for pair in parts
    ]
    for number, kind in enumerate(kinds):
        if kind != kinds[0] or not all(isinstance(part, Tensor) for _, part in columns(parts[number])):
            raise DataFormatError(f"{which}: data set {number} has other columns than the first one: {kind}, not {kinds[0]}")
    flat = [
        iter([torch.cat(same) for same in zip(*([c for _, c in columns(pair[k])] for pair in parts), strict=True)]) for k in (0, 1)
    ]
    return _refilled(parts[0][0], flat[0]), _refilled(parts[0][1], flat[1])


def _refilled(tree: Any, columns_of: Iterator[Any]) -> Any:
    """Return a tree with its columns replaced, in order."""
    return map_tree(lambda _: next(columns_of), tree)
