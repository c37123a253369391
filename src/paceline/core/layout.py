"""Layout of a module's tensors in one flat vector: names, shapes and offsets."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paceline.core.errors import LayoutError

__all__ = ["Buffers", "Entry", "Layout", "float_buffers"]

Buffers = Literal["average", "local", "recompute"]
"""Treatment of BatchNorm's running statistics (all float buffers).

``average``: they are part of the vector and are averaged like weights. ``local``: each client stores its own in its
memory. ``recompute``: they are never trained; the clients recompute them before an evaluation.
"""


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Entry:
    """One named tensor in the flat vector; `offset` and `size` count elements."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int
    kind: Literal["param", "buffer"] = "param"


@dataclass(frozen=True)
class Layout:
    """Names, shapes and offsets of the tensors in a flat vector: parameters first, then buffers.

    Example:
        >>> layout = Layout.of(nn.Linear(2, 3))
        >>> layout.size, list(layout.by_name)
        (9, ['weight', 'bias'])
    """

    entries: tuple[Entry, ...]

    @staticmethod
    def build(tensors: Sequence[tuple[str, tuple[int, ...], Literal["param", "buffer"]]]) -> Layout:
        """Return the layout of consecutive tensors.

        Args:
            tensors: (name, shape, kind) of each tensor, in order.
        """
        entries, offset = [], 0
        for name, shape, kind in tensors:
            size = 1
            for n in shape:
                size *= n
            entries.append(Entry(name, tuple(shape), offset, size, kind))
            offset += size
        return Layout(tuple(entries))

    @staticmethod
    def of(
        module: nn.Module,
        trainable: Sequence[str] | Callable[[str], bool] | None = None,
        buffers: Buffers = "average",
    ) -> Layout:
        """Return the layout of a module's trainable parameters and, unless `buffers` is ``local``, its float buffers.

        Integer buffers (BatchNorm's counter) are never part of the layout.

        Args:
            module: the module.
            trainable: predicate on names, or list of glob patterns (``["head.*"]``); None selects every parameter with
                ``requires_grad``.
            buffers: see `Buffers`.

        Raises:
            LayoutError: no parameter is trainable, or one is not of 16, 32 or 64-bit floats.
        """
        if trainable is None:
            chosen = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        else:
            keep = trainable if callable(trainable) else _matcher(trainable)
            chosen = [(n, p) for n, p in module.named_parameters() if keep(n)]
        if not chosen:
            names = [n for n, _ in module.named_parameters()]
            if trainable is None:
                raise LayoutError(f"no parameter of the module requires a gradient, so nothing is trained; it has {names}")
            raise LayoutError(f"trainable={trainable!r} matches no parameter; the module has {names}")
        wrong = [n for n, p in chosen if p.dtype not in _DTYPES]
        if wrong:
            raise LayoutError(
                f"trainable parameters must be float32, float64, bfloat16 or float16; convert these with .float(): {wrong}"
            )
        tensors: list[tuple[str, tuple[int, ...], Literal["param", "buffer"]]] = [(n, tuple(p.shape), "param") for n, p in chosen]
        if buffers != "local":
            tensors += [(n, tuple(b.shape), "buffer") for n, b in float_buffers(module)]
        return Layout.build(tensors)

    def part(self, chosen: Callable[[Entry], bool]) -> Layout:
        """Return the layout of the chosen tensors alone, in the same order.

        Example:
            >>> Layout.of(nn.Linear(2, 3)).part(lambda entry: entry.name == "bias").size
            3
        """
        return Layout.build([(e.name, e.shape, e.kind) for e in self.entries if chosen(e)])

    @cached_property
    def size(self) -> int:
        """Number of coordinates d."""
        return sum(e.size for e in self.entries)

    @cached_property
    def num_params(self) -> int:
        """Number of coordinates that belong to parameters; they precede the buffers."""
        return sum(e.size for e in self.entries if e.kind == "param")

    @cached_property
    def by_name(self) -> dict[str, Entry]:
        """Entries by name."""
        return {e.name: e for e in self.entries}

    def difference(self, module: Layout) -> str:
        """Return the first difference between a module's layout and this one; empty if there is none."""
        for mine, other in zip_longest(self.entries, module.entries):
            if mine is None:
                return f"{other.name} {list(other.shape)} of the module is missing from the vector"
            if other is None or mine.name != other.name:
                return f"{mine.name} {list(mine.shape)} of the vector is missing from the module"
            if (mine.shape, mine.kind) != (other.shape, other.kind):
                return f"{mine.name} is {mine.kind} {list(mine.shape)} in the vector, but {other.kind} {list(other.shape)} in the module"
        return ""

    def to_plain(self) -> list[list[Any]]:
        """Return [name, kind, shape] of each tensor as plain values."""
        return [[e.name, e.kind, list(e.shape)] for e in self.entries]

    @staticmethod
    def from_plain(rows: Any) -> Layout:
        """Return the layout encoded by `to_plain`.

        Raises:
            LayoutError: the rows are malformed.
        """
        try:
            tensors = [(name, tuple(shape), kind) for name, kind, shape in rows]
            plain = all(isinstance(n, str) and k in ("param", "buffer") and all(type(d) is int for d in s) for n, s, k in tensors)
        except (TypeError, ValueError):
            plain = False
        if not plain:
            raise LayoutError("malformed layout: expected a list of [name, kind, shape]")
        return Layout.build(tensors)

    @cached_property
    def digest(self) -> str:
        """Short hash of names and shapes, equal for equal layouts only."""
        text = repr([(e.name, e.shape, e.kind) for e in self.entries])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def view(self, vector: Tensor, name: str) -> Tensor:
        """Return the tensor `name` as a view into a vector.

        Args:
            vector: shape [d] or, stacked, [K, d].
            name: name of the tensor.

        Raises:
            LayoutError: the layout has no such tensor.
        """
        entry = self.by_name.get(name)
        if entry is None:
            raise LayoutError(f"this layout has no tensor {name!r}; it has {list(self.by_name)}")
        part = vector.narrow(-1, entry.offset, entry.size)
        return part.view((*vector.shape[:-1], *entry.shape))


def float_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the module's floating-point buffers by name."""
    return [(n, b) for n, b in module.named_buffers() if b is not None and b.is_floating_point()]


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    return lambda name: any(fnmatch.fnmatchcase(name, p) for p in patterns)
