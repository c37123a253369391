"""No channel of ours takes the environment's proxy unless it is told to; then it does, and says so."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from paceline.core.address import Address
from paceline.core.errors import EngineError
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.enrolment import Invitation
from paceline.deploy.identity.enrolment_client import enrol, renew

VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy")


class Proxy:
    """Knows CONNECT, and where it was asked to go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._carry, args=(self._server.accept()[0],), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += near.recv(1)
        method, target, _ = head.decode().split("\r\n")[0].split()
        self.asked.append(f"{method} {target}")
        far = socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])))
        near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        threading.Thread(target=self._pump, args=(far, near), daemon=True).start()
        self._pump(near, far)

    @staticmethod
    def _pump(a: socket.socket, b: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def proxy():
    made = Proxy()
    yield made
    made.close()


@pytest.fixture
def serving(loopback, monkeypatch):
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in VARIABLES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there
    loopback.serve({"clients": 7, "cohort": 2, "rounds": 1}, {"ca": loopback.root / "ca", "enrol": "127.0.0.1:0", "least": 2})
    ca = Authority.open(loopback.root / "ca")
    Invitation(ca.token("newcomer"), ca.trust, Address("localhost", loopback.server.enrol_port)).save(loopback.root / "i")
    return loopback


def test_the_environments_proxy_catches_nothing(serving):
    assert enrol(serving.root / "client6", serving.root / "i").client == 6
    assert renew(serving.root / "client1", Address("localhost", serving.server.renew_port)).client == 1
    for number in (1, 6):
        serving.client(number)
    assert serving.finish().rounds == 1
    assert not serving.client_lines.of("broken")


@pytest.mark.parametrize("named", [True, False])
def test_a_proxy_that_is_asked_for_carries_everything(serving, proxy, monkeypatch, named):
    for name in VARIABLES:
        monkeypatch.setenv(name, "http://127.0.0.1:9" if named else proxy.url)
    chosen, server = proxy.url if named else "environment", serving.server
    assert enrol(serving.root / "client6", serving.root / "i", proxy=chosen).client == 6
    assert renew(serving.root / "client1", Address("localhost", server.renew_port), chosen).client == 1
    for number in (1, 6):
        serving.client(number, proxy=chosen)
    assert serving.finish().rounds == 1
    asked = [f"CONNECT localhost:{port}" for port in (server.enrol_port, server.renew_port, server.port, server.port)]
    assert sorted(proxy.asked) == sorted(asked)


def test_a_proxy_that_is_dead_is_named(serving):
    with pytest.raises(EngineError, match="could be requested at localhost"):
        renew(serving.root / "client1", Address("localhost", serving.server.renew_port), "environment")
