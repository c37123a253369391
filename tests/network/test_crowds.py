"""Peers that hold enrolment's ports: silent, half-open and trickling ones keep nobody from enrolling or renewing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.core.address import Address
from paceline.core.errors import EngineError, StoreError
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.call_limits import Bounds, CallLimiter, TooManyCalls
from paceline.deploy.identity.enrolment import Invitation
from paceline.deploy.identity.enrolment_client import enrol, renew
from paceline.deploy.identity.enrolment_server import peer_of
from paceline.network import LoopThread
from paceline.network.tls import through

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STATUS = grpc.StatusCode


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def call(method: str, stream: int = 1) -> bytes:
    """The headers of a call, and the beginning of a message that says it has 1000 bytes."""
    fields = {":method": "POST", ":scheme": "https", ":path": f"/paceline.Enrolment/{method}", ":authority": "localhost"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    block = b"".join(b"\0" + bytes([len(k)]) + k.encode() + bytes([len(v)]) + v.encode() for k, v in fields.items())
    return frame(1, 4, stream, block) + frame(0, 0, stream, b"\0" + struct.pack(">I", 1000) + b"x")


class Peer:
    """One connection from an address of loopback, driven by hand as far as `kind` says."""

    def __init__(self, port: int, kind: str, source: str = "127.0.0.1", method: str = "Redeem", folder: Path | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(source, 0))
        if kind == "bare":
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        if folder is not None:
            context.load_cert_chain(folder / "client.pem", folder / "client.key")
        if kind == "half":
            self.socket.sendall(b"\x16\x03\x01\x02\x00\x01\x00")  # the beginning of a handshake
            return
        self.socket = context.wrap_socket(self.socket)
        if kind == "tls":
            return
        self.socket.sendall(PREFACE + frame(4, 0, 0))
        if kind in ("silent", "trickle"):
            self.socket.sendall(call(method))

    def trickle(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.sendall(frame(0, 0, 1, b"x"))

    def ended(self, seconds: float) -> bool:
        """Whether the server ends the connection in time."""
        self.socket.settimeout(seconds)
        end = time.monotonic() + seconds
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end:
                try:
                    if not self.socket.recv(65536):
                        return True
                except TimeoutError:
                    return False
            return False
        return True

    def close(self) -> None:
        self.socket.close()


KINDS = ("bare", "half", "tls", "preface", "silent", "trickle")


@pytest.fixture
def serving(loopback):
    loopback.serve({"clients": 3, "cohort": 3, "rounds": 1}, {"ca": loopback.root / "ca", "enrol": "127.0.0.1:0"})
    return loopback


def invited(loopback, name: str) -> Path:
    ca, path = Authority.open(loopback.root / "ca"), loopback.root / f"{name}.invite"
    Invitation(ca.token(name), ca.trust, Address("localhost", loopback.server.enrol_port)).save(path)
    return path


@pytest.fixture
def limiter():
    """Return a function that opens peers; all are closed in the end."""
    peers: list[Peer] = []

    def open_(*words, **parts) -> Peer:
        peers.append(Peer(*words, **parts))
        return peers[-1]

    yield open_
    for peer in peers:
        peer.close()


def test_dozens_of_idle_peers_keep_nobody_out(serving, limiter):
    """From the honest clients' own address and from others; at the enrolment's port and at the renewals'."""
    server, folder = serving.server, serving.root / "client5"
    peers = [
        limiter(server.enrol_port, kind, f"127.0.0.{2 + n % 30}" if n % 2 else "127.0.0.1") for n in range(15) for kind in KINDS
    ]
    peers += [limiter(server.renew_port, kind) for kind in ("bare", "half") for _ in range(20)]
    peers += [
        limiter(server.renew_port, kind, method="Renew", folder=folder)
        for kind in ("silent", "trickle", "preface")
        for _ in range(10)
    ]
    serving.wait(lambda: server._enrolment.enrolling.limiter.open > 20)
    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        new = pool.submit(enrol, serving.root / "new", invited(serving, "newcomer"))
        again = pool.submit(renew, serving.root / "client1", Address("localhost", server.renew_port))
        own = pool.submit(renew, folder, Address("localhost", server.renew_port))  # even whose certificate it is
        while not (new.done() and again.done() and own.done()):
            for peer in peers:
                peer.trickle()
            time.sleep(0.05)
    assert (new.result().client, again.result().client, own.result().client) == (6, 1, 5)
    assert time.monotonic() - began < 5
    for number in range(3):  # and the run itself
        serving.client(number)
    assert serving.finish().rounds == 1


