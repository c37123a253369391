"""Clocks that are wrong, differ, or jump: certificates hold within the slack, deadlines never look at the wall clock."""

from __future__ import annotations

import itertools
import shutil
import time
from datetime import UTC, datetime, timedelta

import pytest

from paceline.core.engine import Receipt
from paceline.core.errors import EngineError, IdentityError
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.pki import utc_now
from paceline.deploy.server.database import ServerState
from paceline.deploy.server.events import Notes
from paceline.network.engine import Stopped
from tests.network.conftest import OPEN, Lines

RUN = {"method": "scaffold", "clients": 3, "cohort": 3, "rounds": 3}


def found(root, ahead: timedelta) -> None:
    """Make all keys anew, by an authority whose clock is ahead of everybody's."""
    for name in ("ca", "server", *(f"client{n}" for n in range(3))):
        shutil.rmtree(root / name)
    ca = Authority.create(root / "ca", "test", clock=lambda: utc_now() + ahead)
    ca.issue_server(["localhost"]).write(root / "server")
    for number in range(3):
        ca.issue_client(f"client{number}").write(root / f"client{number}")
    for name in ("directory", "crl.pem"):
        shutil.copy(root / "ca" / name, root / "server" / name)
    for number in range(3):
        shutil.copy(root / "ca" / "directory", root / f"client{number}" / "directory")


@pytest.mark.parametrize("minutes", [4, -240])
def test_an_authority_whose_clock_is_a_little_ahead_or_far_behind_is_no_harm(loopback, federate, minutes):
    found(loopback.root, timedelta(minutes=minutes))
    loopback.serve(RUN)
    for number in range(3):
        loopback.client(number)
    assert loopback.finish().model_sha256 == federate(vectorize="off", **RUN).model_sha256


def test_a_certificate_that_does_not_hold_yet_is_named(loopback):
    """So a client learns at once that its own clock is behind, or the authority's ahead."""
    found(loopback.root, timedelta(hours=2))
    loopback.serve(RUN)
    with pytest.raises(IdentityError, match=r"this client's certificate is valid only from .*clock"):
        loopback.client(0)


def test_a_server_that_is_not_trusted_just_now_is_told_apart_in_the_log(loopback, monkeypatch):
    found(loopback.root, timedelta(hours=2))
    loopback.serve(RUN)
    monkeypatch.setattr("paceline.deploy.client.client.own_certificate", lambda certificate: None)
    loopback.client(0, attempts=1)
    with pytest.raises(EngineError, match=r"no welcome in 1 attempt$"):
        loopback.ends[0].result(10)
    assert "certificate" in loopback.client_lines.of("broken")[0]["why"].lower()


def test_clients_refused_by_a_server_with_a_wrong_clock_come_in_once_it_is_right(loopback, federate):
    loopback.serve(RUN)
    loopback.server.gate.clock = lambda: utc_now() - timedelta(hours=3)
    for number in range(3):
        loopback.client(number)
    loopback.wait(lambda: len(loopback.server_lines.of("refused")) >= 3)
    assert "is valid only from" in loopback.server_lines.of("refused")[0]["why"]
    loopback.server.gate.clock = utc_now
    assert loopback.finish().model_sha256 == federate(vectorize="off", **RUN).model_sha256


def test_wall_clocks_that_jump_change_nothing(loopback, federate, monkeypatch):
    """Back and forth by days, at every look; a server that is stopped and started meanwhile goes on as it should."""
    jumps = itertools.cycle([0.0, 9 * 86400.0, 3600.0, 4 * 86400.0])
    real = time.time

    def jumping() -> float:
        return real() + next(jumps)

    monkeypatch.setattr(time, "time", jumping)
    state = loopback.root / "state.db"

    def stop(record, total):
        if record["round"] == 2:
            loopback.server.stop()

    run = {**RUN, "rounds": 4, "aggregation": "secure"}
    port = loopback.serve(run, state=ServerState(state, jumping), observer=stop)
    loopback.server.gate.clock = lambda: datetime.fromtimestamp(jumping(), UTC)
    for number in range(3):
        node = loopback.client(number)
        node.runner.rules.clock = lambda: datetime.fromtimestamp(jumping(), UTC)
    with pytest.raises(Stopped):
        loopback.result.result(20)
    loopback.serve(run, {"listen": f"127.0.0.1:{port}"}, state=ServerState(state, jumping))
    summary = loopback.finish()
    assert summary.model_sha256 == federate(vectorize="off", **run).model_sha256
    assert summary.wall_seconds < 60


def test_who_was_kept_is_told_by_the_last_start_not_by_the_clock(tmp_path):
    clock = itertools.count(1e9, -3600.0)
    state = ServerState(tmp_path / "state.db", lambda: next(clock))
    for start, attempt, kept in ((1, 2, [0, 1]), (2, 0, [1, 2]), (3, 1, [0, 2])):
        notes = Notes(Lines(), None, state)
        notes.begin("run", {}, "", start)
        notes.phase(5, attempt, "train/1", [0, 1, 2])
        notes.answers(5, attempt, "train/1", [Receipt(0)])
        notes.committed(5, attempt, dict.fromkeys(kept, ()))
        assert notes.counted(5) == dict.fromkeys(kept, (5, ()))
        notes.close()


def test_hours_close_and_open_without_a_new_stream(loopback, monkeypatch):
    """A client outside of its hours stays connected, is not asked, and comes in when they begin."""
    monkeypatch.setattr("paceline.network.job_queue.AGAIN", 0.05)
    now = [datetime(2026, 3, 4, 12, 0, tzinfo=UTC)]  # a Wednesday

    def watch(record, total):
        if record["round"] == 2:
            now[0] += timedelta(hours=12)
            loopback.wait(lambda: not loopback.server.engine.present(2))
        if record["round"] == 4:
            now[0] += timedelta(hours=12)
            loopback.wait(lambda: loopback.server.engine.present(2))

    loopback.serve({**RUN, "rounds": 6}, {"least": 2}, observer=watch)
    node = loopback.client(2, policy=OPEN + "[hours]\nwindows = ['mon-fri 13:00-18:00']\n")
    node.runner.rules.clock = lambda: now[0]
    loopback.wait(lambda: loopback.server_lines.of("refused_by_client"))
    (first,) = loopback.server_lines.of("refused_by_client")
    assert first["later"] is True
    assert "it is Wed 12:00 in UTC" in first["reasons"][0]
    now[0] += timedelta(hours=2)
    loopback.wait(lambda: loopback.server.engine.present(2))
    for number in range(2):
        loopback.client(number)
    assert loopback.finish().rounds == 6
    answered = {e["round"] for e in loopback.client_lines.of("answered") if e["client"] == 2}
    assert {1, 2} & answered
    assert {5, 6} <= answered
    assert not {3, 4} & answered
    assert len(loopback.server_lines.of("connected")) == 3
