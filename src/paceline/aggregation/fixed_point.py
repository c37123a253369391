"""Exact sums in 64-bit fixed point, independent of the order and of the partition into partial sums.

A float x with weight w is added as round(w x 2^f) in int64. Integer addition is associative, so the same
replies give bitwise identical sums on 1 worker, 4 workers or a real federation. Memory: one model per partial sum.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from paceline.core.engine import Sink
from paceline.core.errors import AggregationError, NonFiniteError, PacelineError, SumOverflowError
from paceline.core.params import DeferredNumber, DeferredParams
from paceline.core.tree import Tree
from paceline.core.update import Columns, Terms, Update
from paceline.core.wording import setting

__all__ = ["SUM_BOUND", "FixedPoint", "Partial", "merge"]

SUM_BOUND = 2.0**20
"""Default bound on |w x| of one client's coordinate."""

_SCALAR = 2**40
_BLOCK = 1 << 16


class Partial:
    """Accumulator of one worker's replies.

    Args:
        fraction: f, number of fraction bits.
        bound: largest |w x| of one client's coordinate.
    """

    def __init__(self, fraction: int, bound: float) -> None:
        self.fraction, self.bound = fraction, bound
        self.structure: Any = None
        self.same = ""
        self.tensors: list[Tensor] = []
        self.denominators: list[Tensor] = []
        self.scalars: list[int] = []
        self.clients: list[int] = []

    def add(self, client: int, reply: Tree) -> None:
        """Add one reply. The sum is unchanged if the reply is refused.

        Args:
            client: id of the sender.
            reply: tree of tensors and numbers, usually an `Update`.

        Raises:
            NonFiniteError: the reply contains NaN or infinity.
            SumOverflowError: a weighted coordinate exceeds the bound.
            AggregationError: the reply's structure differs from that of the earlier replies.
        """
        self.add_terms([client], Terms.of(reply))

    def add_terms(self, clients: Sequence[int], terms: Terms) -> None:
        """Add the terms of one client's reply, or the presummed terms of several clients. Raises as `add` does."""
        who = f"client {clients[0]}" if len(clients) == 1 else f"clients {clients[0]} to {clients[-1]}"
        for name, tensor, weight in zip(terms.names, terms.tensors, terms.weights, strict=True):
            self._check(who, name, tensor, weight, len(clients) * self.bound)
        for tensor in terms.denominators:
            self._check(who, "weight", tensor, 1.0, len(clients) * self.bound)
        for value in terms.scalars:
            if not abs(value) < 2.0**100:
                raise NonFiniteError(f"{who} returned the non-finite number {value}")
        if self.structure is None:
            self.structure, self.same = terms.structure, terms.same
            device = terms.tensors[0].device if terms.tensors else torch.device("cpu")
            self.tensors = [torch.zeros(n, dtype=torch.int64, device=device) for n in terms.sizes]
            self.denominators = [torch.zeros(t.numel(), dtype=torch.int64, device=device) for t in terms.denominators]
            self.scalars = [0] * len(terms.scalars)
        elif terms.structure != self.structure and terms.same != self.same:
            raise AggregationError(f"{who} returned a reply of a different structure than client {self.clients[0]}")
        scale = 2.0**self.fraction
        for total, tensor, weight in zip(self.tensors, terms.tensors, terms.weights, strict=True):
            _accumulate(total, tensor, weight, scale)
        for total, tensor in zip(self.denominators, terms.denominators, strict=True):
            _accumulate(total, tensor, 1.0, scale)
        self.scalars = [s + round(v * _SCALAR) for s, v in zip(self.scalars, terms.scalars, strict=True)]
        self.clients += clients

    def _check(self, who: str, name: str, tensor: Tensor, weight: float | Tensor, bound: float) -> None:
        if not tensor.numel():
            return
        values = tensor * weight if isinstance(weight, Tensor) else tensor
        low, high = torch.aminmax(values)  # propagates NaN and copies nothing
        top = max(-float(low), float(high)) * (1.0 if isinstance(weight, Tensor) else abs(weight))
        if float(low) != float(low):
            top = float("nan")
        if top != top or top == float("inf"):
            raise NonFiniteError(f"{who} returned NaN or infinity in {name!r}")
        if top > bound:
            raise SumOverflowError(
                f"{who}: weight x value of {name!r} reaches {top:.3g}, above the bound {bound:.3g} "
                f"of the fixed-point sum; training may have diverged, otherwise raise {setting('sum_bound')}"
            )

    def merge(self, other: Partial) -> None:
        """Add another partial sum of the same call in place.

        Raises:
            AggregationError: the two sums hold replies of different structure.
        """
        if other.structure is None:
            return
        if self.structure is None:
            self.__dict__.update(other.__dict__)
            return
        if self.same != other.same:
            raise AggregationError(
                "clients returned replies of different structures; return the same fields and shapes on every client"
            )
        for mine, theirs in zip(self.tensors + self.denominators, other.tensors + other.denominators, strict=True):
            mine += theirs.to(mine.device)
        self.scalars = [a + b for a, b in zip(self.scalars, other.scalars, strict=True)]
        self.clients += other.clients

    def values(self) -> tuple[list[Tensor], list[float], list[Tensor]]:
        """Return (tensor sums, scalar sums, denominator sums) in float64."""
        scale = 2.0**-self.fraction
        return (
            [t.cpu().double().mul_(scale) for t in self.tensors],
            [s / _SCALAR for s in self.scalars],
            [t.cpu().double().mul_(scale) for t in self.denominators],
        )


