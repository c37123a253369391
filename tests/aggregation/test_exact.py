"""Sums against rational arithmetic: over all magnitudes, cohorts, weights and orders."""

import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.aggregation.exact import TensorSum, _levels, from_units, units
from paceline.core.errors import NonFiniteError, SumOverflowError


def total_of(terms, fraction):
    """Return the sum of (tensor, weight) terms."""
    total = TensorSum(terms[0][0])
    for tensor, weight in terms:
        total.add(tensor, weight, float((tensor.double() * weight).abs().max()), fraction)
    return total


def rational(terms):
    """Return the exact sum of (tensor, weight) terms, each product rounded to float64."""
    return [sum(Fraction(x * w) for x, w in zip(column, (w for _, w in terms), strict=True)) for column in columns(terms)]


def columns(terms):
    return list(zip(*(t.double().tolist() for t, _ in terms), strict=True))


@pytest.mark.parametrize("fraction", [41, 38, 34, 33, 25, 10, -5])
@pytest.mark.parametrize("scale", [1e4, 1.0, 1e-3, 1e-8, 1e-12, 1e-30, 1e-44])
def test_every_term_is_resolved_to_a_float32_of_its_largest_value_and_to_2e_11(fraction, scale):
    generator = torch.Generator().manual_seed(fraction)
    terms = [(scale * torch.randn(50, generator=generator), 1.0) for _ in range(8)]
    step = max(float(t.abs().max()) for t, _ in terms)
    got = total_of(terms, fraction).value(fraction)
    worst = max(abs(Fraction(a) - b) for a, b in zip(got.tolist(), rational(terms), strict=True))
    assert worst <= 8 * min(step * 2.0**-25, 2.0**-35)


def test_small_coordinates_beside_large_ones_are_kept_in_a_large_cohort():
    """One field, one client: 3 and 1e-8; the step of 1e5 clients alone would be 3e-8."""
    terms = [(torch.tensor([3.0, 1e-8]), 1.0)] * 50
    assert total_of(terms, 25).value(25).tolist() == pytest.approx([150.0, 5e-7], rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(
            st.floats(-(2.0**17), 2.0**17, width=32)
            | st.floats(-(2.0**-20), 2.0**-20, width=32)
            | st.floats(-(2.0**-100), 2.0**-100, width=32),
            min_size=3,
            max_size=3,
        ),
        min_size=2,
        max_size=6,
    ),
    st.randoms(),
)
def test_any_order_and_any_partition_give_the_same_bits(rows, random):
    terms = [(torch.tensor(row), 1.5) for row in rows]
    whole = total_of(terms, 30).value(30)
    random.shuffle(terms)
    cut = random.randrange(1, len(terms))
    left, right = total_of(terms[:cut], 30), total_of(terms[cut:], 30)
    right.merge(left)
    assert torch.equal(right.value(30), whole)


def test_levels_hold_as_many_terms_as_they_are_sized_for():
    """The largest terms, 2^37 on the first level and half a step of it on the next one, 2^25 times."""
    top = 2.0**12  # with f = 25 and 2^25 terms: 2^62
    total = TensorSum(torch.zeros(1))
    total.add(torch.tensor([top + 0.5 * 2.0**-25], dtype=torch.float64), 1.0, top, 25)
    for number, level in total.levels.items():
        assert abs(int(level)) * 2**25 < 2**63, number
    assert set(total.levels) == {0, 1}


def test_levels_are_added_from_the_finest_on():
    """1 + 2^-53 is a tie in float64, which 2^-80 decides."""
    terms = [(torch.tensor([value], dtype=torch.float64), 1.0) for value in (1.0, 2.0**-53, 2.0**-80)]
    assert total_of(terms, 20).value(20).item() == 1 + 2.0**-52


def test_a_level_on_which_a_term_is_zero_takes_no_memory():
    total = TensorSum(torch.zeros(1))
    total.add(torch.tensor([1e-20]), 1.0, 1e-20, 40)
    assert min(total.levels) == 1


def test_zeros_take_no_memory_and_values_below_float32_count_as_zero():
    total = TensorSum(torch.zeros(3))
    total.add(torch.zeros(3), 2.0, 0.0, 40)
    total.add(torch.tensor([0.0, 1e-70, 0.0], dtype=torch.float64), 1.0, 1e-70, 40)
    assert total.levels == {}
    assert total.value(40).tolist() == [0.0] * 3


