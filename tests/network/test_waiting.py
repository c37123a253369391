"""How long the server waits, and what it does with those that are late; and times that are measured."""

import asyncio
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from paceline.core.errors import CohortError, QuorumError
from paceline.methods.stragglers.clip import Clip
from paceline.network import protocol as p
from paceline.network.connection import Dial
from tests.network.conftest import OPEN

RUN = {"method": "scaffold", "clients": 5, "cohort": 5, "rounds": 3}


def started(loopback, run, waiting, faults=(), **server):
    loopback.serve(run, server, waiting)
    for number in range(run["clients"]):
        loopback.client(number, faults=faults)
    began = time.monotonic()
    return loopback.finish(), time.monotonic() - began


def test_a_phase_ends_when_enough_have_answered(loopback):
    late = ("delay:client=4,phase=train,round=2,seconds=3",)
    summary, _ = started(loopback, RUN, {"share": 0.7, "grace": 1.0}, late)
    assert summary.history[1]["dropped"] >= 1
    assert any(4 in facts["clients"] for facts in loopback.server_lines.of("lost"))


def test_a_phase_ends_at_its_own_deadline(loopback):
    late = ("delay:client=4,phase=train,round=1,seconds=1.2",)
    summary, _ = started(loopback, RUN, {"phases": {"train": 0.4}}, late)
    assert summary.history[0]["dropped"] == 1
    assert loopback.server_lines.of("lost")[0]["clients"] == {4: "late"}


def test_too_few_in_time_is_a_named_error_after_three_attempts(loopback):
    with pytest.raises(QuorumError):
        started(loopback, {**RUN, "quorum": 5}, {"phases": {"train": 0.2}}, ("delay:client=4,seconds=0.5,phase=train",))
    assert [f["attempt"] for f in loopback.server_lines.of("phase")] == [0, 1, 2]


def test_a_server_that_waits_in_vain_says_so(loopback):
    loopback.serve(RUN, waiting={"start": 0.3})
    loopback.client(0)
    with pytest.raises(CohortError, match="1 clients are connected after 0 s; the minimum is 5"):
        loopback.result.result(10)


def test_measured_times_are_real_and_reach_the_clients(loopback):
    """Two slow clients, one by its link and one by its work; each knows it in the next round."""
    run = {"method": "clip", "clients": 4, "cohort": 4, "rounds": 2, "measured": True}
    faults = (
        "bandwidth:client=2,rate=3000,phase=train",
        "delay:client=3,seconds=0.5,phase=train",
        "slow:client=1,factor=30,phase=train",
    )
    summary, seconds = started(loopback, run, {}, faults)
    times = {n: node.runner.worker.memories[n]["_times"] for n, node in loopback.nodes.items()}
    assert times[2][1] > times[0][1] + 0.2  # 1.6 kB both ways at 3 kB/s, less what the bucket held
    assert times[3][1] > times[0][1] + 0.2
    assert times[1][0] > 5 * times[0][0]
    assert summary.total_seconds < seconds + 1.0
    assert all(r["network_seconds"] > 0 for r in summary.history)


def test_in_a_secure_sum_the_server_learns_no_working_times(loopback):
    run = {"method": "clip", "aggregation": "secure", "clients": 4, "cohort": 4, "rounds": 1, "measured": True}
    summary, _ = started(loopback, run, {}, ("slow:client=1,factor=30,phase=secagg.masked",))
    assert summary.history[0]["compute_seconds"] == 0.0
    times = {n: node.runner.worker.memories[n]["_times"] for n, node in loopback.nodes.items()}
    assert times[1][0] > 3 * times[0][0] > 0


def test_in_a_secure_sum_a_client_measures_its_own_link(loopback, federate):
    """And the server counts the bytes of what each client received for itself, such as its part of the model."""
    run = {"method": "clip", "aggregation": "secure", "clients": 4, "cohort": 4, "rounds": 1, "options": {"segmented": True}}
    slow = ("bandwidth:client=2,rate=3000,phase=secagg.masked",)
    summary, _ = started(loopback, {**run, "measured": True}, {}, slow)
    assert summary.bytes_down == pytest.approx(federate(**run).bytes_down, rel=0.3)
    times = {n: node.runner.worker.memories[n]["_times"] for n, node in loopback.nodes.items()}
    assert times[2][1] > times[0][1] + 0.2


def test_records_sealed_a_round_ahead_contain_measured_times(loopback, monkeypatch):
    """A client knows how long its vector took once it is sent, which is before its record for the next round."""
    seen, real = {}, Clip.fraction
    monkeypatch.setattr(Clip, "fraction", lambda self, me: seen.update({(me._id, me.round): me.peers}) or real(self, me))
    run = {"method": "clip", "aggregation": "secure", "clients": 4, "cohort": 4, "rounds": 2, "measured": True}
    faults = ("bandwidth:client=2,rate=3000,phase=secagg.masked,round=1", "slow:client=3,factor=30,phase=secagg.masked,round=1")
    summary, _ = started(loopback, run, {}, faults)
    phases = [e["phase"].partition("/")[0] for e in loopback.server_lines.of("phase") if e["round"] == 2]
    assert phases == ["secagg.masked", "secagg.consistency", "secagg.unmask"]
    fast, link, work = (seen[0, 2][client] for client in (1, 2, 3))
    assert link[1] > fast[1] + 0.2
    assert work[0] > 3 * fast[0] > 0
    assert set(json.loads((Path(summary.run) / "opened.json").read_text())["rounds"]) == {"2"}  # earlier ones are saved


def test_deadlines_of_measured_runs_are_real(loopback):
    run = {**RUN, "measured": True, "deadline": 0.5, "rounds": 1}
    summary, _ = started(loopback, run, {}, ("delay:client=4,phase=train,seconds=1.0",))
    assert summary.history[0]["dropped"] == 1
    assert summary.history[0]["round_seconds"] == pytest.approx(0.5, abs=0.01)


def test_clients_that_refuse_end_the_wait_with_their_reasons(loopback):
    loopback.serve({**RUN, "clients": 3, "cohort": 3})
    for number in range(3):
        loopback.client(number, policy=OPEN + "[allow]\nmethods = ['fedavg']")
    with pytest.raises(CohortError, match=r"refuse to participate.*'scaffold' is not allowed"):
        loopback.result.result(10)
    assert len(loopback.server_lines.of("refused_by_client")) >= 1


def test_one_client_that_refuses_is_left_out(loopback):
    run = {**RUN, "cohort": 5, "rounds": 2}
    loopback.serve(run, {"least": 4})
    for number in range(5):
        loopback.client(number, policy=OPEN + ("[allow]\nmethods = ['fedavg']" if number == 2 else ""))
    assert loopback.finish().rounds == 2
    assert set(loopback.server_lines.of("refused_by_client")[0]) == {"client", "reasons", "later"}


def test_a_client_that_receives_a_large_message_shows_that_it_is_there():
    """Pings queue up behind the message, so it cannot answer them."""

    async def run():
        dial = Dial(SimpleNamespace(received_at=math.inf), None, None)
        watching = asyncio.ensure_future(dial._watch(0.01))
        sent = [(await asyncio.wait_for(dial._out.get(), 10))[0] for _ in range(3)]
        watching.cancel()
        return sent

    assert asyncio.run(run()) == [p.PONG] * 3
