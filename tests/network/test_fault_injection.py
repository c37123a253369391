"""Faults on purpose: what they mean, and that a run comes through them with the same bits."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.network.fault_injection import Fault, Faults
from paceline.network.frames import MessagePart, frames


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("kil:client=1", UnknownNameError),
        ("kill", ConfigError),
        ("kill:phase=train", ConfigError),
        ("kill:client=1,phse=train", UnknownNameError),
        ("kill:client=1,when=later", ConfigError),
        ("bandwidth:client=1", ConfigError),
        ("slow:client=1,factor=0.5", ConfigError),
        ("slow:client=1", ConfigError),
        ("slow:client=1,factor=1", ConfigError),
        ("slow:client=server,factor=2", ConfigError),
        ("slow:client=one,factor=2", ConfigError),
        ("slow:client=1.5,factor=2", ConfigError),
        ("slow:client=true,factor=2", ConfigError),
        ("slow:client=none,factor=2", ConfigError),
        ("slow:client=-1,factor=2", ConfigError),
        ("kill:client=1,phase=commit,when=reply", ConfigError),
        ("slow:client=1,seconds=1", UnknownNameError),
        ("delay:client=1", ConfigError),
        ("delay:client=1,seconds=0", ConfigError),
        ("drop:client=1,rate=5", UnknownNameError),
        ("delay:client=1,seconds=soon", ConfigError),
    ],
)
def test_faults_that_cannot_be(text, error):
    with pytest.raises(error):
        Fault.parse(text)


def test_faults_meet_whom_they_are_for():
    texts = ["drop:client=1,phase=train", "kill:client=server,round=2", "slow:client=1,factor=3"]
    assert [f.kind for f in Faults.of(texts, 1).faults] == ["drop", "slow"]
    assert [f.kind for f in Faults.of(texts, None).faults] == ["kill"]
    assert Faults.of(texts, 7) is None


@pytest.mark.parametrize(
    ("kind", "order"), [("drop", [1, 2, 3]), ("duplicate", [0, 0, 1, 2, 3]), ("swap", [1, 0, 2, 3]), ("corrupt", [None, 1, 2, 3])]
)
def test_what_becomes_of_frames(kind, order):
    faults = Faults([Fault.parse(f"{kind}:client=1,phase=train,round=2")])
    sent = list(frames(5, (MessagePart.of({}), MessagePart.of(bytes(600_000))), 0))

    async def send():
        return [out for frame in sent for out in await faults.outgoing(frame)]

    assert asyncio.run(send()) == sent
    faults.enter("train", 1)
    assert asyncio.run(send()) == sent
    faults.enter("train", 2)
    out = asyncio.run(send())
    expected = [None if n is None else sent[n] for n in [*order, *range(4, len(sent))]]
    assert [a for a, b in zip(out, expected, strict=True) if b is not None and a != b] == []
    assert asyncio.run(send()) == sent  # once only


def test_a_narrow_link_lets_through_its_rate(monkeypatch):
    now = [100.0]

    async def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr("paceline.network.fault_injection.asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr("paceline.network.fault_injection.time", SimpleNamespace(monotonic=lambda: now[0]))
    faults = Faults([Fault.parse("bandwidth:client=1,rate=1000000")])
    faults.enter("train", 1)

    async def send():
        for _ in range(5):
            await faults.outgoing(bytes(100_000))

    asyncio.run(send())
    assert now[0] == pytest.approx(100.375)  # half a megabyte, of which an eighth of a second was saved up


RUN = {"method": "scaffold", "clients": 4, "cohort": 4, "rounds": 2}


@pytest.mark.parametrize("who", ["1", "server"])
@pytest.mark.parametrize("kind", ["drop", "duplicate", "swap", "corrupt"])
def test_bad_frames_end_a_stream_and_change_nothing(loopback, federate, kind, who):
    run = {**RUN, "aggregation": "secure"}
    faults = (f"{kind}:client={who},phase=secagg.masked,round=2",)
    loopback.serve(run, {"faults": faults})
    for number in range(4):
        loopback.client(number, faults=faults)
    assert loopback.finish().model_sha256 == federate(vectorize="off", **run).model_sha256
    struck = loopback.server.engine.hub.shaper if who == "server" else loopback.nodes[1].faults
    assert struck.struck == list(faults)
    noted = loopback.server_lines.of("refused") if who == "1" else loopback.client_lines.of("broken")
    assert any(word in facts["why"] for facts in noted for word in ("corrupted", "missing", "was repeated"))


def test_slow_and_delayed_clients_are_waited_for(networked, federate):
    faults = ("delay:client=1,seconds=0.2,phase=train", "bandwidth:client=2,rate=100000", "slow:client=0,factor=3")
    started = time.monotonic()
    assert networked(RUN, faults).model_sha256 == federate(vectorize="off", **RUN).model_sha256
    assert time.monotonic() - started > 0.4


def test_packed_messages_change_nothing(loopback, federate):
    pytest.importorskip("zstandard")
    loopback.serve(RUN, {"pack": True})
    for number in range(4):
        loopback.client(number, pack=True)
    assert loopback.finish().model_sha256 == federate(vectorize="off", **RUN).model_sha256


def test_files_take_what_memory_does_not(loopback, federate, monkeypatch):
    monkeypatch.setattr("paceline.network.buffers.SMALL", 0)
    loopback.serve(RUN, {"memory": 0})
    for number in range(4):
        loopback.client(number)
    assert loopback.finish().model_sha256 == federate(vectorize="off", **RUN).model_sha256
    assert loopback.server.engine.hub.budget.most == 0