def test_the_number_of_levels_is_limited():
    total = TensorSum(torch.zeros(1))
    for exponent in range(-300, 20):
        total.add(torch.tensor([2.0**exponent], dtype=torch.float64), 1.0, 2.0**exponent, 40)
    assert len(total.levels) <= 7
    assert total.value(40).item() == pytest.approx(2.0**20)


def test_whole_numbers_are_added_as_they_are():
    total = TensorSum(torch.zeros(2))
    total.add_whole(torch.tensor([2**40 + 1, -3], dtype=torch.int64), 5)
    total.add_whole(torch.tensor([200, 7], dtype=torch.uint8), 1)
    total.add(torch.tensor([0.25, 0.0]), 1.0, 0.25, 20)
    assert total.value(20).tolist() == [5 * (2**40 + 1) + 200.25, -8.0]


@given(st.lists(st.floats(-(2.0**99), 2.0**99), max_size=20))
def test_numbers_are_summed_without_rounding(values):
    assert from_units(sum(units("x", v) for v in values)) == float(sum(map(Fraction, values)))


@pytest.mark.parametrize("value", [5e-324, -5e-324, 1.0, -0.1, 2.0**99, 0.0])
def test_a_number_survives(value):
    assert from_units(units("x", value)) == value


def test_numbers_that_cannot_be_summed():
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(NonFiniteError, match="client 3"):
            units("client 3", value)
    for value in (2.0**100, -1e300):
        with pytest.raises(SumOverflowError, match="client 3"):
            units("client 3", value)


def test_what_is_added_stays_as_it_is():
    """Also float64, which needs no conversion."""
    for kind in (torch.float32, torch.float64):
        tensor, weight = torch.tensor([1.0, 2.0], dtype=kind), torch.tensor([3.0, 5.0], dtype=kind)
        total = TensorSum(tensor)
        total.add(tensor, weight, 10.0, 20)
        total.add(tensor, 0.5, 1.0, 20)
        assert (tensor.tolist(), weight.tolist()) == ([1.0, 2.0], [3.0, 5.0])
        assert total.value(20).tolist() == [3.5, 11.0]


@pytest.mark.parametrize("fraction", range(-40, 61, 3))
def test_levels_are_those_of_the_documentation(fraction):
    """36 bits apart: from the first on which the term is not 0, to one with steps of at most 2^-34 and of 2^-25 of the term."""
    for size in range(-199, 40):  # 2^(size - 1) <= the term < 2^size
        first = next(k for k in range(99) if size + fraction + 36 * k >= 0)
        last = next(k for k in range(first, 99) if fraction + 36 * k >= max(34, 25 - size))
        for top in (0.5 * 2.0**size, 0.75 * 2.0**size):
            assert _levels(top, fraction) == (first, last)
    assert _levels(0.75 * 2.0**-200, fraction) == _levels(0.0, fraction) == (0, -1)


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 200_000])
def test_blocks_of_a_long_tensor_are_all_added(size):
    """Weights of one number and of one for each coordinate; each block by itself."""
    x = torch.arange(size, dtype=torch.float64) - size / 2
    total = TensorSum(x)
    total.add(x, 0.5, float(x.abs().max()), 10)
    total.add(x, torch.full_like(x, 2.0), 2 * float(x.abs().max()), 10)
    assert torch.equal(total.value(10), 2.5 * x)


@given(st.lists(st.floats(-(2.0**99), 2.0**99), min_size=49, max_size=1200))
@settings(max_examples=40, deadline=None)
def test_many_numbers_are_added_as_exactly_as_few(values):
    """More than 48 are added as arrays; equal exponents in parts of 512, so that no sum of mantissas overflows."""
    values = [*values, *[1.0 - 2.0**-53] * 1025, 5e-324, -(2.0**-1022), 0.0]
    exact = sum(map(Fraction, values)) * 2**1074
    assert units("a client", *values) == sum(units("a client", value) for value in values) == exact


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**100, -(2.0**100)])
def test_one_bad_number_among_many_is_named(bad):
    kind = SumOverflowError if abs(bad) == 2.0**100 else NonFiniteError
    with pytest.raises(kind, match=re.escape(f"a client returned the number {bad:.3g}")):
        units("a client", *[1.0] * 30, bad, *[-2.0] * 30)
