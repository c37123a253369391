from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paceline.core.errors import TreeError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.core.tree import (
    flatten,
    map_leaves,
    node,
    numeric_leaves,
    register,
    unflatten,
    unflatten_numeric,
)


@node
class Pair:
    left: Any
    right: Any = 2


class Interval:
    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high


register(Interval, lambda i: {"low": i.low, "high": i.high}, lambda f: Interval(f["low"], f["high"]))


def make_params(value: float = 1.0) -> Params:
    layout = Layout.of(nn.Linear(2, 3))
    return Params(torch.full((layout.size,), value), layout)


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4) | st.binary(max_size=4),
    lambda t: (
        st.lists(t, max_size=3)
        | st.lists(t, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), t, max_size=3)
        | st.builds(Pair, t, t)
    ),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(trees)
def test_plain_trees_come_back(tree: Any) -> None:
    structure, leaves = flatten(tree)
    back = unflatten(structure, leaves)
    assert leaves == []
    assert back == tree
    assert repr(back) == repr(tree)


def test_tensors_and_params_are_leaves_in_order() -> None:
    params = make_params()
    tree = {"a": [torch.zeros(2), params], 3: Pair(params * 2, torch.ones(1))}
    structure, leaves = flatten(tree)
    assert [leaf.shape for leaf in leaves] == [(2,), (9,), (9,), (1,)]
    assert leaves[1] is params.vector
    back = unflatten(structure, leaves)
    assert list(back) == ["a", 3]
    assert back["a"][1].layout is back[3].left.layout
    assert back["a"][1].layout == params.layout
    assert torch.equal(back[3].left.vector, torch.full((9,), 2.0))


def test_an_equal_layout_is_described_once() -> None:
    structure, _ = flatten([make_params(), make_params(), Params(torch.zeros(2), Layout.build([("x", (2,), "param")]))])
    specs = [item[3] for item in structure[1]]
    assert [spec is None for spec in specs] == [False, True, False]


def test_any_class_can_be_registered() -> None:
    back = unflatten(*flatten([Interval(1.0, 2.0)]))[0]
    assert isinstance(back, Interval)
    assert (back.low, back.high) == (1.0, 2.0)


def test_nodes_are_frozen_dataclasses_with_defaults() -> None:
    assert Pair(1) == Pair(1, 2)
    with pytest.raises(AttributeError):
        Pair(1).left = 3

    @node
    @dataclass(frozen=True)
    class Mine:
        value: int

    assert unflatten(*flatten(Mine(4))) == Mine(4)


def test_a_node_may_extend_another_and_holds_the_fields_of_both() -> None:
    @node
    class Wider(Pair):
        more: Any = None

    back = unflatten(*flatten(Wider(left=torch.ones(2), more=torch.zeros(3))))
    assert type(back) is Wider
    assert (back.left.tolist(), back.right, back.more.tolist()) == ([1.0, 1.0], 2, [0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"a": [1, {2}]}, r"value\['a'\]\[1\] is a set"),
        (Pair(lambda: 1), r"value\.left is a function"),
        ({None: 1}, "the key None"),
        ({True: 1}, "the key True"),
        ({1.5: 1}, "the key 1.5"),
        (torch.zeros(2).shape, "is a Size"),
        (nn.Linear(1, 1), "is a Linear"),
    ],
)
def test_what_is_no_tree_is_named_with_its_path(tree: Any, text: str) -> None:
    with pytest.raises(TreeError, match=text):
        flatten(tree)


ONE = [torch.zeros(1)]


