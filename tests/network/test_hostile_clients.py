"""Clients that send nonsense are left out; the run goes on, and ends as if they had dropped out."""

import asyncio

import grpc.aio
import pytest
import torch

from paceline.core.errors import EngineError, WireError
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.network import protocol as p
from paceline.network.frames import MessagePart
from tests.network.strange import Strange

RUN = {"method": "fedavg", "clients": 5, "cohort": 5, "rounds": 2}
SECURE = {"aggregation": "secure", "secure": {"threshold": 3, "gamma": 0.0}}


def update(call, **changes):
    """What an honest client would send, but for the changes."""
    params = call.tree(0, p_limits())
    zeros = Params(torch.zeros_like(params.vector), params.layout)
    fields = {"delta": zeros, "loss": 0.5, "weight": 10, **changes}
    return Update(**fields)


def p_limits():
    from paceline.core.serialization import NETWORK

    return NETWORK


def filled(call, value):
    zeros = update(call).delta
    return Params(torch.full_like(zeros.vector, value), zeros.layout)


ANSWERS = {
    "nan": lambda call: update(call, delta=filled(call, float("nan"))),
    "infinite": lambda call: update(call, loss=float("inf")),
    "huge": lambda call: update(call, delta=filled(call, 1e30)),
    "huge weight": lambda call: update(call, weight=1e300),
    "nan weight": lambda call: update(call, weight=float("nan")),
    "short": lambda call: update(call, delta=torch.zeros(3)),
    "other fields": lambda call: Update(gradient=torch.zeros(3), weight=1),
    "no weight": lambda call: {"delta": torch.zeros(3)},
    "text": lambda call: "text",
    "nothing": lambda call: None,
    "deep": lambda call: _deep(),
    "integers": lambda call: update(call, delta=torch.zeros(10, dtype=torch.int64)),
    "booleans": lambda call: torch.zeros(5, dtype=torch.bool),
    "odd weights": lambda call: update(call, weight={"delta": torch.zeros(3), "loss": 1}),
    "a list": lambda call: [[[[]]]] * 50,
}


def _deep():
    value = 1.0
    for _ in range(50):
        value = [value]
    return value


async def odd_one(root, port, answer, sent=None):
    """Client 4: first to answer each call, in its own way; comes back when it is thrown out."""
    while True:
        try:
            async with Strange(root / "client4", port) as strange:
                welcome = await strange.hello(instance=b"odd one out 1234")
                if welcome is None:
                    return
                await strange.link.send(p.READY)
                while (call := await strange.next_call()) is not None:
                    await answer(strange, call)
                return
        except (grpc.aio.AioRpcError, WireError, asyncio.InvalidStateError):
            await asyncio.sleep(0.05)


def run_with(loopback, run, answer):
    port = loopback.serve(run, waiting={"reconnect": 0.3})
    odd = asyncio.run_coroutine_threadsafe(odd_one(loopback.root, port, answer), loopback.loop._loop)
    for number in range(4):
        loopback.client(number, faults=(f"delay:client={number},seconds=0.1,phase=train,round=1",))
    try:
        return loopback.finish()
    finally:
        odd.cancel()


@pytest.mark.parametrize("name", ANSWERS)
def test_values_that_are_no_good_drop_their_client(loopback, federate, name):
    async def answer(strange, call):
        await strange.reply(call, ANSWERS[name](call))

    there = run_with(loopback, RUN, answer)
    assert there.model_sha256 == federate(drop=lambda round, client, function: client == 4, **RUN).model_sha256
    lost = [facts["clients"] for facts in loopback.server_lines.of("lost")]
    assert [list(clients) for clients in lost] == [[4], [4]]


def test_numbers_that_only_look_odd_are_taken(loopback):
    """A client may send zeros: that no protocol can know."""

    async def answer(strange, call):
        await strange.reply(call, update(call))

    run_with(loopback, RUN, answer)
    assert loopback.server_lines.of("lost") == []


async def garbage(strange, call):
    await strange.link.send(p.REPLY, {"id": call.head["id"]}, MessagePart(b"garbage" * 100, 700))


async def bad_frame(strange, call):
    await strange.call.write(b"\xff" * 1000)


async def giant(strange, call):
    from tests.network.test_frames import opened

    await strange.call.write(opened((100, 100, 0), (1 << 50, 1 << 50, 0), kind=p.REPLY, first=strange.link._sent))


async def wrong_facts(strange, call):
    await strange.reply(call, update(call), compute=float("nan"))


async def negative(strange, call):
    await strange.reply(call, update(call), up=-5)


async def other_call(strange, call):
    await strange.reply(call, update(call), id=call.head["id"] + 100)


async def server_message(strange, call):
    await strange.link.send(p.COMMIT, {"round": 99})


async def silent(strange, call):
    await asyncio.sleep(30)


async def twice(strange, call):
    await strange.reply(call, update(call, delta=filled(call, 1e30)))
    await strange.reply(call, update(call))