def test_who_is_ended_is_told_why(serving):
    """More open calls than one peer may have end the oldest, with a status and a clear text."""
    credentials, over = grpc.ssl_channel_credentials(serving.server.trust.roots), threading.Event()
    where, options = f"localhost:{serving.server.enrol_port}", [*through(), ("grpc.use_local_subchannel_pool", 1)]
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.secure_channel(where, credentials, options)) for _ in range(2)]  # a connection has 8
        methods = [channel.stream_unary("/paceline.Enrolment/Redeem") for channel in channels]
        calls = [methods[n % 2].future((over.wait() for _ in range(1)), timeout=20) for n in range(9)]
        serving.wait(lambda: any(c.done() for c in calls))
        (error,) = [c.exception() for c in calls if c.done()]
        assert error.code() is STATUS.RESOURCE_EXHAUSTED
        assert "more than 8 calls are open for 127.0.0.1; try again" in error.details()
        assert serving.server._enrolment.enrolling.limiter.open == 8
        for each in calls:
            each.cancel()
        over.set()
    assert serving.server_lines.of("refused")[0]["reason"] == "crowd"


def test_silence_ends_by_itself(loopback, limiter, monkeypatch):
    short = Bounds(read=0.4, idle=1.0, age=3.0)
    monkeypatch.setattr("paceline.deploy.identity.enrolment_server.Bounds", lambda: short)
    loopback.serve({"clients": 3, "cohort": 3, "rounds": 1}, {"ca": loopback.root / "ca", "enrol": "127.0.0.1:0"})
    port = loopback.server._enrolment.enrolling
    peers = {kind: limiter(loopback.server.enrol_port, kind) for kind in KINDS}
    loopback.wait(lambda: port.limiter.open == 2)
    end = time.monotonic() + 5
    while port.limiter.open and time.monotonic() < end:
        peers["trickle"].trickle()
        time.sleep(0.05)
    assert port.limiter.open == 0
    assert {f["reason"] for f in loopback.server_lines.of("refused")} == {"silent"}
    assert all(peers[kind].ended(8) for kind in KINDS)


def test_a_burst_of_honest_clients_is_served(serving):
    """More at a time than one address may have open: none is lost, since a request is there at once."""
    paths = [invited(serving, f"site{n}") for n in range(24)]
    with ThreadPoolExecutor(24) as pool:
        made = list(pool.map(lambda p: enrol(serving.root / f"at-{p.stem}", p), paths))
    assert sorted(m.client for m in made) == list(range(6, 30))


def test_faults_of_the_server_are_told_apart_from_refusals(serving, monkeypatch):
    def broken(*_, **__):
        raise StoreError("/secret/place cannot be written")

    monkeypatch.setattr("paceline.deploy.identity.authority.Authority.redeem", broken)
    with pytest.raises(EngineError, match="cannot issue certificates at present") as reported:
        enrol(serving.root / "new", invited(serving, "newcomer"))
    assert "secret" not in str(reported.value)
    assert "secret" in serving.server_lines.of("refused")[0]["why"]


def test_refusals_do_not_fill_the_log(serving):
    roots = serving.server.trust.roots
    with grpc.secure_channel(f"localhost:{serving.server.enrol_port}", grpc.ssl_channel_credentials(roots), through()) as channel:
        redeem = channel.unary_unary("/paceline.Enrolment/Redeem")
        for _ in range(40):
            with pytest.raises(grpc.RpcError):
                redeem(b"junk", timeout=5)
    assert len(serving.server_lines.of("refused")) == 10


def test_renewals_without_enrolment(loopback):
    loopback.serve({"clients": 3, "cohort": 3, "rounds": 1}, {"ca": loopback.root / "ca", "renew": "127.0.0.1:0"})
    assert loopback.server.enrol_port == 0
    assert renew(loopback.root / "client1", Address("localhost", loopback.server.renew_port)).client == 1


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:[::1]:4711", "::/64"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4711", "2001:db8:1:2::/64"),
        ("ipv6:[fe80::1%25eth0]:4711", "fe80::/64"),
        ("unix:/some/path", "/some/path"),
        ("", ""),
    ],
)
def test_peers_are_told_by_their_addresses(peer, address):
    assert peer_of(SimpleNamespace(peer=lambda: peer)) == address


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["enter", "leave", "work"])), max_size=80))
def test_the_bounds_hold_whatever_comes(steps):
    loop = LoopThread()
    try:
        loop.call(_walk, steps)
    finally:
        loop.stop()


def _walk(steps):
    bounds = Bounds(each=3, all=6, busy=2)
    limiter, held = CallLimiter(bounds), []
    for who, step in steps:
        with contextlib.suppress(TooManyCalls):
            if step == "enter":
                held.append(limiter.enter(who))
            elif held and step == "leave":
                limiter.leave(held.pop(0))
            elif held and not held[-1].closed.done():
                limiter.work(held[-1])
        assert limiter.open <= bounds.all
        assert len(limiter._busy) <= bounds.busy
        for peer in "abcdefgh":
            assert len(limiter._idle.get(peer, ())) + sum(t.who == peer for t in limiter._busy) <= bounds.each
    for ticket in held:
        limiter.leave(ticket)
    assert limiter.open == 0


def test_one_peer_cannot_push_out_another():
    """With the port full, room is made by who has most of the calls."""

    async def go():
        limiter = CallLimiter(Bounds(each=100, all=10))
        honest = limiter.enter("honest")
        greedy = [limiter.enter("greedy") for _ in range(50)]
        assert not honest.closed.done()
        assert sum(not t.closed.done() for t in greedy) == 9

    asyncio.run(go())