@pytest.mark.parametrize(
    "structure",
    [
        ["tensor", 1],
        ["tensor", -1],
        ["tensor", "0"],
        ["dict", [["a"]]],
        ["dict", [["a", 1], ["a", 2]]],
        ["dict", [[None, 1]]],
        ["dict", [[["a"], 1]]],
        ["list", 3],
        ["set", [1]],
        [],
        [[]],
        {"a": 1},
        ["params", 0, 0, None],
        ["params", 0, -1, [["w", [1], "param"]]],
        ["params", 0, 0, [["w", [2], "param"]]],
        ["params", 0, 0, [["w", [-1, -1], "param"]]],
        ["params", 0, 0, [["w", [True], "param"]]],
        ["params", 0, 0, [["w", ["1"], "param"]]],
        ["params", 0, 0, [[7, [1], "param"]]],
        ["params", 0, 0, [["w", [1], "other"]]],
        ["params", 0, 0, [["b", [0], "buffer"], ["w", [1], "param"]]],
        ["params", 0, 0, [["w", [1], "param"], ["w", [0], "param"]]],
        ["params", 0, 0, [["w", 1, "param"]]],
        ["params", 0, 0, ["w"]],
        ["node", Pair.__module__ + ":Pair", [["middle", 1]]],
    ],
)
def test_structures_that_no_tree_has_are_refused(structure: Any) -> None:
    with pytest.raises(TreeError):
        unflatten(structure, list(ONE))


def test_unknown_classes_keep_their_own_error_at_any_depth() -> None:
    with pytest.raises(TreeError, match="unknown message class 'x:Nope'"):
        unflatten(["list", [["dict", [["a", ["node", "x:Nope", []]]]]]], [])


def test_errors_are_not_wrapped_at_every_level() -> None:
    with pytest.raises(TreeError) as caught:
        unflatten(["list", [["list", [["tensor", 5]]]]], [])
    assert str(caught.value) == "tensor 5 of 0 is missing"


def test_map_leaves_reaches_every_tensor() -> None:
    tree = {"a": torch.ones(2), "p": make_params(3.0), "n": 4, "s": "x"}
    back = map_leaves(lambda t: t * 2, tree)
    assert back["a"].tolist() == [2.0, 2.0]
    assert back["p"].vector.tolist() == [6.0] * 9
    assert (back["n"], back["s"]) == (4, "x")
    assert tree["a"].tolist() == [1.0, 1.0]


def test_numbers_are_leaves_of_what_is_summed() -> None:
    tree = {"a": 1, "b": (2.5, [torch.ones(2)]), "p": Pair(make_params(), 7)}
    structure, leaves = numeric_leaves(tree)
    assert [type(leaf) for leaf in leaves] == [int, float, torch.Tensor, torch.Tensor, int]
    doubled = unflatten_numeric(structure, [leaf * 2 for leaf in leaves])
    assert doubled["a"] == 2
    assert doubled["b"][0] == 5.0
    assert isinstance(doubled["b"], tuple)
    assert doubled["b"][1][0].tolist() == [2.0, 2.0]
    assert isinstance(doubled["p"], Pair)
    assert doubled["p"].left.vector.tolist() == [2.0] * 9
    assert doubled["p"].right == 14


def test_equal_shapes_give_equal_structures() -> None:
    def structure(scale: float) -> Any:
        return numeric_leaves({"x": torch.full((2, 3), scale), "n": scale, "p": make_params(scale)})[0]

    assert structure(1.0) == structure(2.0)
    assert structure(1.0) != numeric_leaves({"x": torch.zeros(3, 2), "n": 1.0, "p": make_params()})[0]


@pytest.mark.parametrize("value", [None, True, "text", b"bytes", {1}])
def test_what_has_no_sum_is_refused(value: Any) -> None:
    with pytest.raises(TreeError, match=r"reply\['a'\]\[0\]"):
        numeric_leaves({"a": [value]})


def test_the_number_of_leaves_must_fit() -> None:
    structure, leaves = numeric_leaves([1, 2.0])
    with pytest.raises(TreeError, match="too few"):
        unflatten_numeric(structure, leaves[:1])
    with pytest.raises(TreeError, match="too many"):
        unflatten_numeric(structure, [*leaves, 3])


def test_walks_leave_no_reference_cycles():
    """A cycle would keep every client's vectors alive until the garbage collector comes by."""
    import gc
    import weakref

    from paceline.core.update import Terms, Update

    gc.disable()
    try:
        update = Update(delta=torch.zeros(4), extra={"a": [1.0]}, weight=2)
        watched = weakref.ref(update.fields["delta"])
        structure, leaves = flatten(update)
        unflatten(structure, leaves)
        Terms.of(update)
        del update, structure, leaves
        assert watched() is None
    finally:
        gc.enable()
