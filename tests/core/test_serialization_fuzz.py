"""The decoder against bytes from an enemy: only `WireError`, with little work and memory, counted and not timed."""

from __future__ import annotations

import os
import random
import resource
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.aggregation.secure.config import SecureConfig
from paceline.core import serialization as wire
from paceline.core.errors import TreeError, UnknownNameError, WireError, nearest
from paceline.core.layout import Layout
from paceline.core.method import State
from paceline.core.params import Params
from paceline.core.serialization import DTYPES, NETWORK, Limits, dumps, loads
from paceline.core.tree import Tree, node
from paceline.core.update import Update
from tests.work import steps

MB = 1 << 20
LIMITS = Limits(size=1 * MB, items=20_000, tensors=500)
"""Inputs are small, so that a blow-up shows as one."""


@node
class Packet:
    body: Any
    note: str = ""


def corpus() -> list[bytes]:
    """Return messages such as really cross: models, updates, steps of secure aggregation, odd values."""
    noise = random.Random(1).randbytes
    layout = Layout.build([("w", (3, 4), "param"), ("b", (4,), "param"), ("m", (4,), "buffer")])
    params = Params(torch.arange(20.0), layout)
    mail = {v: {"sealed": noise(108), "told": b""} for v in range(6)}
    trees: list[Tree] = [
        None,
        {"a": [1, -1, 2**63, 0.5, "é", b"\xff", True, None], 7: (1, (2, [3]))},
        State(params=params),
        Update(delta=params, weight=3.0),
        Packet([Packet(params), Packet(params * 2.0, "x")], "two"),
        {"keys": noise(128), "hashes": mail, "clients": list(range(40)), "config": vars(SecureConfig())},
        {"segments": [noise(300)], "table": [["w", 100, 24]], "signature": noise(64), "shape": {"d": [3]}},
        [torch.zeros(0, 3), torch.ones(2, 2, dtype=torch.bool), *(torch.ones(3).to(d) for d in DTYPES.values())],
        [[[[[[[[{"deep": {"er": torch.ones(2)}}]]]]]]]],
        list(range(300)),
        torch.ones(200, dtype=torch.bool),
    ]
    return [dumps(tree) for tree in trees]


CORPUS = corpus()
WORDS = [0, 1, 7, 8, 63, 64, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
KINDS = [*range(0xC0, 0xE0), 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0x00, 0x7F, 0xFF]
TAGS = [
    "tensor",
    "params",
    "dict",
    "list",
    "tuple",
    "node",
    "f4",
    "u8",
    "b1",
    "bf2",
    "param",
    "buffer",
    "tests.core.test_serialization_fuzz:Packet",
]


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, overwrite, cut, insert, repeat, splice."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, low = rng.randrange(len(out) + 1), rng.randrange(len(out) + 1)
        match rng.randrange(8):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.choice(KINDS)
            case 2:
                width = rng.choice((1, 2, 4, 8))
                word = (rng.choice(WORDS) % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))
                out[at : at + width] = word
            case 3:
                del out[min(at, low) : max(at, low)]
            case 4:
                out[at:at] = rng.randbytes(rng.randrange(1, 20))
            case 5:
                out[at:at] = out[low : low + rng.randrange(1, 64)] * rng.choice((1, 2, 50))
            case 6:
                other = rng.choice(CORPUS)
                out[at:] = other[rng.randrange(len(other)) :]
            case 7:
                del out[at:]
    return bytes(out)


