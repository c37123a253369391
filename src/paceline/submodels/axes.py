"""Spaces of units, and the mapping of tensor axes to them.

A *space* is a set of units that are kept or dropped together with everything that reads or feeds them.
An axis of a tensor maps its positions to the units of one space: position ``i`` belongs to unit
``(i // repeat) % size``. Flattening (C, H, W) yields channels with ``repeat = H * W``, flattening
(H, W, C) yields ``repeat = 1``; an LSTM's four gate blocks traverse one space four times.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Axes", "Axis", "Spaces"]


class Axis(NamedTuple):
    """An axis whose position ``i`` belongs to unit ``(i // repeat) % size`` of `space`."""

    space: int
    repeat: int = 1


Axes = tuple["Axis | None", ...]
"""Axes of one tensor; None represents an axis that is never cut."""


class Spaces:
    """Union-find over spaces of units, in which a finer space can be folded into a coarser one.

    Two axes that must share an index set are tied. If their units differ in granularity (a channel and the 16 columns that
    it flattens to, or a channel and a block of a grouped convolution), the finer units are folded together. If there is no common
    granularity, both spaces remain whole.
    """

    def __init__(self) -> None:
        self._parent: list[tuple[int, int]] = []
        self._size: list[int] = []
        self._first: list[int] = []
        self._name: list[str] = []
        self._whole: dict[int, str] = {}

    def new(self, size: int, name: str) -> Axis:
        """Return an axis that traverses a new space of `size` units once."""
        at = len(self._parent)
        self._parent.append((at, 1))
        self._size.append(size)
        self._first.append(at)
        self._name.append(name)
        return Axis(at)

    def find(self, axis: Axis) -> Axis:
        """Return the same axis in terms of its space's representative."""
        space, repeat = axis
        while self._parent[space][0] != space:
            space, factor = self._parent[space]
            repeat *= factor
        return Axis(space, repeat)

    def size(self, axis: Axis) -> int:
        """Return the number of units."""
        return self._size[self.find(axis).space]

    def name(self, axis: Axis) -> str:
        """Return the name of the space: that of the first layer that produced it."""
        return self._name[self._first[self.find(axis).space]]

    def is_whole(self, axis: Axis) -> bool:
        """Whether the space must not be cut."""
        return self.find(axis).space in self._whole

    def why_whole(self) -> dict[str, str]:
        """Return the names of the spaces that are never cut, with the reasons."""
        return {self._name[self._first[s]]: why for s, why in self._whole.items() if self._parent[s][0] == s}

    def keep_whole(self, axis: Axis | None, why: str) -> None:
        """Mark this axis's space as never cut."""
        if axis is not None:
            self._whole.setdefault(self.find(axis).space, why)

    def tie(self, a: Axis | None, b: Axis | None, why: str) -> None:
        """Make two axes of equal length share one index set."""
        if a is None or b is None:
            self.keep_whole(a if b is None else b, why)
            return
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        if a.repeat < b.repeat:
            a, b = b, a
        lengths_differ = self._size[a.space] * a.repeat != self._size[b.space] * b.repeat
        if a.space == b.space or a.repeat % b.repeat or lengths_differ:
            for axis in (a, b):
                self.keep_whole(axis, f"{why}: its units do not align with those of another axis")
            return
        self._parent[b.space] = (a.space, a.repeat // b.repeat)
        self._first[a.space] = min(self._first[a.space], self._first[b.space])
        if b.space in self._whole:
            self._whole.setdefault(a.space, self._whole[b.space])

    def units(self, axis: Axis, length: int) -> Tensor:
        """Return the unit of each of the `length` positions of an axis."""
        axis = self.find(axis)
        return torch.arange(length) // axis.repeat % self._size[axis.space]
