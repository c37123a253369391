"""A federation in this process: a server and clients with real certificates, over TLS on loopback."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from paceline.deploy.client.client import make_node
from paceline.deploy.identity.authority import Authority
from paceline.deploy.logs import Journal
from paceline.deploy.server.events import Notes
from paceline.deploy.server.server import FederationServer
from paceline.deploy.settings import ClientConfig, ServerConfig
from paceline.network import LoopThread
from paceline.run import RunConfig

OPEN = """
[secure_aggregation]
required = false
named_clients = true
[cohort]
least = 1
least_quorum = 1
"""
"""A policy that lets everything through."""

MOST = 6


class Lines(Journal):
    """Keeps events in a list."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, **facts: Any) -> None:
        self.lines.append((event, facts))

    def of(self, *events: str) -> list[dict[str, Any]]:
        return [facts for event, facts in self.lines if event in events]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's folder and clients' folders; copied for each test."""
    root = tmp_path_factory.mktemp("keys")
    ca = Authority.create(root / "ca", "test")
    ca.issue_server(["localhost", "127.0.0.1"]).write(root / "server")
    for number in range(MOST):
        ca.issue_client(f"client{number}").write(root / f"client{number}")
        assert ca.members()[number].id == number
    publish(root)
    return root


def publish(root: Path) -> None:
    """Give the authority's newest lists to the server and the clients."""
    for name in ("directory", "crl.pem"):
        shutil.copy(root / "ca" / name, root / "server" / name)
    for number in range(MOST):
        if (root / f"client{number}").exists():
            shutil.copy(root / "ca" / "directory", root / f"client{number}" / "directory")


class Loopback:
    """A server in a thread, and clients on one loop; `finish` waits for the end."""

    def __init__(self, root: Path, task: Any) -> None:
        self.root, self.task = root, task
        self.server_lines, self.client_lines = Lines(), Lines()
        self.loop = LoopThread("clients")
        self.nodes: dict[int, Any] = {}
        self.ends: dict[int, Future[str]] = {}
        self.result: Future[Any] = Future()
        self.pool = ThreadPoolExecutor(1)  # one for all: torch's tracing and seeding are not for several threads

    def serve(
        self, run: dict[str, Any], server: dict[str, Any] | None = None, waiting: dict[str, Any] | None = None, **parts: Any
    ) -> int:
        values = {"on_error": "drop", "task": "blobs", "clients": 5, "cohort": 5, "rounds": 2, "method": "fedavg", **run}
        config = ServerConfig.model_validate(
            {
                "server": {
                    "listen": "127.0.0.1:0",
                    "folder": self.root / "server",
                    "run": self.root / "run",
                    "heartbeat": 0.5,
                    "least": values["clients"],
                    **(server or {}),
                },
                "waiting": {"phase": 20, "reconnect": 2.0, "start": 20.0, **(waiting or {})},
            }
        )
        self.result = Future()
        notes = Notes(self.server_lines, None, parts.pop("state", None))
        self.server = FederationServer(config, RunConfig.build(values), notes, task=self.task, **parts)
        threading.Thread(target=self._go, args=(self.server, self.result), daemon=True).start()
        while not self.server.listening.wait(0.02):
            if self.result.done():
                self.result.result()
        return self.server.port

    @staticmethod
    def _go(server: FederationServer, result: Future[Any]) -> None:
        try:
            result.set_result(server.go())
        except BaseException as error:
            result.set_exception(error)

    def client(self, number: int, port: int | None = None, policy: str = OPEN, keys: str = "", **options: Any) -> Any:
        (self.root / f"policy{number}.toml").write_text(policy)
        values = {
            "server": f"localhost:{port or self.server.port}",
            "folder": self.root / (keys or f"client{number}"),
            "state": self.root / f"state{number}",
            "policy": self.root / f"policy{number}.toml",
            "first": 0.05,
            "most": 0.3,
            "private_rounding": False,
            **options,
        }
        config = ClientConfig.model_validate({"client": values, "data": {"own": False}})
        node = make_node(config, self.client_lines, task=self.task, pool=self.pool)
        self.nodes[number] = node
        self.ends[number] = asyncio.run_coroutine_threadsafe(node.run(), self.loop._loop)
        return node

    @staticmethod
    def wait(condition: Callable[[], Any], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.02)

    def finish(self, seconds: float = 30.0) -> Any:
        summary = self.result.result(seconds)
        for end in self.ends.values():
            end.result(5.0)
        return summary

    def close(self) -> None:
        if hasattr(self, "server"):
            self.server.stop()
        for node in self.nodes.values():
            self.loop.call(lambda node=node: asyncio.ensure_future(node.stop()))
        self.loop.stop()


@pytest.fixture
def make_loopback(keys: Path, tmp_path: Path, task: Any):
    """Return a function that makes federations beside each other."""
    made: list[Loopback] = []

    def go() -> Loopback:
        root = tmp_path / ("f" if not made else f"f{len(made)}")
        shutil.copytree(keys, root)
        made.append(Loopback(root, task))
        return made[-1]

    yield go
    for each in made:
        each.close()


@pytest.fixture
def loopback(make_loopback: Callable[[], Loopback]) -> Loopback:
    """Return a federation whose parts are started one by one."""
    return make_loopback()


@pytest.fixture
def networked(loopback: Loopback):
    """Return a function that carries out a run over the network and returns its summary."""

    def go(run: dict[str, Any] | None = None, faults: tuple[str, ...] = (), **clients: Any) -> Any:
        run = run or {}
        loopback.serve(run, {"faults": faults}, clients.pop("waiting", None))
        for number in range(run.get("clients", 5)):
            loopback.client(number, faults=faults, **clients)
        return loopback.finish()

    return go


@pytest.fixture
def params(loopback):
    from paceline.core.layout import Layout
    from paceline.core.params import Params

    module = loopback.task.build(0)
    return Params.of(module, Layout.of(module, None, "average"))


@pytest.fixture
def liar(loopback):
    from tests.network.liar import Liar

    made = []

    def make(**options):
        made.append(Liar(loopback, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def sixteen(loopback):
    """Give a federation members up to sixteen."""
    ca = Authority.open(loopback.root / "ca")
    for number in range(MOST, 16):
        ca.issue_client(f"client{number}").write(loopback.root / f"client{number}")
    for name in ("directory", "crl.pem"):
        shutil.copy(loopback.root / "ca" / name, loopback.root / "server" / name)
    for number in range(16):
        shutil.copy(loopback.root / "ca" / "directory", loopback.root / f"client{number}" / "directory")
    return loopback