def _accumulate(total: Tensor, tensor: Tensor, weight: float | Tensor, scale: float) -> None:
    step = _BLOCK if tensor.device.type == "cpu" else max(tensor.numel(), 1)
    for start in range(0, tensor.numel(), step):
        part = tensor[start : start + step].double()
        part *= weight[start : start + step].double() * scale if isinstance(weight, Tensor) else weight * scale
        total[start : start + step] += part.round_().to(torch.int64)


class FixedPoint:
    """Channel that sums replies exactly at each worker.

    The fraction has f = floor(62 - log2(max(clients, 2) bound)) bits, so that no sum of `clients` replies overflows.

    Args:
        clients: number of clients that the sum is sized for.
        bound: largest |w x| of one client's coordinate.

    Example:
        >>> sink = FixedPoint(clients=2).open()
        >>> for client, value in enumerate([0.5, 1.25]):
        ...     sink.add(client, {"x": torch.tensor([value])}, lambda: 0)
        >>> (total,), _, _ = sink.partial().values()
        >>> total.item()
        1.75
    """

    def __init__(self, clients: int, bound: float = SUM_BOUND) -> None:
        self.bound = bound
        self.fraction = int(62 - torch.tensor(float(max(clients, 2) * bound), dtype=torch.float64).log2().ceil().item())

    def open(self) -> _Sink:
        """Return an empty accumulator."""
        return _Sink(self.fraction, self.bound)


class _Sink(Sink):
    def __init__(self, fraction: int, bound: float) -> None:
        self._partial = Partial(fraction, bound)

    def add(self, client: int, reply: Tree, seed: Callable[[], int]) -> None:
        self._partial.add(client, reply)

    def sizes(self, replies: Sequence[Tree]) -> list[int]:
        """Return the size of each reply in bytes; replies of identical layout are measured once."""
        if len(replies) > 1 and Columns.of(replies) is not None:
            return [self.size(replies[0])] * len(replies)
        return super().sizes(replies)

    def add_all(self, entries: Sequence[tuple[int, Tree, Callable[[], int]]]) -> list[Any]:
        """Add several replies in one step if their tensors are rows of the same matrix."""
        if len(entries) > 1:
            with contextlib.suppress(PacelineError):  # one reply is invalid: the one-by-one fallback identifies it
                total = together([reply for _, reply, _ in entries])
                if total is not None:
                    self._partial.add_terms([client for client, _, _ in entries], total)
                    return [None] * len(entries)
        return super().add_all(entries)

    stands_for_all = True

    def add_uniform(self, clients: Sequence[int], reply: Tree) -> bool:
        """Add one reply that represents one of each client; return False if its form does not allow that."""
        total = _of_all(reply, len(clients))
        if total is not None:
            self._partial.add_terms(clients, total)
        return total is not None

    def partial(self) -> Partial:
        return self._partial


def _of_all(reply: Tree, count: int) -> Terms | None:
    """Return the terms of the sum over `count` clients of a reply that represents each of them; None if not possible."""
    if type(reply) is not Update or type(reply.weight) not in (int, float):
        return None
    weight, sums, scalars, shown = float(reply.weight), [], [], {}
    for name, value in reply.fields.items():
        if isinstance(value, DeferredParams):
            if (total := value.total(weight, count)) is None:
                return None
            sums.append(total)
        elif isinstance(value, int | float):
            scalars.append(weight * (value.total() if isinstance(value, DeferredNumber) else count * value))
        else:
            return None
        shown[name] = 0.0 if isinstance(value, DeferredNumber) else value
    terms = Terms.of(Update(weight=reply.weight, **shown), lazy=True)
    return Terms(terms.structure, terms.names, sums, [1.0] * len(sums), [*scalars, weight * count], [])


def together(replies: Sequence[Tree]) -> Terms | None:
    """Return the terms of the weighted sum of replies whose tensors are rows of one matrix; None for other replies."""
    columns = Columns.of(replies)
    if columns is None:
        return None
    terms = Terms.of(replies[0], lazy=True)
    sums, scalars = [], []
    for values in columns.fields:
        if isinstance(values[0], DeferredParams):
            total = values[0].weighted(values, columns.weights)
            if total is None:
                return None
            sums.append(total)
        else:
            scalars.append(math.fsum(map(operator.mul, values, columns.weights)))
    scalars.append(math.fsum(columns.weights))
    return Terms(terms.structure, terms.names, sums, [1.0] * len(sums), scalars, [])


def merge(partials: list[Partial]) -> Partial:
    """Return the total of partial sums, accumulated into the first one. The order does not affect the result."""
    total = partials[0]
    for other in partials[1:]:
        total.merge(other)
    return total