@pytest.mark.parametrize("answer", [garbage, bad_frame, giant, wrong_facts, negative, other_call, server_message, twice])
def test_messages_that_are_no_good_drop_their_client(loopback, federate, answer):
    there = run_with(loopback, {**RUN, "rounds": 1}, answer)
    here = federate(drop=lambda round, client, function: client == 4, **{**RUN, "rounds": 1})
    assert there.model_sha256 == here.model_sha256


def test_a_client_that_trickles_keeps_nobody_waiting_beyond_the_deadline(loopback, federate):
    async def trickle(strange, call):
        await silent(strange, call)

    port = loopback.serve({**RUN, "rounds": 1}, waiting={"phases": {"train": 0.5}})
    odd = asyncio.run_coroutine_threadsafe(odd_one(loopback.root, port, trickle), loopback.loop._loop)
    for number in range(4):
        loopback.client(number)
    there = loopback.finish()
    odd.cancel()
    assert there.model_sha256 == federate(drop=lambda r, c, f: c == 4, **{**RUN, "rounds": 1}).model_sha256
    assert loopback.server_lines.of("lost")[0]["clients"] == {4: "late"}


def test_a_client_that_refuses_and_agrees_without_end_is_thrown_out(loopback, monkeypatch):
    monkeypatch.setattr("paceline.network.server_streams.MOST_REFUSALS", 20)

    async def fickle(root, port):
        async with Strange(root / "client4", port) as strange:
            await strange.hello()
            for number in range(100_000):
                await strange.link.send(p.READY)
                await strange.link.send(p.REFUSE, {"reasons": [f"no {number}"], "later": True})

    port = loopback.serve({**RUN, "rounds": 1}, waiting={"reconnect": 0.3})
    odd = asyncio.run_coroutine_threadsafe(fickle(loopback.root, port), loopback.loop._loop)
    loopback.wait(lambda: loopback.server_lines.of("refused"))
    assert "more than 20 refusals" in loopback.server_lines.of("refused")[0]["why"]
    assert len(loopback.server_lines.of("refused_by_client")) == 20
    with pytest.raises((grpc.aio.AioRpcError, WireError, asyncio.InvalidStateError)):
        odd.result(10)
    for number in range(5):
        loopback.client(number)
    assert loopback.finish().rounds == 1


JUNK = [
    None,
    7,
    "text",
    [],
    {},
    {"keys": b"short"},
    {"keys": 3, "sealed": [], "told": {}, "segments": 5, "shape": {}, "signature": None},
]


SLOW = [pytest.param(step, marks=pytest.mark.slow) for step in ("advertise", "consistency")]


@pytest.mark.parametrize("step", ["share", "masked", "unmask", *SLOW])
def test_junk_in_any_step_of_a_secure_sum(loopback, federate, step):
    """Client 4 is honest up to a step, and answers that one with junk; the sum is that of a drop-out there."""
    asked = []
    loopback.serve({**RUN, **SECURE, "rounds": len(JUNK)}, waiting={"reconnect": 0.3})
    for number in range(5):
        node = loopback.client(number)
    real = node.runner.call

    def call(head, message, rest):
        answer = real(head, message, rest)
        if head["function"] == step and answer.head["dropped"] is None:
            object.__setattr__(answer, "value", JUNK[head["round"] - 1])
            asked.append(head["round"])
        return answer

    node.runner.call = call
    there = loopback.finish()
    assert len(asked) == len(JUNK)

    def drop(round, client, function):
        return client == 4 and function == f"secagg.{step}"

    assert there.model_sha256 == federate(drop=drop, **RUN | SECURE | {"rounds": len(JUNK)}).model_sha256


def test_a_client_with_another_shape_that_comes_first_shuts_nobody_out(loopback, federate, monkeypatch):
    """What vectors consist of is fixed by the server's own model before the first one comes, not by who is first."""
    monkeypatch.setattr("paceline.aggregation.secure.server_vectors.GROUPS", 1)
    run = {**RUN, **SECURE, "rounds": 1}
    loopback.serve(run)
    for number in range(5):
        node = loopback.client(number, faults=(f"delay:client={number},seconds=0.2,phase=secagg.masked",) if number < 4 else ())
    worker_of = node.runner._work

    def work(welcome):
        worker = worker_of(welcome)
        invoke = worker.invoke

        def other(me, function, message):
            reply = invoke(me, function, message)
            return Update(delta=torch.zeros(7), loss=0.1, weight=1) if function == "train" else reply

        worker.invoke = other
        return worker

    node.runner._work = work
    there = loopback.finish()
    assert there.model_sha256 == federate(drop=lambda r, c, f: c == 4 and f == "secagg.masked", **run).model_sha256


def test_nobody_left_ends_in_a_named_error(loopback):
    async def answer(strange, call):
        await strange.reply(call, "nonsense")

    loopback.serve({"clients": 5, "cohort": 1, "rounds": 1, "quorum": 1}, {"least": 1}, {"start": 1.0})
    odd = asyncio.run_coroutine_threadsafe(odd_one(loopback.root, loopback.server.port, answer), loopback.loop._loop)
    with pytest.raises(Exception, match=r"no client returned a reply that can be summed|quorum") as ended:
        loopback.result.result(30)
    odd.cancel()
    assert not isinstance(ended.value, EngineError)
