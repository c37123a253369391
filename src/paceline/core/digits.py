"""Real numbers as whole digits, so that sums over clients are exact in any order, masked or not.

A number is the sum of ``WORDS`` digits of 30 bits, from 2^119 down to 2^-120, each an int64. Whole tensors are added
exactly by every aggregation: no bound has to be declared, and neither large nor small terms lose bits. The last entry
counts values that are not finite or too large, so that a sum over them is NaN.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["WORDS", "digits", "exact", "real"]

WORDS = 8
"""Number of digits."""

_BITS, _LOWEST = 30, -120


def digits(values: Tensor) -> Tensor:
    """Return the digits of real numbers.

    Args:
        values: any shape; bits below 2^-120 are dropped.

    Returns:
        int64, shape [*values.shape, WORDS + 1]; digits of sums are sums of digits.

    Example:
        >>> parts = digits(torch.tensor([0.5, 1e9, -2e-9], dtype=torch.float64))
        >>> float(real(parts.sum(0))) == 0.5 + 1e9 - 2e-9
        True
    """
    left = values.detach().double()
    bad = ~left.isfinite() | (left.abs() >= 2.0 ** (_LOWEST + _BITS * WORDS - 1))
    left = left.masked_fill(bad, 0.0)
    words = []
    for number in reversed(range(WORDS)):
        unit = 2.0 ** (_LOWEST + _BITS * number)
        whole = (left / unit).trunc()
        left = left - whole * unit  # exact: removes the leading bits
        words.append(whole.to(torch.int64))
    return torch.stack([*words, bad.to(torch.int64)], -1)


def exact(sums: Tensor) -> list[Fraction]:
    """Return the summed numbers as fractions, flat.

    Args:
        sums: summed `digits`, shape [..., WORDS + 1]; values that were not finite count as 0.
    """
    found = []
    for *words, _ in sums.reshape(-1, WORDS + 1).tolist():
        total = 0
        for word in words:
            total = (total << _BITS) + int(word)
        found.append(Fraction(total, 1 << -_LOWEST))
    return found


def real(sums: Tensor) -> Tensor:
    """Return the summed numbers in float64, each rounded once; NaN where a value was not finite.

    Args:
        sums: summed `digits`, shape [..., WORDS + 1].
    """
    values = torch.tensor([float(value) for value in exact(sums)], dtype=torch.float64).reshape(sums.shape[:-1])
    return values.masked_fill(sums[..., -1].cpu() != 0, float("nan"))
