"""What of a secure sum comes from outside: whatever is malformed is refused by name, and leaves its sender out."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paceline.aggregation.plain import is_record
from paceline.aggregation.secure import messages as wires
from paceline.aggregation.secure.client_functions import SecAggClient
from paceline.aggregation.secure.codec import Codec
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import pack, unpack
from paceline.aggregation.secure.session import new_session
from paceline.aggregation.secure.simulated_directory import SimulatedDirectory
from paceline.core.declarations import ClientFunction, Nesting
from paceline.core.errors import PlanError, ProtocolError, SumOverflowError
from paceline.core.memory import Memory
from paceline.core.method import client_functions
from paceline.core.protocol import ProtocolContext, ProtocolSession
from paceline.core.update import Update
from paceline.registry import find_method

JUNK = [None, 3, "text", b"bytes", [], [1], {}, {1: 2}, {"all": {}, "own": None}, {"all": None, "own": {}}, {"alive": 3}]


FACTS = {**new_session(range(5), SecureConfig()).plain(), "function": "train"}


class FakeContext(ProtocolContext):
    """What the protocol's client functions use of a client."""

    def __init__(self):
        client = SimpleNamespace(id=0, round=1, operation=1, memory=Memory())
        super().__init__(client, ProtocolSession(), client_functions(find_method("fedavg")), False)

    inner = ahead = invoke = preview = cover = note_times = None


def begun(directory):
    me, program = FakeContext(), SecAggClient(directory)
    program.advertise(me, FACTS)
    return me, program


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_whatever_a_server_asks_a_client_only_refuses(junk):
    directory = SimulatedDirectory()
    for step in ("share", "masked", "consistency", "unmask"):
        me, program = begun(directory)
        with pytest.raises(ProtocolError):
            getattr(program, step)(me, junk)
    with pytest.raises(ProtocolError):
        SecAggClient(directory).advertise(FakeContext(), junk)


@pytest.mark.parametrize(
    "change",
    [
        {"round": "1"},
        {"attempt": None},
        {"clients": [0, "1", 2]},
        {"clients": 5},
        {"config": None},
        {"config": {"clip": "x"}},
        {"config": {"clip": math.inf}},
        {"config": {"unknown": 1}},
        {"tell_bytes": 2.5},
        {"more": 1},
        {"function": None},
        {"function": "init"},
        {"task": b"short"},
        {"task": "text"},
        {"trial": -1},
        {"trial": "0"},
        {"call": 0},
        {"call": True},
        {"round": 2},
    ],
    ids=repr,
)
def test_sessions_of_other_types_are_refused(change):
    facts = {**FACTS, **change}
    with pytest.raises(ProtocolError):
        SecAggClient(SimulatedDirectory()).advertise(FakeContext(), facts)


@pytest.mark.parametrize(("tiers", "parts"), [(0, 3), (3, 0), (3, 2), (3, 4)])
def test_sessions_over_other_parts_than_the_function_has_are_refused(tiers, parts):
    """Tiers for a function of the whole model, none for one of parts, and too few or too many."""
    me, facts = FakeContext(), {**FACTS, "parts": parts, "tiers": list(range(parts))}
    nested = Nesting("tier", "order", (1.0, 0.75, 0.5)) if tiers else None
    me.functions = {"train": ClientFunction(nested=nested)}
    with pytest.raises(ProtocolError, match=f"'train' does not have {parts} tiers in this client's method"):
        SecAggClient(SimulatedDirectory()).advertise(me, facts)


def test_thresholds_that_let_a_server_open_one_update_are_refused_before_the_run(federate):
    with pytest.raises(PlanError, match="t > k/2"):
        federate(aggregation="secure", clients=9, cohort=9, rounds=1, secure={"threshold": 4})
    with pytest.raises(PlanError, match="too few"):
        federate(aggregation="secure", clients=5, cohort=5, rounds=1, secure={"threshold": 5})


