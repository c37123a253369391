"""Networks that are cut and come back, that fall silent, and members that are revoked under way."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from paceline.aggregation.secure.keys import AgreementKey
from paceline.core.errors import IdentityError
from paceline.deploy.identity.authority import Authority
from paceline.network.client_runner import Runner
from tests.network.conftest import publish

RUN = {"method": "scaffold", "clients": 5, "cohort": 5, "rounds": 3}
SECURE = {"aggregation": "secure", "secure": {"threshold": 3, "gamma": 0.0}}


def secure(phase: str) -> dict[str, Any]:
    """Return `SECURE`, with the given step in each round: the first two can be part of the round before."""
    apart = {"pipelined": False} if phase in ("secagg.advertise", "secagg.share") else {}
    return {**SECURE, "secure": {**SECURE["secure"], **apart}}


def slow(phase: str) -> Any:
    return pytest.param(phase, marks=pytest.mark.slow)


SLOW = [slow(f"secagg.{step}") for step in ("advertise", "share", "consistency")]


class Cable:
    """Carries bytes between clients and the server until it is cut, or holds them back."""

    def __init__(self, port: int) -> None:
        self.server, self.port, self.whole = port, 0, True
        self.flows = asyncio.Event()
        self.flows.set()
        self.ends: set[asyncio.StreamWriter] = set()

    async def lay(self) -> int:
        server = await asyncio.start_server(self.carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return self.port

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.whole:
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.server)
        self.ends |= {writer, back}
        with contextlib.suppress(OSError):
            await asyncio.gather(self.pour(reader, back), self.pour(there, writer))

    async def pour(self, source: asyncio.StreamReader, into: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                await self.flows.wait()
                into.write(data)
                await into.drain()
        finally:
            into.close()

    def cut(self, seconds: float) -> None:
        self.whole = False
        for end in self.ends:
            end.transport.abort()
        self.ends.clear()
        asyncio.get_running_loop().call_later(seconds, setattr, self, "whole", True)

    def silence(self, seconds: float) -> None:
        self.flows.clear()
        asyncio.get_running_loop().call_later(seconds, self.flows.set)


ENOUGH = {"least": 4, "expected": 5}
"""All five are there at the beginning; then four are enough."""


def wired(loopback, numbers, phase, then, round=2):
    """Start clients behind a cable, to which something happens when one of them begins a phase of a round."""
    cable = Cable(loopback.server.port)
    loopback.loop.wait(cable.lay())
    for number in range(RUN["clients"]):
        node = loopback.client(number, cable.port if number in numbers else None)
        if number == max(numbers):
            strike(loopback, node, phase, round, lambda: loopback.loop.call(then, cable))


def strike(loopback, node, phase, round, then):
    """Let something happen, once, when a client begins a phase of a round; the client goes on a little later."""
    real, once = node.runner.call, [then]

    def call(head, message, rest):
        name = head["function"] if head["program"] == "method" else f"{head['program']}.{head['function']}"
        if (name, head["round"]) == (phase, round) and once:
            once.pop()()
        return real(head, message, rest)

    node.runner.call = call


def test_keys_of_the_next_round_travel_with_this_one_and_the_bits_are_those_of_sums_without_masks(loopback, federate, monkeypatch):
    """They are stored nowhere: neither at the server nor at a client."""
    made, generate, waited, idle = [], AgreementKey.generate, [], Runner.idle
    monkeypatch.setattr(Runner, "idle", lambda self: waited.append(self.number) or idle(self))
    monkeypatch.setattr(AgreementKey, "generate", staticmethod(lambda: made.append(key := generate()) or key))
    run = {**RUN, **SECURE}
    loopback.serve(run)
    for number in range(5):
        loopback.client(number)
    assert loopback.finish().model_sha256 == federate(vectorize="off", **{**run, "aggregation": "secure-arithmetic"}).model_sha256
    phases = [(e["round"], e["phase"].partition("/")[0]) for e in loopback.server_lines.of("phase")]
    steps = [f"secagg.{step}" for step in ("advertise", "share", "masked", "consistency", "unmask")]
    assert phases == [(1, step) for step in steps] + [(round, step) for round in (2, 3) for step in steps[2:]]
    assert sorted(waited) == sorted([*range(5)] * 3)  # shares are sealed after the reply before
    stored, secrets = [path.read_bytes() for path in loopback.root.rglob("*") if path.is_file()], {key.to_bytes() for key in made}
    assert len(secrets) >= 2 * 5 * 4
    assert not [1 for content in stored for secret in secrets if secret in content or secret.hex().encode() in content]


@pytest.mark.parametrize("phase", ["train", "secagg.masked", *SLOW, slow("secagg.unmask")])
def test_a_cut_that_is_mended_in_time_changes_nothing(loopback, federate, phase):
    run = RUN if phase == "train" else {**RUN, **secure(phase)}
    loopback.serve(run, waiting={"reconnect": 10.0})
    wired(loopback, range(5), phase, lambda cable: cable.cut(0.3))
    there = loopback.finish()
    assert [record["dropped"] for record in there.history] == [0, 0, 0], there.history
    assert there.model_sha256 == federate(vectorize="off", **run).model_sha256
    assert len(loopback.client_lines.of("broken")) >= 5


@pytest.mark.parametrize("phase", [slow("train"), "secagg.masked"])
def test_who_is_cut_off_for_long_drops_out_and_comes_back(loopback, federate, phase):
    run = {**(RUN if phase == "train" else {**RUN, **SECURE}), "method": "fedavg"}

    def hold(record, total):  # the third round begins when the client is back
        if record["round"] == 2:
            loopback.wait(lambda: loopback.server.engine.present(4))

    loopback.serve(run, ENOUGH, {"reconnect": 0.2}, observer=hold)
    wired(loopback, [4], phase, lambda cable: cable.cut(1.0))
    there = loopback.finish()
    here = federate(drop=lambda round, client, function: (round, client, function) == (2, 4, phase), **run)
    assert there.model_sha256 == here.model_sha256
    assert [r["dropped"] for r in there.history] == [0, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["train", "secagg.masked"])
def test_a_network_that_falls_silent_is_noticed_and_survived(loopback, federate, phase):
    """No connection is closed; both ends find out by themselves, and dial again."""
    run = RUN if phase == "train" else {**RUN, **SECURE}
    loopback.serve(run, waiting={"reconnect": 15.0})
    wired(loopback, range(5), phase, lambda cable: cable.silence(4.0))
    assert loopback.finish().model_sha256 == federate(vectorize="off", **run).model_sha256
    assert loopback.client_lines.of("broken")


def revoke(loopback, number):
    Authority.open(loopback.root / "ca").revoke(f"client{number}", "keyCompromise")
    publish(loopback.root)


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_a_client_revoked_between_rounds_is_out_and_the_run_goes_on(loopback, aggregation):
    run = {**RUN, **(SECURE if aggregation == "secure" else {}), "rounds": 5}

    def watch(record, total):
        if record["round"] == 2:
            revoke(loopback, 4)
            loopback.wait(lambda: not loopback.server.engine.present(4))

    loopback.serve(run, ENOUGH, observer=watch)
    for number in range(5):
        loopback.client(number)
    summary = loopback.result.result(30)
    assert summary.rounds == 5
    assert {e["round"] for e in loopback.client_lines.of("answered") if e["client"] == 4} == {1, 2}
    assert [r["dropped"] for r in summary.history] == [0] * 5
    with pytest.raises(IdentityError, match="client4 is not, or no longer"):
        loopback.ends[4].result(5)
    refused = loopback.server_lines.of("refused")
    assert {(f["client"], f["reason"]) for f in refused} <= {(4, "certificate"), (None, "certificate")}
    assert "PERMISSION_DENIED" in {e["code"] for e in loopback.client_lines.of("broken")}


@pytest.mark.parametrize("phase", ["secagg.masked", "secagg.unmask", *SLOW])
def test_a_client_revoked_within_a_secure_sum_drops_out_there(loopback, federate, phase):
    """Its stream ends before it can answer; whatever the step, the others' sum is opened without it or with its work."""
    run = {**RUN, **secure(phase), "method": "fedavg"}

    def end():
        revoke(loopback, 4)
        loopback.wait(lambda: not loopback.server.engine.present(4))

    loopback.serve(run, ENOUGH, {"reconnect": 0.2})
    for number in range(5):
        loopback.client(number)
    strike(loopback, loopback.nodes[4], phase, 2, end)

    def drop(round, client, function):
        return client == 4 and ((round == 2 and function == phase) or (round == 3 and function == "secagg.advertise"))

    there = loopback.result.result(30)
    assert there.model_sha256 == federate(drop=drop, **run).model_sha256
    assert there.history[1]["dropped"] == 1
