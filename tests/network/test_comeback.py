"""When a client comes back: later each time while it is thrown out, and never once it was revoked."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from datetime import timedelta

import grpc
import pytest

from paceline.core.errors import IdentityError
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.pki import utc_now
from paceline.network.client_stream import Node
from paceline.network.server_session import StreamSession
from paceline.store.toml import to_toml
from tests.network.conftest import publish

RUN = {"clients": 3, "cohort": 3, "rounds": 3}


@pytest.fixture
def pauses(monkeypatch):
    """How often each pause says that this client has failed; none lasts long."""
    seen: list[int] = []

    async def pause(self, failed):
        seen.append(failed)
        await asyncio.sleep(0.01)

    monkeypatch.setattr(Node, "_pause", pause)
    return seen


def thrown_out(loopback) -> None:
    """End every stream that is open now."""

    def close() -> None:
        for session in list(loopback.server.engine.hub.sessions.values()):
            session.close(grpc.StatusCode.CANCELLED, "out")

    loopback.server._loop.call(close)


def test_a_welcome_alone_does_not_begin_the_back_off_anew(loopback, pauses):
    loopback.serve(RUN)
    loopback.client(0)
    for times in range(1, 6):
        loopback.wait(lambda: loopback.server.engine.hub.sessions)
        thrown_out(loopback)
        loopback.wait(lambda times=times: len(pauses) >= times)
    assert pauses[:5] == [1, 2, 3, 4, 5]


def test_a_stream_that_is_closed_while_its_welcome_is_written_ends_with_the_reason(loopback, pauses, monkeypatch):
    """Its status follows the frame that is under way, and the client does not wait for a welcome until its time is up."""
    write, closed = StreamSession.write, []

    async def close_first(session):
        asyncio.get_running_loop().call_soon(session.close, grpc.StatusCode.UNAVAILABLE, f"out {len(closed)}")
        closed.append(session)
        await write(session)

    monkeypatch.setattr(StreamSession, "write", close_first)
    loopback.serve(RUN)
    loopback.client(0)
    loopback.wait(lambda: len(pauses) >= 20, 10.0)
    assert {facts["why"].rstrip("0123456789") for facts in loopback.client_lines.of("broken")} == {"out "}


def test_a_client_that_goes_while_its_stream_is_being_closed_is_gone(loopback, monkeypatch):
    """It cancels the stream after it has said that it leaves, perhaps before the server has ended its own tasks."""
    write = StreamSession.write

    async def slowly(session):
        try:
            await write(session)
        finally:
            await asyncio.sleep(0.5)

    monkeypatch.setattr(StreamSession, "write", slowly)
    loopback.serve(RUN)
    loopback.client(0)
    hub = loopback.server.engine.hub
    loopback.wait(lambda: hub.ready() == [0])
    loopback.server._loop.call(hub.sessions[0].close, grpc.StatusCode.OK, "it leaves")
    loopback.ends.pop(0).cancel()
    loopback.wait(lambda: not hub.sessions, 5.0)
    assert [facts["why"] for facts in loopback.server_lines.of("disconnected")] == ["it leaves"]


def test_a_while_of_good_service_does(loopback, pauses):
    loopback.serve(RUN)
    node = loopback.client(0)
    node.settings = dataclasses.replace(node.settings, good=0.3)
    for good in (False, False, True, False):
        loopback.wait(lambda: loopback.server.engine.hub.ready() == [0])
        time.sleep(0.4 if good else 0.0)
        before = len(pauses)
        thrown_out(loopback)
        loopback.wait(lambda before=before: len(pauses) > before)
    assert pauses[:4] == [1, 2, 1, 2]


def test_an_answered_call_does(loopback, pauses):
    def out(record, total):
        if record["round"] < total:
            thrown_out(loopback)

    loopback.serve(RUN, observer=out)
    for number in range(3):
        loopback.client(number)
    assert loopback.finish().rounds == 3
    assert set(pauses) == {1}


def test_a_client_that_is_revoked_while_it_takes_part_ends(loopback):
    loopback.serve(RUN)
    loopback.client(1)
    loopback.wait(lambda: loopback.server.engine.hub.ready() == [1])
    Authority.open(loopback.root / "ca").revoke("client1", "keyCompromise")
    publish(loopback.root)
    with pytest.raises(IdentityError, match=r"no longer admits this client: client client1 is not, or no longer"):
        loopback.ends[1].result(10)
    assert loopback.client_lines.of("broken")[-1]["code"] == "PERMISSION_DENIED"


def test_a_certificate_that_was_revoked_and_a_client_that_stays(loopback):
    """Its other certificate is good, so the client is in the directory; the reason names the revocation."""
    ca = Authority.open(loopback.root / "ca")
    serial = next(row.serial for row in ca.certificates() if row.names == "client1")
    ca.revoke(serial, "superseded")
    publish(loopback.root)
    loopback.serve(RUN)
    loopback.client(1)
    with pytest.raises(IdentityError, match="was revoked"):
        loopback.ends[1].result(10)


@pytest.mark.parametrize("ahead", [timedelta(days=40), timedelta(days=400), -timedelta(hours=3)])
def test_a_stale_list_or_a_wrong_clock_of_the_server_is_tried_again(loopback, ahead):
    loopback.serve(RUN)
    loopback.server.gate.clock = lambda: utc_now() + ahead
    for number in range(3):
        loopback.client(number)
    loopback.wait(lambda: len(loopback.client_lines.of("broken")) >= 6)
    assert {e["code"] for e in loopback.client_lines.of("broken")} == {"UNAUTHENTICATED"}
    loopback.server.gate.clock = utc_now
    assert loopback.finish().rounds == 3


def test_a_certificate_that_ends_while_nobody_answers_ends_the_client(loopback, monkeypatch):
    loopback.serve(RUN)
    node = loopback.client(0, server="localhost:1")
    loopback.wait(lambda: loopback.client_lines.of("broken"))
    assert not loopback.ends[0].done()
    monkeypatch.setattr("paceline.deploy.client.client.pki.utc_now", lambda: utc_now() + timedelta(days=400))
    with pytest.raises(IdentityError, match=r"is valid only from .*enrol again"):
        loopback.ends[0].result(10)
    assert node.welcomed is False


def test_the_process_of_a_revoked_client_ends_with_its_exit_code(loopback):
    loopback.serve(RUN)
    Authority.open(loopback.root / "ca").revoke("client2")
    for name in ("directory", "crl.pem"):  # the client does not know yet
        shutil.copy(loopback.root / "ca" / name, loopback.root / "server" / name)
    mine = {"server": f"localhost:{loopback.server.port}", "folder": "client2", "state": "state"}
    (loopback.root / "c.toml").write_text(to_toml({"client": mine, "data": {"own": False}}))
    words = [sys.executable, "-c", "from paceline.cli import main; main()", "client", "--config", str(loopback.root / "c.toml")]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ))
    assert ended.returncode == 14
    assert "no longer admits this client" in ended.stderr.replace("\n", " ")