def mutate_header(rng: random.Random, data: bytes) -> bytes:
    """Change values of the header and wrap it well, so that what is behind the first checks is reached."""
    length = int.from_bytes(data[8:16], "little")
    header, tail = msgpack.unpackb(data[16 : 16 + length], strict_map_key=False), data[-(-(16 + length) // 64) * 64 :]
    places: list[tuple[list[Any], int]] = []

    def walk(item: Any) -> None:
        if isinstance(item, list):
            places.extend((item, i) for i in range(len(item)))
            for part in item:
                walk(part)

    walk(header)
    repeats = [1, 2, 200]  # a long repetition at most once: repeated repetitions would make messages of gigabytes
    for _ in range(rng.choice((1, 1, 2, 5))):
        owner, i = rng.choice(places)
        if i >= len(owner):
            continue
        value: Any = rng.choice((None, True, -1, 1.5, b"", "", [], rng.choice(WORDS), rng.choice(TAGS), rng.randrange(-3, 30)))
        match rng.randrange(7):
            case 0 | 1:
                owner[i] = value
            case 2:
                owner.insert(i, value)
            case 3:
                del owner[i]
            case 4:
                other, j = rng.choice(places)
                if j < len(other):
                    owner[i] = msgpack.unpackb(msgpack.packb(other[j]))
            case 6:
                owner.insert(i, owner[i])
            case 5:
                count = rng.choice(repeats)
                repeats = [1] if count == 200 else repeats
                owner[i] = [owner[i]] * count if rng.random() < 0.5 else ["list", [owner[i]]]
    raw = msgpack.packb(header)
    if rng.random() < 0.3:
        tail = mutate_bytes(rng, tail)
    return message(raw, tail)


def message(header: Any, tail: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else msgpack.packb(header)
    return wire._PREFIX.pack(b"PLWR", 1, 0, len(raw)) + raw + bytes(-(16 + len(raw)) % 64) + tail


def random_bytes(rng: random.Random, data: bytes) -> bytes:
    noise = rng.randbytes(rng.choice((0, 1, 15, 16, 17, 64, 200)))
    return message(noise, rng.randbytes(8)) if rng.random() < 0.7 else data[: rng.choice((4, 8, 16))] + noise


MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [mutate_bytes, mutate_header, mutate_header, random_bytes]


def peak_memory() -> int:
    """Return the most memory that this process ever had, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def most(data: bytes, limits: Limits = LIMITS) -> int:
    """Return how many calls decoding may take: in proportion to the bytes, however they are made up."""
    return 2000 + 10 * min(len(data), limits.items)


def outcome(data: bytes, limits: Limits) -> Tree | WireError:
    try:
        return loads(data, limits)
    except WireError as error:
        return error


def attack(seed: int, inputs: int) -> tuple[int, int, float, int]:
    """Decode so many inputs; return how many were refused and taken, the most calls per allowed one, and kB by which the peak grew."""
    rng = random.Random(seed)
    refused, worst, grown = 0, 0.0, 0
    for _ in range(inputs):
        data = rng.choice(MUTATIONS)(rng, rng.choice(CORPUS))
        before, text = peak_memory(), ""
        tree, calls = steps(most(data), outcome, data, LIMITS)
        if isinstance(tree, WireError):
            refused, text = refused + 1, str(tree)
        else:
            again = dumps(tree)  # what was taken is a real tree
            assert dumps(loads(again)) == again
        assert len(text) < 2000
        worst, grown = max(worst, calls / most(data)), grown + peak_memory() - before
    return refused, inputs - refused, worst, grown


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_fuzz(seed: int) -> None:
    refused, taken, _, _ = attack(seed, 60)
    assert refused > taken


@pytest.mark.slow
def test_fuzz_a_million_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    seed, started = int.from_bytes(os.urandom(4), "little"), time.perf_counter()
    attack(seed, 5000)  # what is only built once does not count
    counts = [attack(seed + 1 + batch, 5000) for batch in range(200)]
    refused, taken, grown = (sum(count[i] for count in counts) for i in (0, 1, 3))
    worst = max(count[2] for count in counts)
    with capsys.disabled():
        print(
            f"\nseed {seed}: {refused + taken} inputs, {refused} refused, {taken} taken, {time.perf_counter() - started:.0f} s, "
            f"at most {worst:.0%} of the calls allowed, decoding +{grown / 1024:.1f} MB, peak of the process {peak_memory() / 1024:.0f} MB"
        )
    assert refused + taken == 1_000_000
    assert taken > 10_000
    assert grown < 50 * 1024


def test_headers_are_reached() -> None:
    """A fuzzer that stops at the prefix proves nothing: its inputs have to meet most of the checks."""
    rng, met = random.Random(0), set()
    wanted = [
        "truncated", "not a Paceline message", "unsupported message format", "exceeds the message", "padding", "expected a pair",
        "msgpack type", "trailing bytes", "expected dtype", "list of sizes", "does not match the announced", "announces", "boolean",
        "missing", "out of order", "not referenced by the tree", "duplicate key", "keys must be strings", "malformed tree",
        "unknown message class", "a layout must have", "does not match a layout", "unexpected keyword", "values",
    ]  # fmt: skip
    for _ in range(6000):
        try:
            loads(rng.choice(MUTATIONS)(rng, rng.choice(CORPUS)), LIMITS)
        except WireError as error:
            met |= {text for text in wanted if text in str(error)}
    assert set(wanted) == met


def nested(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


EVIL: dict[str, Callable[[], bytes]] = {
    "class name": lambda: message([["node", "ab c" * MB, []], []]),
    "key of bytes": lambda: message([["dict", [[bytes(4 * MB), 1]]], []]),
    "kind of bytes": lambda: message([[bytes(4 * MB), 1], []]),
    "parameter name": lambda: message([["params", 0, 0, [["w" * 4 * MB, [2], "param"]]], [["f4", [1], 4]]], bytes(8)),
    "shape of many sizes": lambda: message([["params", 0, 0, [["w", [2**62] * 30_000, "param"]]], [["f4", [1], 4]]], bytes(8)),
    "shape of huge sizes": lambda: message([["params", 0, 0, [["w", [2**63], "param"]]], [["f4", [1], 4]]], bytes(8)),
    "tensor of many sizes": lambda: message([["tensor", 0], [["f4", [0] + [2**61] * 63, 0]]]),
    "empty tensor of huge strides": lambda: message([["tensor", 0], [["f4", [2**61, 2**61, 0], 0]]]),
    "one tensor many times": lambda: message([["list", [["tensor", 0]] * 4000], [["f4", [1], 4]]], bytes(8)),
    "tensors that nobody takes": lambda: message([None, [["f4", [1], 4]] * 100], bytes(800)),
    "values": lambda: message([["list", [1] * 30_000], []]),
    "lists": lambda: message([["list", [["list", []]] * 8_000], []]),
    "depth": lambda: message(nested(100_000)),
    "claimed list": lambda: message(b"\xdd\xff\xff\xff\xff" * 1000),
    "claimed text": lambda: message(b"\xdb\xff\xff\xff\xff"),
    "header": lambda: wire._PREFIX.pack(b"PLWR", 1, 0, 8 * MB) + bytes(8 * MB + 48),
}


@pytest.mark.parametrize("name", EVIL)
def test_evil_messages_cost_little(name: str) -> None:
    data = EVIL[name]()
    limits = Limits(size=NETWORK.size, header=6 * MB, items=20_000, tensors=2_000)
    tracemalloc.start()
    try:
        error, _ = steps(most(data, limits), outcome, data, limits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(error, WireError)
    assert len(str(error)) < 2000
    assert peak < 4 * len(data) + 4 * MB


def greedy(limits: Limits) -> list[bytes]:
    """Return the messages that make the most of their bytes: as many empty lists, or tensors, as the limits let through."""
    tensors = min(limits.tensors, limits.items // 12)
    rows = [["f4", [1], 4]] * tensors
    return [
        message([["list", [["list", []]] * (limits.items // 3 - 10)], []]),
        message([["list", [["tensor", i] for i in range(tensors)]], rows], bytes(8 * tensors)),
    ]


def test_the_most_that_strangers_may_send_costs_little() -> None:
    for data in greedy(NETWORK):
        assert isinstance(steps(most(data, NETWORK), loads, data, NETWORK)[0], list)
    small = replace(NETWORK, items=NETWORK.items // 10, tensors=NETWORK.tensors // 10)
    for data in greedy(small):
        tracemalloc.start()
        loads(data, small)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 * MB


def test_names_from_outside_are_not_compared_at_length() -> None:
    error, _ = steps(100, UnknownNameError, "option", "x" * 10 * MB, ["alpha", "beta"])
    assert len(str(error)) < 400
    assert nearest("x" * 1000, ["alpha"]) == "; known: alpha"
    assert nearest("alpa", ["alpha"]) == "; did you mean alpha?"


def test_tensors_are_taken_once_and_in_order() -> None:
    rows = [["f4", [1], 4]] * 2
    good = message([["list", [["tensor", 0], ["tensor", 1]]], rows], bytes(16))
    assert len(loads(good)) == 2
    for places, text in (([1, 0], "out of order"), ([0, 0], "out of order"), ([0], "not referenced by the tree")):
        with pytest.raises(WireError, match=text):
            loads(message([["list", [["tensor", i] for i in places]], rows], bytes(16)))


def test_trees_that_are_none_are_told_in_short() -> None:
    for value in ({b"x" * MB: 1}, {("x",) * 100_000: 1}):
        with pytest.raises(TreeError) as caught:
            dumps(value)
        assert len(str(caught.value)) < 300
