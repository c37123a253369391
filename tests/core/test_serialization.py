import contextlib
import math
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paceline.core import serialization as wire
from paceline.core.errors import TreeError, WireError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.core.serialization import DTYPES, Limits, dumps, loads
from paceline.core.tree import node


@node
class Reply:
    delta: Any
    note: str = ""


@node
class Picky:
    value: int

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ZeroDivisionError("no")


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, float):
        return isinstance(b, float) and struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random_tensor(code: str, shape: list[int], seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    size = math.prod(shape) * int(code[-1])
    raw = rng.integers(0, 2 if code == "b1" else 256, size, dtype=np.uint8)
    if not size:
        return torch.empty(shape, dtype=DTYPES[code])
    return torch.from_numpy(raw).view(DTYPES[code]).reshape(shape)


tensors = st.builds(
    random_tensor,
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 999),
)
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.binary(max_size=8)
)
trees = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4) | st.integers(-9, 9), inner, max_size=4)
    ),
    max_leaves=12,
)


def check_round_trip(tree: Any) -> None:
    data = dumps(tree)
    assert same(loads(data), tree)
    assert same(loads(bytearray(data), copy=False), tree)
    assert dumps(loads(data)) == data


def check_garbage(data: bytes) -> None:
    with contextlib.suppress(WireError):
        loads(data)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees)
def test_round_trip_is_exact(tree: Any) -> None:
    check_round_trip(tree)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(trees)
def test_round_trip_is_exact_long(tree: Any) -> None:
    check_round_trip(tree)


def mutate(data: bytes, edits: list[tuple[int, int]], cut: int) -> bytes:
    out = bytearray(data)
    for place, value in edits:
        out[place % len(out)] = value
    return bytes(out[: len(out) - cut % len(out)])


edits = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(trees, edits, st.integers(0, 3))
def test_damaged_bytes_raise_only_wire_errors(tree: Any, changes: list[tuple[int, int]], cut: int) -> None:
    check_garbage(mutate(dumps({"a": tree, "r": Reply(tree)}), changes, cut))


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(trees, edits, st.integers(0, 50))
def test_damaged_bytes_raise_only_wire_errors_long(tree: Any, changes: list[tuple[int, int]], cut: int) -> None:
    check_garbage(mutate(dumps({"a": tree, "r": Reply(tree)}), changes, cut))


header_values = st.recursive(
    plain | st.sampled_from(["tensor", "params", "dict", "list", "tuple", "node", "f4", "u8"]),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(header_values, st.binary(max_size=40))
def test_any_header_raises_only_wire_errors(header: Any, tail: bytes) -> None:
    check_garbage(message(header, tail))


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(header_values, st.binary(max_size=40))
def test_any_header_raises_only_wire_errors_long(header: Any, tail: bytes) -> None:
    check_garbage(message(header, tail))


def message(header: Any, tail: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else msgpack.packb(header)
    return wire._PREFIX.pack(b"PLWR", 1, 0, len(raw)) + raw + bytes(-(16 + len(raw)) % 64) + tail


def test_params_and_nodes_keep_their_layout_and_class() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    params = Params.of(net, Layout.of(net))
    back = loads(dumps(Reply((params, params * 2.0), note="é")))
    assert isinstance(back, Reply)
    assert back.note == "é"
    assert back.delta[0].layout.digest == params.layout.digest
    assert back.delta[0].layout is back.delta[1].layout
    assert torch.equal(back.delta[1].vector, params.vector * 2)


def test_strided_and_grad_tensors_are_sent_by_value() -> None:
    weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    back = loads(dumps([weight, weight.t(), weight[:, 1], torch.tensor(3.0)]))
    assert same(back, [weight.detach(), weight.detach().t(), torch.tensor([1.0, 4.0]), torch.tensor(3.0)])
    assert not back[0].requires_grad


def test_non_finite_floats_survive() -> None:
    tree = {"x": [math.nan, math.inf, -math.inf, -0.0], "t": torch.tensor([math.nan, math.inf, -0.0])}
    assert same(loads(dumps(tree)), tree)


def test_views_share_memory_only_where_asked_and_writable() -> None:
    data = dumps(torch.arange(4.0))
    buffer = bytearray(data)
    view = loads(buffer, copy=False)
    view[0] = 9.0
    assert loads(bytes(buffer))[0] == 9.0
    copied = loads(buffer)
    copied[0] = 5.0
    assert loads(bytes(buffer))[0] == 9.0
    safe = loads(data, copy=False)
    safe[0] = 7.0
    assert loads(data)[0] == 0.0


def test_misaligned_buffers_are_copied() -> None:
    data = dumps(torch.arange(4.0, dtype=torch.float64))
    shifted = memoryview(bytearray(b"x" + data))[1:]
    back = loads(shifted, copy=False)
    assert back.data_ptr() % 8 == 0
    assert torch.equal(back, torch.arange(4.0, dtype=torch.float64))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, {"a": [2**70]}])