def test_packed_words_cross_as_tensors():
    segment = Segment("main", 5, 19)
    words = np.arange(5, dtype=segment.dtype) * 99_991
    packed = [pack(words, segment), b""]
    sent = wires.as_tensors(packed)
    assert [t.dtype for t in sent] == [torch.uint8] * 2
    back = wires.as_bytes(sent)
    assert [bytes(part) for part in back] == packed
    assert np.array_equal(unpack(back[0], segment), words)
    for junk in (None, 3, [b"x"], [torch.zeros(3)], [torch.zeros((2, 2), dtype=torch.uint8)]):
        assert wires.as_bytes(junk) is junk


def test_shapes_must_give_the_segments_that_came():
    codec = Codec(SecureConfig(), 5)
    encoded = codec.encode(Update(delta=torch.zeros(7), loss=0.5, weight=1), 1)
    table = [[s.name, s.length, s.bits] for s, _ in encoded.segments]
    assert wires.fits(codec, encoded.shape, table)
    changes = {"plan": [["delta", "float", 8]], "scalars": "1", "structure": {}}
    wrong = [None, {}, *({**encoded.shape, name: value} for name, value in changes.items())]
    assert not any(wires.fits(codec, shape, table) for shape in wrong)


def test_records_are_finite_numbers():
    assert wires.opened_record(wires.packed_record([1.5, 2.0])) == [1.5, 2.0]
    assert wires.opened_record(b"") == []
    assert wires.opened_record(b"1234567") is None
    assert wires.opened_record(wires.packed_record([1.0, math.nan])) is None
    assert not any(map(is_record, (None, 3, "ab", {}, [None], [True], [math.inf], [[1.0]])))


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
@pytest.mark.parametrize("record", [[1.0], [math.nan, 1.0], [-5.0, 1.0]])
def test_a_client_that_tells_nonsense_makes_nobody_drop_out(federate, monkeypatch, aggregation, record):
    cls = type(find_method("clip").build({}))
    real, asked = cls.report, []

    def report(self, client, message):
        own = sys._getframe(1).f_globals["__name__"].startswith("paceline.methods")  # the client asks itself as well
        if client._id != 4 or own:
            return real(self, client, message)
        asked.append(client.round)
        return record

    report.__client__ = real.__client__
    monkeypatch.setattr(cls, "report", report)
    common = {"method": "clip", "clients": 5, "cohort": 5, "rounds": 3, "fleet": "stragglers:share=0.2,slow=3"}
    summary = federate(on_error="drop", aggregation=aggregation, **common)
    assert asked == ([1, 2, 3] if aggregation == "plain" else [1, 2, 2, 3, 3, 4])  # also at the end of the round before
    assert [r["dropped"] for r in summary.history] == [0, 0, 0]


@pytest.mark.parametrize("weight", [-1, 4])
def test_a_sum_of_weights_that_nobody_can_have_sent(weight):
    """Even where all that is weighted is 0, so that no mean would show it."""
    codec = Codec(SecureConfig(gamma=0.0), 3)
    encoded = codec.encode(Update(delta=torch.zeros(5), weight=1), 0)
    opened = [(s, np.full_like(words, weight & s.mask) if s.name == "counts" else words) for s, words in encoded.segments]
    with pytest.raises(SumOverflowError, match="weights"):
        codec.decode(encoded.shape, opened, [0, 1, 2])


@pytest.mark.parametrize(("value", "fine"), [(6, True), (-6, True), (7, False), (-7, False)])
def test_whole_numbers_with_a_bound_are_held_to_it(value, fine):
    """Three clients of at most 2 each: nothing in ``exact`` is clipped, so only the opened sum tells."""
    codec = Codec(SecureConfig(gamma=0.0), 3, {"votes": 2.0})
    encoded = codec.encode(Update(votes=torch.zeros(4, dtype=torch.int64), weight=1), 0)
    opened = [(s, words.copy()) for s, words in encoded.segments]
    for segment, words in opened:
        if segment.name == "exact":
            words[0] = value % (1 << 64)
        if segment.name == "counts":
            words[0] = 3
    if fine:
        assert codec.decode(encoded.shape, opened, [0, 1, 2]).tensors[0][0] == value
    else:
        with pytest.raises(SumOverflowError, match="votes"):
            codec.decode(encoded.shape, opened, [0, 1, 2])
