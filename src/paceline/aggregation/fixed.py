"""Exact sums: 64-bit fixed point, so that a sum depends neither on order nor on who formed which part.

A float x with weight w enters as round(w x 2^f) in int64. Integer addition is associative, so the same
replies give the same bits on 1 worker, 4 workers or a real federation, in memory of one model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paceline.call import wire_size
from paceline.errors import AggregationError, NonFiniteError, SumOverflowError
from paceline.tree import Tree
from paceline.update import Terms

__all__ = ["SUM_BOUND", "FixedPoint", "Partial", "merge"]

SUM_BOUND = 2.0**20
"""Default largest |w x| of one client's coordinate."""

_SCALAR = 2**40
_BLOCK = 1 << 16


class Partial:
    """A sum in the making."""

    def __init__(self, fraction: int, bound: float) -> None:
        self.fraction, self.bound = fraction, bound
        self.structure: Any = None
        self.same = ""
        self.tensors: list[Tensor] = []
        self.denominators: list[Tensor] = []
        self.scalars: list[int] = []
        self.clients: list[int] = []

    def add(self, client: int, reply: Tree) -> None:
        """Add one reply.

        Raises `NonFiniteError` for NaN, `SumOverflowError` beyond the bound, `AggregationError` for a
        reply of another shape. A refused reply leaves the sum as it was.
        """
        terms = Terms.of(reply)
        for name, tensor, weight in zip(terms.names, terms.tensors, terms.weights, strict=True):
            self._check(client, name, tensor, weight)
        for tensor in terms.denominators:
            self._check(client, "weight", tensor, 1.0)
        for value in terms.scalars:
            if not abs(value) < 2.0**100:
                raise NonFiniteError(f"client {client} returned the number {value}")
        if self.structure is None:
            self.structure, self.same = terms.structure, terms.same
            device = terms.tensors[0].device if terms.tensors else torch.device("cpu")
            self.tensors = [torch.zeros(t.numel(), dtype=torch.int64, device=device) for t in terms.tensors]
            self.denominators = [torch.zeros(t.numel(), dtype=torch.int64, device=device) for t in terms.denominators]
            self.scalars = [0] * len(terms.scalars)
        elif terms.same != self.same:
            raise AggregationError(f"client {client} returned a reply of another shape than client {self.clients[0]}")
        scale = 2.0**self.fraction
        for total, tensor, weight in zip(self.tensors, terms.tensors, terms.weights, strict=True):
            _accumulate(total, tensor, weight, scale)
        for total, tensor in zip(self.denominators, terms.denominators, strict=True):
            _accumulate(total, tensor, 1.0, scale)
        self.scalars = [s + round(v * _SCALAR) for s, v in zip(self.scalars, terms.scalars, strict=True)]
        self.clients.append(client)

    def _check(self, client: int, name: str, tensor: Tensor, weight: float | Tensor) -> None:
        if not tensor.numel():
            return
        values = tensor * weight if isinstance(weight, Tensor) else tensor
        low, high = torch.aminmax(values)  # NaN comes through, and nothing is copied
        top = max(-float(low), float(high)) * (1.0 if isinstance(weight, Tensor) else abs(weight))
        if float(low) != float(low):
            top = float("nan")
        if top != top or top == float("inf"):
            raise NonFiniteError(f"client {client} returned NaN or infinity in {name!r}")
        if top > self.bound:
            raise SumOverflowError(
                f"client {client}: weight x value of {name!r} reaches {top:.3g}, above the bound {self.bound:.3g} that "
                f"the exact sum is sized for; training may have diverged, else raise --sum-bound"
            )

    def merge(self, other: Partial) -> None:
        """Add another partial sum of the same call."""
        if other.structure is None:
            return
        if self.structure is None:
            self.__dict__.update(other.__dict__)
            return
        if self.same != other.same:
            raise AggregationError("clients returned replies of different shapes")
        for mine, theirs in zip(self.tensors + self.denominators, other.tensors + other.denominators, strict=True):
            mine += theirs.to(mine.device)
        self.scalars = [a + b for a, b in zip(self.scalars, other.scalars, strict=True)]
        self.clients += other.clients

    def values(self) -> tuple[list[Tensor], list[float], list[Tensor]]:
        """Return the sums of tensors, scalars and denominators in float64."""
        scale = 2.0**-self.fraction
        return (
            [t.double() * scale for t in self.tensors],
            [s / _SCALAR for s in self.scalars],
            [t.double() * scale for t in self.denominators],
        )


def _accumulate(total: Tensor, tensor: Tensor, weight: float | Tensor, scale: float) -> None:
    step = _BLOCK if tensor.device.type == "cpu" else max(tensor.numel(), 1)
    for start in range(0, tensor.numel(), step):
        part = tensor[start : start + step].double()
        part *= weight[start : start + step].double() * scale if isinstance(weight, Tensor) else weight * scale
        total[start : start + step] += part.round_().to(torch.int64)


class FixedPoint:
    """The channel that adds replies up exactly at each worker.

    Args:
        clients: number of clients the sum is sized for.
        bound: largest |w x| of one client's coordinate; the rest of the 63 bits are fraction.
    """

    def __init__(self, clients: int, bound: float = SUM_BOUND) -> None:
        self.bound = bound
        self.fraction = int(62 - torch.tensor(float(max(clients, 2) * bound), dtype=torch.float64).log2().ceil().item())

    def open(self) -> _Sink:
        """Return an empty sum."""
        return _Sink(self.fraction, self.bound)


class _Sink:
    def __init__(self, fraction: int, bound: float) -> None:
        self._partial = Partial(fraction, bound)

    def size(self, reply: Tree) -> int:
        return wire_size(reply)

    def add(self, client: int, reply: Tree, seed: int) -> None:
        self._partial.add(client, reply)

    def partial(self) -> Partial:
        return self._partial


def merge(partials: list[Partial]) -> Partial:
    """Add partial sums up; the order does not matter."""
    total = partials[0]
    for other in partials[1:]:
        total.merge(other)
    return total