def test_integers_beyond_64_bits_are_refused(value: Any) -> None:
    with pytest.raises(WireError, match="64 bits"):
        dumps(value)


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(TreeError, match=r"value\['a'\] is a set"):
        dumps({"a": {1}})
    with pytest.raises(WireError, match="complex64"):
        dumps(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(WireError, match="sparse"):
        dumps(torch.zeros(2, 2).to_sparse())
    with pytest.raises(WireError, match="cannot be encoded"):
        dumps("\ud800")
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TreeError, match="nested too deeply"):
        dumps(loop)


def deep(levels: int) -> Any:
    tree: Any = 1
    for _ in range(levels):
        tree = {"a": tree}
    return tree


def test_limits_hold_on_both_sides() -> None:
    many = [torch.zeros(1)] * 5
    cases: list[tuple[Any, Limits, str]] = [
        (torch.zeros(100), Limits(size=200), "limit of 200"),
        ("x" * 100, Limits(header=50), "limit of 50"),
        (deep(20), Limits(depth=30), "30 levels"),
        (list(range(100)), Limits(items=50), "50 values"),
        (many, Limits(tensors=4), "limit of 4"),
        (torch.zeros(1), Limits(dtypes=frozenset({"f8"})), "not accepted"),
    ]
    for tree, limits, text in cases:
        with pytest.raises(WireError, match=text):
            dumps(tree, limits)
        with pytest.raises(WireError, match=text):
            loads(dumps(tree), limits)
    assert loads(dumps(deep(60))) == deep(60)
    with pytest.raises(WireError, match="192 levels"):
        dumps(deep(70))


def test_a_claimed_size_is_checked_before_anything_is_made() -> None:
    huge = 1 << 50
    with pytest.raises(WireError, match="announces"):
        loads(message([["tensor", 0], [["f4", [huge], huge * 4]]]))
    with pytest.raises(WireError, match="truncated"):
        loads(message(b"\xdd\xff\xff\xff\xff"))
    with pytest.raises(WireError, match="exceeds the message"):
        loads(wire._PREFIX.pack(b"PLWR", 1, 0, 1 << 60))


F4 = [["f4", [1], 4]]
FOUR = bytes(8)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "truncated"),
        (b"\x80\x04K\x01." + bytes(20), "not a Paceline message"),
        (b"PLWR\x02\x00" + bytes(10), "format 2"),
        (message([["tensor", 0], [["f4", [-1], -4]]], FOUR), "list of sizes"),
        (message([["tensor", 0], [["f4", [2], 4]]], FOUR), "does not match the announced 4 bytes"),
        (message([["tensor", 0], [["f4", [True], 4]]], FOUR), "list of sizes"),
        (message([["tensor", 0], [["c8", [1], 8]]], FOUR), "expected dtype, shape and length"),
        (message([["tensor", 0], F4], FOUR + b"x"), "announces"),
        (message([["tensor", 0], F4], b"\0\0\0\0x\0\0\0"), "padding"),
        (message([["tensor", 0], [["b1", [1], 1]]], b"\x02" + bytes(7)), "boolean"),
        (message([["tensor", 1], F4], FOUR), "tensor 1 of 1 is missing"),
        (message([["tensor", -1], F4], FOUR), "missing"),
        (message([["node", "os:system", []], []]), "unknown message class"),
        (message([["node", Reply.__module__ + ":Reply", [["nothing", 1]]], []]), "malformed tree"),
        (message([["node", Picky.__module__ + ":Picky", [["value", -1]]], []]), "malformed"),
        (message([["dict", [["a", 1], ["a", 2]]], []]), "duplicate key"),
        (message([["dict", [[None, 1]]], []]), "keys must be"),
        (message([["dict", [[[], 1]]], []]), "keys must be"),
        (message([["params", 0, 0, [["w", [2], "param"]]], F4], FOUR), "does not match a layout"),
        (message([["params", 0, 0, [["w", [-1, -1], "param"]]], F4], FOUR), "list of sizes"),
        (message([["params", 0, 0, [["w", [1], "code"]]], F4], FOUR), "before buffers"),
        (message([["params", 0, -1, [["w", [1], "param"]]], F4], FOUR), "layout index -1"),
        (message({"a": 1}), "type 0x81"),
        (message(msgpack.packb(msgpack.ExtType(1, b"x"))), "type 0xd4"),
        (message(msgpack.packb([1, []]) + b"\x01"), "trailing bytes"),
        (message(b"\x92\xa1\xff\x90"), "malformed"),
        (message([1, [], 3]), "expected a pair"),
    ],
)
def test_malformed_messages_say_what_is_wrong(data: bytes, text: str) -> None:
    with pytest.raises(WireError, match=text):
        loads(data)
