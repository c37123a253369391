"""Parameters that are formed only when somebody looks: what clients that trained together get back.

When K clients train as one computation, most methods only subtract, scale and sum the results. A `Lazy`
remembers that arithmetic, so that a sum over the clients can be formed at once from the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from paceline.core.errors import LayoutError
from paceline.core.layout import Layout
from paceline.core.params import DeferredNumber, DeferredParams, Params

__all__ = ["DeferredColumn", "Lazy", "NotUniform", "Rows"]


class NotUniform(Exception):
    """A value that stands for many clients was asked for one client's. Never leaves the engine."""


class DeferredColumn(DeferredNumber):
    """One number for each of many clients, where a function is run once for all: it can only be returned.

    >>> DeferredColumn([0.5, 0.25]).values
    [0.5, 0.25]
    """

    values: list[float]

    def __new__(cls, values: Sequence[float]) -> DeferredColumn:
        """Make a column; the number it is made of is none."""
        self = super().__new__(cls, "nan")
        self.values = list(values)
        return self

    def each(self) -> Sequence[float]:
        """Return the clients' numbers."""
        return self.values

    def _differs(self, *_: Any) -> NoReturn:
        raise NotUniform("a number that differs between clients")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _differs
    __pow__ = __rpow__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __neg__ = __pos__ = __abs__ = _differs
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __hash__ = __bool__ = _differs
    __float__ = __int__ = __round__ = __trunc__ = __floor__ = __ceil__ = __str__ = __repr__ = __format__ = _differs


class Rows(Protocol):
    """K vectors of one length, formed when they are asked for."""

    count: int
    """K."""

    def row(self, index: int) -> Tensor:
        """Return one of them, shape [d]."""

    def weighted(self, coefficients: Sequence[float]) -> Tensor:
        """Return the sum of coefficient times vector over all K, shape [d]."""

    def largest(self, coefficients: Sequence[float]) -> Tensor | None:
        """Return the largest |coefficient x coordinate| of the vectors, shape [], NaN if one holds NaN; None if they are not formed."""


