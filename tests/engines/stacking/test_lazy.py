"""Lazy parameters do the arithmetic of formed ones."""

import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.core.errors import LayoutError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.engines.stacking.lazy import DeferredColumn, Lazy, NotUniform

LAYOUT = Layout.build([("a", (2, 2), "param"), ("b", (3,), "param")])


class Matrix:
    def __init__(self, matrix):
        self.matrix, self.count, self.asked = matrix, len(matrix), 0

    def row(self, index):
        self.asked += 1
        return self.matrix[index]

    def weighted(self, coefficients):
        return torch.tensor(coefficients) @ self.matrix


def vector(seed):
    return torch.randn(7, generator=torch.Generator().manual_seed(seed))


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "radd", "sub", "rsub", "mul", "div", "neg", "twice"]), st.integers(1, 4)),
    max_size=8,
)


@settings(deadline=None)
@given(STEPS)
def test_chains_of_arithmetic_agree_with_formed_vectors(steps):
    rows = Matrix(torch.stack([vector(9), vector(8)]))
    lazy, plain = Lazy(rows, 1, LAYOUT), Params(vector(8), LAYOUT)
    others = {k: Params(vector(k), LAYOUT) for k in range(1, 5)}
    for name, k in steps:
        other = others[k]
        match name:
            case "add":
                lazy, plain = lazy + other, plain + other
            case "radd":
                lazy, plain = other + lazy, other + plain
            case "sub":
                lazy, plain = lazy - other, plain - other
            case "rsub":
                lazy, plain = other - lazy, other - plain
            case "mul":
                lazy, plain = 0.5 * k * lazy, 0.5 * k * plain
            case "div":
                lazy, plain = lazy / k, plain / k
            case "neg":
                lazy, plain = -lazy, -plain
            case "twice":
                lazy, plain = lazy + lazy, plain + plain
    assert rows.asked == 0
    torch.testing.assert_close(lazy.vector, plain.vector)


def test_a_start_that_is_added_and_taken_off_leaves_the_change_alone():
    start = Params(torch.full((7,), 1e8), LAYOUT)
    rows = Matrix(torch.full((1, 7), 1e-3))
    trained = Lazy(rows, 0, LAYOUT, 1.0, ((1.0, start.vector),))
    assert (trained - start).vector.equal(rows.matrix[0])


@pytest.mark.parametrize(
    "use",
    [lambda p: p.norm(), lambda p: p["a"], lambda p: p * vector(3), lambda p: p**2, lambda p: p.clone()],
)
def test_everything_else_forms_the_vector(use):
    rows = Matrix(torch.stack([vector(1)]))
    use(Lazy(rows, 0, LAYOUT))
    assert rows.asked == 1


def test_other_layouts_are_refused():
    lazy = Lazy(Matrix(torch.zeros(1, 7)), 0, LAYOUT)
    with pytest.raises(LayoutError):
        lazy + Params(torch.zeros(7), Layout.build([("c", (7,), "param")]))


@pytest.mark.parametrize(
    "use",
    [
        float,
        int,
        round,
        bool,
        str,
        abs,
        lambda c: c + 1,
        lambda c: 1 - c,
        lambda c: c > 0,
        lambda c: operator.mul(2, c),
    ],
)
def test_a_column_is_no_single_number(use):
    with pytest.raises(NotUniform):
        use(DeferredColumn([1.0, 2.0]))


def test_all_rows_at_once_have_no_vector():
    with pytest.raises(NotUniform):
        _ = Lazy(Matrix(torch.zeros(2, 7)), None, LAYOUT).vector
