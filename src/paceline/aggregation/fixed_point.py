"""Exact sums in 64-bit fixed point, independent of the order and of the partition into partial sums.

A float x with weight w is added as round(w x 2^f) in int64. Integer addition is associative, so the same
replies give bitwise identical sums on 1 worker, 4 workers or a real federation. Memory: one model per partial sum and level.

The step 2^-f follows the values: see `paceline.aggregation.exact`. Whole numbers with whole weights are added as they are,
and single numbers without any rounding.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paceline.aggregation.exact import TensorSum, from_units, is_whole, units
from paceline.core.engine import Sink
from paceline.core.errors import AggregationError, NonFiniteError, PacelineError, SumOverflowError
from paceline.core.params import DeferredNumber, DeferredParams
from paceline.core.placement import download
from paceline.core.tree import Tree
from paceline.core.update import Columns, Terms, Update
from paceline.core.wording import setting

__all__ = ["SUM_BOUND", "FixedPoint", "Partial", "merge"]

SUM_BOUND = 2.0**20
"""Default bound on |w x| of one client's coordinate."""


class _Presummed(NamedTuple):
    """The sum of several clients' replies.

    Args:
        terms: the sum as terms of weight 1; without its numbers.
        largest: for each tensor an upper bound on a client's |w x|, shape []; None if it is not known.
        numbers: weighted sums of the numbers, and of the weights, in units of 2^-1074.
    """

    terms: Terms
    largest: list[Tensor | None]
    numbers: list[int]


