"""Sizes on the wire: the same whichever way a tree is walked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.core.errors import TreeError
from paceline.core.tree import flatten, node
from paceline.core.wire import _count, wire_size

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.integers(0, 4).map(torch.zeros),
    st.integers(1, 4).map(lambda n: torch.zeros(n, dtype=torch.uint8)),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


@node
class Sized:
    one: object
    two: object


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TREES)
def test_the_size_is_that_of_the_flattened_tree(tree):
    for one in (tree, Sized(tree, 3), {"nodes": [Sized(1, tree)]}):
        structure, leaves = flatten(one)
        assert wire_size(one) == sum(leaf.numel() * leaf.element_size() for leaf in leaves) + _count(structure)


@pytest.mark.parametrize("tree", [{"a": object()}, {True: 1}, {1.5: 2}, [{(1,): 2}]])
def test_what_is_no_tree_has_no_size(tree):
    with pytest.raises(TreeError):
        wire_size(tree)
