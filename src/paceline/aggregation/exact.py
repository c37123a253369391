"""Sums of tensors and numbers that lose nothing of what is added, whatever the order.

A sum of tensors has levels: level k is an int64 total with f_k = f + 36 k fraction bits. A term is rounded to the first
level at which the step is at most 2^-34 and at most 2^-24 of the term's largest value; what lower levels leave of it is
added to the next one. So the step follows the term, and neither a large cohort nor small values or weights cost digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.core.errors import NonFiniteError, SumOverflowError
from paceline.core.placement import download

__all__ = ["TensorSum", "from_units", "is_whole", "units"]

_UNIT = 1074
"""Fraction bits of a number's sum: every float64 is a multiple of 2^-1074."""

_MANTISSA = 53
"""Bits of a float64's mantissa."""

_MANY, _ADDED = 48, 512
"""Numbers above which they are added as arrays; mantissas whose sum fits in 63 bits."""

_BITS, _STEP, _RELATIVE = 36, 34, 24
"""Bits between two levels; fraction bits of the coarsest step; and those of a step relative to a term's largest value."""

_LEAST = -200
"""Exponent of values that count as 0; those of float32 are larger. It limits the number of levels."""

_WHOLE = -1
"""Key of the sum of whole numbers among the levels."""

_BLOCK = 1 << 16


class TensorSum:
    """Sum of one tensor, by level.

    Args:
        like: a tensor of the same shape and device.
    """

    def __init__(self, like: Tensor) -> None:
        self.size, self.device = like.numel(), like.device
        self.levels: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process: on the host."""
        levels = dict(zip(self.levels, download(list(self.levels.values())), strict=True))
        return {"size": self.size, "device": torch.device("cpu"), "levels": levels}

    def level(self, number: int) -> Tensor:
        """Return the total of one level."""
        if number not in self.levels:
            self.levels[number] = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        return self.levels[number]

    def add(self, tensor: Tensor, weight: float | Tensor, top: float, fraction: int) -> None:
        """Add w x, whose largest absolute value is `top`."""
        first, last = _levels(top, fraction)
        scale = 2.0 ** (fraction + _BITS * first)
        step = _BLOCK if tensor.device.type == "cpu" else max(tensor.numel(), 1)
        for start in range(0, tensor.numel(), step):
            part = tensor[start : start + step].to(torch.float64, copy=True)
            part *= weight[start : start + step].double() * scale if isinstance(weight, Tensor) else weight * scale
            for number in range(first, last):
                whole = part.round()
                self._put(number, start, whole.to(torch.int64))
                part = part.sub_(whole).mul_(2.0**_BITS)  # exact
            if first <= last:
                self._put(last, start, part.round_().to(torch.int64))

    def _put(self, number: int, start: int, whole: Tensor) -> None:
        """Add new whole numbers to a part of a level."""
        if number not in self.levels and len(whole) == self.size:
            self.levels[number] = whole
        else:
            self.level(number)[start : start + len(whole)] += whole

    def add_whole(self, tensor: Tensor, weight: int) -> None:
        """Add whole numbers."""
        self.level(_WHOLE).add_(tensor.to(torch.int64), alpha=weight)

    def merge(self, other: TensorSum) -> None:
        """Add another sum in place."""
        for number, total in other.levels.items():
            self.level(number).add_(total.to(self.device))

    def value(self, fraction: int) -> Tensor:
        """Return the sum in float64; levels are added from the finest to the coarsest."""
        out = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        for number in sorted(self.levels, reverse=True):
            bits = 0 if number == _WHOLE else fraction + _BITS * number
            out += self.levels[number].double().mul_(2.0**-bits)
        return out


def _levels(top: float, fraction: int) -> tuple[int, int]:
    """Return the first and the last level of a term with this largest absolute value; (0, -1) for zeros."""
    size = math.frexp(top)[1]  # 2^(size - 1) <= top < 2^size
    if top == 0.0 or size <= _LEAST:
        return 0, -1
    first = max(0, -((size + fraction) // _BITS))  # below it, everything is rounded to 0
    return first, max(first, -((fraction - max(_STEP, _RELATIVE + 1 - size)) // _BITS))


def units(who: str, *values: float) -> int:
    """Return the sum of numbers in units of 2^-1074.

    Raises:
        NonFiniteError: one is NaN or infinite.
        SumOverflowError: the absolute value of one is 2^100 or more.
    """
    if len(values) > _MANY:
        return _units(who, values)
    numerators: dict[int, int] = {}  # by denominator, so that few sums have a thousand bits
    for value in values:
        if not abs(value) < 2.0**100:
            raise _refused(who, value)
        numerator, denominator = value.as_integer_ratio()
        numerators[denominator] = numerators.get(denominator, 0) + numerator
    return sum(total << (_UNIT + 1 - denominator.bit_length()) for denominator, total in numerators.items())


def _units(who: str, values: Sequence[float]) -> int:
    """Return what `units` does: the whole numbers of 53 bits that the values are multiples of, summed by exponent."""
    given = np.asarray(values, dtype=np.float64)
    if not np.abs(given).max() < 2.0**100:
        raise _refused(who, next(value for value in values if not abs(value) < 2.0**100))
    parts, exponents = np.frexp(given)
    numerators = (parts * 2.0**_MANTISSA).astype(np.int64)  # exact
    total = 0
    for exponent in set(exponents.tolist()):
        same = numerators[exponents == exponent]
        whole = sum(int(same[k : k + _ADDED].sum()) for k in range(0, len(same), _ADDED))
        total += (whole << (_UNIT + exponent)) >> _MANTISSA  # exact: every value is a multiple of a unit
    return total


def _refused(who: str, value: float) -> Exception:
    if math.isfinite(value):
        return SumOverflowError(f"{who} returned the number {value:.3g}; numbers in a sum are below 2^100")
    return NonFiniteError(f"{who} returned the number {value}")


def is_whole(tensor: Tensor, weight: float | Tensor) -> bool:
    """Return whether a term is a tensor of whole numbers with a whole weight."""
    return not (isinstance(weight, Tensor) or tensor.is_floating_point() or tensor.dtype == torch.bool) and weight.is_integer()


def from_units(number: int) -> float:
    """Return the float64 nearest to a number in units of 2^-1074."""
    return number / (1 << _UNIT)