class Partial:
    """Accumulator of one worker's replies.

    Args:
        fraction: f, number of fraction bits of the first level.
        bound: largest |w x| of one client's coordinate.
        whole: the same for whole numbers with whole weights.
        limits: largest |x| of whole numbers, by field; see `ClientFunction`.
    """

    def __init__(self, fraction: int, bound: float, whole: int = 2**40, limits: Mapping[str, float] | None = None) -> None:
        self.fraction, self.bound, self.whole, self.limits = fraction, bound, whole, limits or {}
        self.structure: Any = None
        self.same = ""
        self.tensors: list[TensorSum] = []
        self.denominators: list[TensorSum] = []
        self.numbers: list[int] = []
        self.clients: list[int] = []

    def add(self, client: int, reply: Tree | _Measured) -> None:
        """Add one reply. The sum is unchanged if the reply is refused.

        Args:
            client: id of the sender.
            reply: tree of tensors and numbers, usually an `Update`; or one of those that `_measured` returned.

        Raises:
            NonFiniteError: the reply contains NaN or infinity.
            SumOverflowError: a coordinate exceeds its bound.
            AggregationError: the reply's structure differs from that of the earlier replies.
        """
        who, (terms, ends) = f"client {client}", reply if isinstance(reply, _Measured) else _measured([reply])[0]
        whole = [is_whole(tensor, weight) for tensor, weight in zip(terms.tensors, terms.weights, strict=True)]
        left = iter(ends)
        tops = [
            self._check_whole(who, name, next(left), weight) if counts else self._check(who, name, tensor, weight, next(left))
            for name, tensor, weight, counts in zip(terms.names, terms.tensors, terms.weights, whole, strict=True)
        ]
        weights = [self._check(who, "weight", tensor, 1.0, next(left)) for tensor in terms.denominators]
        numbers = [units(who, value) for value in terms.scalars]
        self._fit(who, terms)
        for total, tensor, weight, top, counts in zip(self.tensors, terms.tensors, terms.weights, tops, whole, strict=True):
            if counts:
                total.add_whole(tensor, int(weight))
            else:
                total.add(tensor, weight, top, self.fraction)
        for total, tensor, top in zip(self.denominators, terms.denominators, weights, strict=True):
            total.add(tensor, 1.0, top, self.fraction)
        self._count([client], numbers)

    def add_together(self, clients: Sequence[int], summed: _Presummed) -> None:
        """Add the sum of several clients' replies. Raises as `add` does, without the name of the client at fault.

        The bound is that of a single client. Where the clients' values are not known, it holds for their sum: the caller adds
        the replies one by one if the sum exceeds it.
        """
        who, terms = f"clients {clients[0]} to {clients[-1]}", summed.terms
        tops = []
        ends = iter(
            _ends([value for pair in zip(terms.tensors, summed.largest, strict=True) for value in pair if value is not None])
        )
        for name, tensor, largest in zip(terms.names, terms.tensors, summed.largest, strict=True):
            top = self._check(who, name, tensor, 1.0, next(ends), math.inf if largest is not None else self.bound)
            if largest is not None:
                self._bounded(who, name, next(ends)[1])
            tops.append(top)
        self._fit(who, terms)
        for total, tensor, top in zip(self.tensors, terms.tensors, tops, strict=True):
            total.add(tensor, 1.0, top, self.fraction)
        self._count(clients, summed.numbers)

    def _fit(self, who: str, terms: Terms) -> None:
        """Prepare for the first reply; raise `AggregationError` if a later one has another structure."""
        if self.structure is None:
            self.structure, self.same = terms.structure, terms.same
            self.tensors, self.denominators = [TensorSum(t) for t in terms.tensors], [TensorSum(t) for t in terms.denominators]
        elif terms.structure != self.structure and terms.same != self.same:
            raise AggregationError(f"{who} returned a reply of a different structure than client {self.clients[0]}")

    def _count(self, clients: Sequence[int], numbers: list[int]) -> None:
        self.numbers = [a + b for a, b in zip(self.numbers, numbers, strict=True)] if self.clients else numbers
        self.clients += clients

    def _check(
        self, who: str, name: str, tensor: Tensor, weight: float | Tensor, ends: tuple[float, float], bound: float | None = None
    ) -> float:
        """Return the largest |w x|, after a check against the bound; `ends` are those of w x, or of x with a number as weight."""
        if not tensor.numel():
            return 0.0
        top = max(-ends[0], ends[1])
        if not isinstance(weight, Tensor):
            top *= abs(weight)
        elif not 1e-20 < top < 1e20:  # float32 may have rounded it to 0, or to infinity
            top = max(-(wide := _ends([tensor.double() * weight])[0])[0], wide[1])
        self._bounded(who, name, top, bound)
        return top

    def _bounded(self, who: str, name: str, top: float, bound: float | None = None) -> None:
        if not math.isfinite(top):
            raise NonFiniteError(f"{who} returned NaN or infinity in {name!r}")
        if top > (bound := self.bound if bound is None else bound):
            raise SumOverflowError(
                f"{who}: weight x value of {name!r} reaches {top:.3g}, above the bound {bound:.3g} of a client's "
                f"coordinate; training may have diverged, otherwise raise {setting('sum_bound')}"
            )

    def _check_whole(self, who: str, name: str, ends: tuple[float, float], weight: Any) -> float:
        top = int(max(-ends[0], ends[1]))
        limit = self.limits.get(name, math.inf)
        if top > limit or top * abs(int(weight)) > self.whole:
            bound = f"{limit:.6g} that its method declares" if top > limit else f"{self.whole:.3g} of an exact sum of whole numbers"
            raise SumOverflowError(f"{who}: {name!r} reaches {top} (weight {weight:g}), above the bound {bound}")
        return float(top)

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
            mine.merge(theirs)
        self._count(other.clients, other.numbers)

    def values(self, host: bool = True) -> tuple[list[Tensor], list[float], list[Tensor]]:
        """Return (tensor sums, number sums, denominator sums) in float64, on the host or where they were formed."""
        found = [total.value(self.fraction) for total in self.tensors + self.denominators]
        found = download(found) if host else found
        count = len(self.tensors)
        return found[:count], [from_units(number) for number in self.numbers], found[count:]


class _Measured(NamedTuple):
    """A reply as terms, with the smallest and largest value of each: of w x, or of x with a number as weight."""

    terms: Terms
    ends: list[tuple[float, float]]


def _measured(replies: Sequence[Tree]) -> list[_Measured]:
    """Return replies as terms with their ranges; the host waits once for those on a GPU."""
    found = [Terms.of(reply) for reply in replies]
    values = [
        [*(x * w if isinstance(w, Tensor) else x for x, w in zip(t.tensors, t.weights, strict=True)), *t.denominators]
        for t in found
    ]
    ends = iter(_ends([value for each in values for value in each]))
    return [_Measured(terms, [next(ends) for _ in each]) for terms, each in zip(found, values, strict=True)]


def _ends(tensors: Sequence[Tensor]) -> list[tuple[float, float]]:
    """Return the smallest and the largest value of each tensor: NaN if it holds one, 0 if it is empty."""
    pairs = [torch.aminmax(t) if t.numel() else None for t in tensors]  # copies nothing
    apart = [torch.stack(pair).double() for pair in pairs if pair is not None and pair[0].device.type != "cpu"]
    there = iter(torch.stack(apart).tolist() if apart else ())
    return [
        (0.0, 0.0) if pair is None else (float(pair[0]), float(pair[1])) if pair[0].device.type == "cpu" else tuple(next(there))
        for pair in pairs
    ]