class Lazy(DeferredParams):
    """``coefficient * rows[index] + sum of (factor * vector)``: behaves as `Params`, and is formed on demand.

    Sums, differences and multiples stay lazy; everything else forms the vector.

    Args:
        rows: where the row comes from.
        index: which row; None stands for each of them, where a function is run once for all clients.
        layout: names and shapes of the parts.
        coefficient: what the row is multiplied with.
        rest: further (factor, vector) terms; the vectors are not changed by anybody.
    """

    __slots__ = ("_formed", "coefficient", "index", "rest", "rows")

    def __init__(
        self,
        rows: Rows,
        index: int | None,
        layout: Layout,
        coefficient: float = 1.0,
        rest: tuple[tuple[float, Tensor], ...] = (),
    ) -> None:
        self.rows, self.index, self.layout = rows, index, layout
        self.coefficient, self.rest = coefficient, rest
        self._formed: Tensor | None = None

    @property
    def vector(self) -> Tensor:  # type: ignore[override]
        """The vector, shape [d]."""
        if self._formed is None:
            if self.index is None:
                raise NotUniform("parameters that differ between clients")
            out = self.rows.row(self.index) * self.coefficient
            for factor, vector in self.rest:
                out.add_(vector, alpha=factor)
            self._formed = out
        return self._formed

    def __reduce__(self) -> tuple[Any, ...]:
        return Params, (self.vector, self.layout)  # between processes it goes alone, without the other rows

    @property
    def formed(self) -> bool:
        """Whether the vector exists already; it may have been changed since."""
        return self._formed is not None

    def total(self, weight: float, count: int) -> tuple[Tensor, Tensor | None] | None:
        """See `DeferredParams`; None if this is one client's row."""
        if self.index is not None:
            return None
        return _summed(
            self.rows, [weight * self.coefficient] * count, [(f * weight * count, abs(f * weight), v) for f, v in self.rest]
        )

    @staticmethod
    def weighted(values: Sequence[Lazy], weights: Sequence[float]) -> tuple[Tensor, Tensor | None] | None:
        """See `DeferredParams`; None if the rows belong to several matrices."""
        whole = values[0].rows
        coefficients, rest = [0.0] * whole.count, dict[int, tuple[float, float, Tensor]]()
        for row, weight in zip(values, weights, strict=True):
            if row.rows is not whole or row.index is None:
                return None
            coefficients[row.index] += weight * row.coefficient
            for factor, vector in row.rest:
                total, top, _ = rest.get(id(vector), (0.0, 0.0, vector))
                rest[id(vector)] = (total + weight * factor, max(top, abs(weight * factor)), vector)
        return None if len(rest) > 4 else _summed(whole, coefficients, list(rest.values()))

    def _same(self, other: Params) -> None:
        if other.layout is not self.layout and other.layout.digest != self.layout.digest:
            raise LayoutError("the two parameter vectors have different layouts; use vectors of the same model")

    def _scaled(self, factor: float) -> Lazy:
        rest = tuple((f * factor, v) for f, v in self.rest)
        return Lazy(self.rows, self.index, self.layout, self.coefficient * factor, rest)

    def _plus(self, other: Params, sign: float) -> Params:
        """Return self + sign * other."""
        self._same(other)
        if isinstance(other, Lazy) and not other.formed:
            if other.rows is not self.rows or other.index != self.index:
                return Params(self.vector.add(other.vector, alpha=sign), self.layout)
            rest = self.rest
            for factor, vector in other.rest:
                rest = _join(rest, sign * factor, vector)
            coefficient = self.coefficient + sign * other.coefficient
            return Lazy(self.rows, self.index, self.layout, coefficient, rest)
        rest = _join(self.rest, sign, other.vector)
        return Lazy(self.rows, self.index, self.layout, self.coefficient, rest)

    def __add__(self, other: Params | Tensor | float) -> Params:
        if isinstance(other, Params) and not self.formed:
            return self._plus(other, 1.0)
        return super().__add__(other)

    def __sub__(self, other: Params | Tensor | float) -> Params:
        if isinstance(other, Params) and not self.formed:
            return self._plus(other, -1.0)
        return super().__sub__(other)

    def __rsub__(self, other: Params | Tensor | float) -> Params:
        if isinstance(other, Params) and not self.formed:
            return self._scaled(-1.0)._plus(other, 1.0)
        if isinstance(other, Params):
            return other._new(other.vector - self.vector)
        return super().__rsub__(other)

    def __mul__(self, other: Params | Tensor | float) -> Params:
        return self._scaled(other) if isinstance(other, int | float) and not self.formed else super().__mul__(other)

    def __truediv__(self, other: Params | Tensor | float) -> Params:
        if isinstance(other, int | float) and not self.formed:
            return self._scaled(1.0 / other)
        return super().__truediv__(other)

    def __neg__(self) -> Params:
        return super().__neg__() if self.formed else self._scaled(-1.0)

    __radd__ = __add__
    __rmul__ = __mul__


def _summed(rows: Rows, coefficients: Sequence[float], rest: Sequence[tuple[float, float, Tensor]]) -> tuple[Tensor, Tensor | None]:
    """Return the weighted sum of rows and further vectors, and a bound on one client's part of it.

    Args:
        rows: the rows.
        coefficients: factor of each row.
        rest: (factor in the sum, largest |factor| of one client, vector).
    """
    total, largest = rows.weighted(coefficients), rows.largest(coefficients)
    for factor, top, vector in rest:
        total.add_(vector, alpha=factor)
        if largest is not None:
            largest = largest + top * _magnitude(vector)
    return total, largest


def _magnitude(vector: Tensor) -> Tensor:
    """Return the largest absolute value, shape [], NaN if there is one."""
    low, high = torch.aminmax(vector)  # copies nothing
    return torch.maximum(-low, high)


def _join(rest: tuple[tuple[float, Tensor], ...], factor: float, vector: Tensor) -> tuple[tuple[float, Tensor], ...]:
    """Add a term; terms of the same vector are joined, so that ``a + b - b`` is exactly ``a``."""
    for place, (known, held) in enumerate(rest):
        if held is vector:
            total = known + factor
            return (*rest[:place], *(((total, vector),) if total else ()), *rest[place + 1 :])
    return (*rest, (factor, vector))
