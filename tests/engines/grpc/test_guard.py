"""What a client never does, whatever its policy says."""

import pytest

from paceline.aggregation.secagg import SecAggClient
from paceline.engines.grpc.guard import Guard
from paceline.errors import ProtocolError, WireError
from paceline.method import client_functions, find_method


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
    guard.call(head(1), None, None, 0)
    guard.call(head(2, 2), None, None, 1)
    guard.call(head(7, 5, "report", kind="each"), None, None, 4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (head(1), "replay"),
        (head(0), "replay"),
        (head(2, incarnation=2), "replay"),
        (head(2, round=0), "is over"),
        (head(2, function="round"), "no client function"),
        (head(2, function="__init__"), "no client function"),
        (head(2, function="keep"), "no client function"),
        (head(2, program="os", function="system"), "no client function"),
        (head(2, kind="each"), "only summed"),
        (head(2, function="evaluate", kind="each"), "only summed"),
    ],
)
def test_what_is_refused(guard, call, match):
    guard.call(head(1), None, None, 0)
    with pytest.raises(ProtocolError, match=match):
        guard.call(call, None, None, 0)


def test_malformed_heads_are_no_calls(guard):
    for wrong in ({}, {"id": "1"}, {"id": True}, {**head(), "round": 1.5}, {**head(), "function": None}):
        with pytest.raises(WireError):
            guard.call(wrong, None, None, 0)


@pytest.mark.parametrize(
    ("step", "message", "match"),
    [
        ("masked", {"function": "round", "stream": "s"}, "no client function"),
        ("masked", {"function": "__reduce__", "stream": "s"}, "no client function"),
        ("masked", {"function": "report", "stream": "s"}, None),
        ("share", {"tells": "train"}, "has 'train' told"),
        ("share", {"tells": "report"}, None),
        ("share", {"tells": None}, None),
    ],
)
def test_functions_inside_secure_sums_are_looked_at_too(guard, step, message, match):
    call = head(1, function=step, program="secagg", kind="each")
    if match is None:
        guard.call(call, message, None, 0)
    else:
        with pytest.raises(ProtocolError, match=match):
            guard.call(call, message, None, 0)


def opened(guard, alive, number=1, round=1, stream="0/method.train/1"):
    """Go through a secure sum's last steps."""
    each = {"program": "secagg", "kind": "each", "round": round, "incarnation": guard.incarnation}
    guard.call(head(number, function="masked", **each), {"function": "train", "stream": stream}, None, 0)
    guard.call(head(number + 1, function="consistency", **each), {"alive": alive}, None, 0)
    guard.call(head(number + 2, function="unmask", **each), None, None, 0)


def test_a_sum_that_was_opened_is_opened_again_only_over_the_same_survivors(guard, tmp_path, functions):
    """A server that dies after R3 repeats the round with the same work; two different sums would show a client."""
    opened(guard, [0, 1, 2, 3])
    again = Guard(tmp_path / "guard", functions)  # the client was killed as well
    again.join(2, 0)
    opened(again, [0, 1, 2, 3])
    again.join(3, 0)
    with pytest.raises(ProtocolError, match="opened before"):
        opened(again, [0, 1, 2], 9)
    opened(again, [0, 1, 2], 20, stream="1/method.train/1")  # another attempt is other work
    opened(again, [0, 2], 30, round=2)  # and so is another round


def test_a_server_never_goes_back_behind_what_was_safe(guard, tmp_path, functions):
    guard.safe(4)
    again = Guard(tmp_path / "guard", functions)
    again.join(2, 4)
    with pytest.raises(ProtocolError, match="goes back"):
        again.join(3, 3)
    with pytest.raises(ProtocolError, match="was started"):
        again.join(1, 5)
