"""What a client never does, whatever its policy says."""

import pytest

from paceline.aggregation.secure.client_functions import SecAggClient
from paceline.core.errors import ProtocolError, WireError
from paceline.core.method import client_functions
from paceline.network.replay_guard import Guard
from paceline.registry import find_method


@pytest.fixture
def functions():
    return {"method": client_functions(find_method("clip")), "secagg": client_functions(SecAggClient)}


@pytest.fixture
def guard(tmp_path, functions):
    made = Guard(tmp_path / "guard", functions)
    made.join(1, 0)
    return made


def head(number=1, round=1, function="train", program="method", kind="sum", incarnation=1):
    return {"id": (incarnation << 32) + number, "round": round, "program": program, "function": function, "channel": {"kind": kind}}


def test_calls_in_order_are_answered(guard):
    guard.call(head(1), 0)
    guard.call(head(2, 2), 1)
    guard.call(head(7, 5, "report", kind="each"), 4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (head(1), "replay"),
        (head(0), "replay"),
        (head(2, incarnation=2), "replay"),
        (head(2, round=0), "is over"),
        (head(2, function="round"), "not a client function"),
        (head(2, function="__init__"), "not a client function"),
        (head(2, function="keep"), "not a client function"),
        (head(2, program="os", function="system"), "not a client function"),
        (head(2, kind="each"), "only summed"),
        (head(2, function="evaluate", kind="each"), "only summed"),
    ],
)
def test_what_is_refused(guard, call, match):
    guard.call(head(1), 0)
    with pytest.raises(ProtocolError, match=match):
        guard.call(call, 0)


def test_malformed_heads_are_no_calls(guard):
    for wrong in ({}, {"id": "1"}, {"id": True}, {**head(), "round": 1.5}, {**head(), "function": None}):
        with pytest.raises(WireError):
            guard.call(wrong, 0)


def test_a_server_never_goes_back_behind_what_was_safe(guard, tmp_path, functions):
    guard.safe(4)
    again = Guard(tmp_path / "guard", functions)
    again.join(2, 4)
    with pytest.raises(ProtocolError, match="went back"):
        again.join(3, 3)
    with pytest.raises(ProtocolError, match="it was reset"):
        again.join(1, 5)