class FixedPoint:
    """Channel that sums replies exactly at each worker.

    The first level has f = floor(62 - log2(max(clients, 2) bound)) fraction bits, so that no sum of `clients` replies
    overflows. A client's whole numbers may reach 2^53 / clients, so that their sum is exact in float64.

    Args:
        clients: number of clients that the sum is sized for.
        bound: largest |w x| of one client's coordinate.
        limits: largest |x| of whole numbers, by field; see `ClientFunction`.

    Example:
        >>> sink = FixedPoint(clients=2).open()
        >>> for client, value in enumerate([0.5, 1.25]):
        ...     sink.add(client, {"x": torch.tensor([value])}, lambda: 0)
        >>> (total,), _, _ = sink.partial().values()
        >>> total.item()
        1.75
    """

    def __init__(self, clients: int, bound: float = SUM_BOUND, limits: Mapping[str, float] | None = None) -> None:
        self.bound, self.limits = bound, dict(limits or {})
        self.whole = 2**53 // max(clients, 2)
        self.fraction = _fraction(max(clients, 2) * bound)

    def open(self) -> _Sink:
        """Return an empty accumulator."""
        return _Sink(Partial(self.fraction, self.bound, self.whole, self.limits))


@functools.lru_cache(256)
def _fraction(most: float) -> int:
    """Return the fraction bits of the first level for sums of up to `most`."""
    return int(62 - torch.tensor(float(most), dtype=torch.float64).log2().ceil().item())


class _Sink(Sink):
    def __init__(self, partial: Partial) -> None:
        self._partial = partial

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
                    self._partial.add_together([client for client, _, _ in entries], total)
                    return [None] * len(entries)
                known = _measured([reply for _, reply, _ in entries])
                return super().add_all([(client, one, seed) for (client, _, seed), one in zip(entries, known, strict=True)])
        return super().add_all(entries)

    stands_for_all = True

    def add_uniform(self, clients: Sequence[int], reply: Tree) -> bool:
        """Add one reply that represents one of each client; return False if its form does not allow that."""
        total = _of_all(reply, len(clients))
        if total is not None:
            self._partial.add_together(clients, total)
        return total is not None

    def partial(self) -> Partial:
        return self._partial


def _of_all(reply: Tree, count: int) -> _Presummed | None:
    """Return the sum over `count` clients of a reply that represents each of them; None if not possible."""
    if type(reply) is not Update or type(reply.weight) not in (int, float):
        return None
    weight, sums, numbers, shown = float(reply.weight), [], [], {}
    for name, value in reply.fields.items():
        if isinstance(value, DeferredParams):
            if (total := value.total(weight, count)) is None:
                return None
            sums.append(total)
        elif isinstance(value, DeferredNumber):
            numbers.append(units("a client", *(weight * one for one in value.each())))
        elif isinstance(value, int | float):
            numbers.append(count * units("a client", weight * value))
        else:
            return None
        shown[name] = 0.0 if isinstance(value, DeferredNumber) else value
    numbers.append(count * units("a client", weight))
    return _presummed(Update(weight=reply.weight, **shown), sums, numbers)


def together(replies: Sequence[Tree]) -> _Presummed | None:
    """Return the weighted sum of replies whose tensors are rows of one matrix; None for other replies."""
    columns = Columns.of(replies)
    if columns is None:
        return None
    sums, numbers = [], []
    for values in columns.fields:
        if isinstance(values[0], DeferredParams):
            total = values[0].weighted(values, columns.weights)
            if total is None:
                return None
            sums.append(total)
        else:
            numbers.append(units("a client", *map(float, map(operator.mul, values, columns.weights))))
    numbers.append(units("a client", *map(float, columns.weights)))
    return _presummed(replies[0], sums, numbers)


def _presummed(reply: Tree, sums: Sequence[tuple[Tensor, Tensor | None]], numbers: list[int]) -> _Presummed:
    terms, tensors = Terms.of(reply, lazy=True), [tensor for tensor, _ in sums]
    one = Terms(terms.structure, terms.names, tensors, [1.0] * len(sums), [], [])
    return _Presummed(one, [largest for _, largest in sums], numbers)


def merge(partials: list[Partial]) -> Partial:
    """Return the total of partial sums, accumulated into the first one.

    Args:
        partials: partial sums of one call, at least one; their order does not affect the result.

    Raises:
        AggregationError: the sums have different structures.
    """
    total = partials[0]
    for other in partials[1:]:
        total.merge(other)
    return total
