"""Real numbers as whole digits: exact sums in any order."""

from fractions import Fraction

import torch

from paceline.core.digits import WORDS, digits, exact, real


def test_a_number_is_the_sum_of_its_digits():
    values = torch.randn(2000, dtype=torch.float64) * torch.logspace(-15, 30, 2000, dtype=torch.float64)
    parts = digits(values)
    assert parts.shape == (2000, WORDS + 1)
    assert int(parts.abs().max()) < 2**30  # so that a sum of 2^23 clients stays below 2^53
    assert torch.equal(real(parts), values)


def test_sums_are_exact_in_any_order_where_floats_are_not():
    values = torch.tensor([1e16, 1.0, -1e16, 2.0**-20, 3e15 + 0.5], dtype=torch.float64)
    want = sum(map(Fraction, values.tolist()))
    assert exact(digits(values).sum(0)) == exact(digits(values.flip(0)).sum(0)) == [want]
    assert sum(values.tolist()) != float(want)


def test_what_is_below_the_last_digit_is_dropped():
    assert real(digits(torch.tensor([2.0**-120, 2.0**-121, 1 + 2.0**-52], dtype=torch.float64))).tolist() == [
        2.0**-120,
        0,
        1 + 2.0**-52,
    ]


def test_a_value_that_is_not_finite_makes_the_sum_nan():
    for bad in (float("nan"), float("inf"), 2.0**119):
        parts = digits(torch.tensor([[1.0, bad], [2.0, 3.0]], dtype=torch.float64)).sum(0)
        assert real(parts).isnan().tolist() == [False, True]
