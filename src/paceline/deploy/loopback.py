"""Complete federation on one machine: authority, server and clients as separate processes, connected over TLS.

A process killed by an injected fault is restarted, as systemd would do. The parent process only starts, monitors and
cleans up; everything else uses the same configuration files and code as a real federation. Keys, configurations and
logs are in a temporary folder. The clients' state is in the run's folder until the run has ended, so that the run can
be resumed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from paceline.core.address import Address
from paceline.core.errors import ConfigError, EngineError, PacelineError, StoreError, by_name
from paceline.core.importing import is_import_path
from paceline.core.processes import NAME, UNGUARDED, check_main, importable, start, start_method, unguarded
from paceline.core.wording import for_commands
from paceline.deploy.federated_fields import check_federated
from paceline.deploy.identity.authority import Authority
from paceline.deploy.processes import child
from paceline.network.fault_injection import KILL, Fault
from paceline.results.resuming import extend
from paceline.run import Observer, Result, RunConfig
from paceline.store import RunFolder
from paceline.store.toml import to_toml
from paceline.trackers.base import Observers, Watch

__all__ = ["LoopbackFederation", "federate", "resume"]

KEPT = "clients"
"""Subfolder of the run that contains the clients' state."""

_LOST = 255
"""Exit code that `multiprocessing` reports for children whose fork server was killed."""

_OPEN = {"secure_aggregation": {"required": False, "named_clients": True}, "cohort": {"least": 1, "least_quorum": 1}}


@dataclass
class _Party:
    """One server or client process, and the number of its starts."""

    role: str
    config: Path
    log: Path
    values: dict[str, Any]
    faulted: bool
    starts: int = 0
    process: BaseProcess | None = None
    back: float = 0.0

    def start(self, context: BaseContext, script: bool) -> None:
        """Start the process, without kill faults after the first start. `script` makes it import the main script."""
        part = self.values["server" if self.role == "server" else "client"]
        if self.starts:
            part["faults"] = [text for text in part["faults"] if not text.startswith("kill")]
        self.config.write_text(to_toml(self.values))
        self.starts += 1
        made: Any = context.Process  # type: ignore[attr-defined]
        self.process = made(
            target=child, args=(self.role, self.config, self.log, for_commands()), name=f"{NAME} {self.role}", daemon=True
        )
        start(self.process, script)

    def last_lines(self) -> str:
        """Return the last lines of its log that are no events: those of a traceback."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join([line for line in text.splitlines() if not line.startswith("{")][-6:])

    def error(self) -> PacelineError | None:
        """Return the error that ended the process; None if it was another one than Paceline's."""
        place = self.log.with_suffix(".error")
        if not place.exists():
            return None
        name, message = json.loads(place.read_text())
        return by_name(name, message if self.role == "server" else f"{self.role}: {message}")


@dataclass
class LoopbackFederation:
    """Federation on the loopback interface.

    Args:
        config: configuration of the run.
        place: folder of the run, created by the server.
        faults: injected faults, see `paceline.network.fault_injection`.
        server, waiting: further fields of the server's configuration.
        client: further fields of the clients' configuration.
        policy: policy of the clients; permits everything by default.
        back: seconds after which a killed process is restarted.
        keep: retain keys, configurations and logs next to the run, in ``PLACE.parties``.
    """

    config: RunConfig
    place: Path
    faults: Sequence[str] = ()
    server: dict[str, Any] = field(default_factory=dict)
    waiting: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=lambda: dict(_OPEN))
    back: float = 0.2
    keep: bool = False

    def __post_init__(self) -> None:
        self._met = [Fault.parse(text) for text in self.faults]
        for fault in self._met:
            if fault.client is not None and fault.client >= self.config.clients:
                raise ConfigError(f"fault {fault.text!r}: there is no client {fault.client} among {self.config.clients}")
        self.parties: list[_Party] = []
        self._shown = 0

    def run(self, observer: Observer | None = None) -> Result:
        """Execute or resume the run and return its summary.

        Args:
            observer: called with each round's record.

        Raises:
            PacelineError: the error with which the server or a client failed.
            StoreError: another process holds the run's folder.
        """
        check_federated(self.config)
        RunFolder.check_name(self.place.name)
        check_main(starts=True)
        self._script = self.config.method.startswith("__main__:")
        if self._script and not importable():
            raise EngineError(f"method {self.config.method!r} is defined in an interactive or piped script; move it to a module")
        if self.place.exists():
            RunFolder(self.place).hold().release()
        root = Path(tempfile.mkdtemp(prefix="paceline-"))
        if self.keep:
            kept = self.place.with_name(self.place.name + ".parties")
            shutil.rmtree(kept, ignore_errors=True)
            root = (
                root.rename(kept)
                if root.stat().st_dev == self.place.parent.resolve().stat().st_dev
                else Path(shutil.move(root, kept))
            )
        done = False
        try:
            self._found(root)
            context = _context()
            for party in self.parties:
                party.start(context, self._script)
            self._watch(context, observer)
            summary = self._summary(observer)
            done = True
        finally:
            self._end(5.0 if done else 0.0)
            if not self.keep:
                shutil.rmtree(root, ignore_errors=True)
        if not self.keep:
            shutil.rmtree(self.place / KEPT, ignore_errors=True)
        return summary

    # -- the parts -----------------------------------------------------------------------------
    def _found(self, root: Path) -> None:
        """Create keys and configurations."""
        ca = Authority.create(root / "ca", "loopback")
        ca.issue_server(["localhost", "127.0.0.1"]).write(root / "server")
        for number in range(self.config.clients):
            ca.issue_client(f"client{number}").write(root / f"client{number}")
        for name in ("directory", "crl.pem"):
            shutil.copy(root / "ca" / name, root / "server" / name)
        port = _free_port()
        (root / "policy.toml").write_text(to_toml(self._allowing() | self.policy))
        run = self.config.model_dump(mode="json", exclude_none=True)
        if (start := run.get("start_from")) is not None and (place := Path(start).expanduser()).exists():
            run["start_from"] = str(place.resolve())  # the server is another process
        least = {"least": self.config.clients, "listen": str(Address("127.0.0.1", port)), "heartbeat": 2.0}
        files = {"folder": "server", "run": str(self.place.resolve())}
        values = {"server": {**least, **files, **self.server, "faults": self._of(None)}, "run": run}
        values["waiting"] = {"start": 300.0, **self.waiting}
        self.parties = [self._party("server", root, values)]
        kept = self.place.resolve() / KEPT
        kept.mkdir(parents=True, exist_ok=True)
        for number in range(self.config.clients):
            mine = {
                "folder": f"client{number}",
                "state": str(kept / str(number)),
                "policy": "policy.toml",
                "most": 1.0,
                "first": 0.1,
            }
            mine |= {"private_rounding": False}  # for results bitwise equal to a simulation
            mine |= {"modules": self._modules()}
            part = {"server": str(Address("localhost", port)), **mine, **self.client, "faults": self._of(number)}
            data = {"own": False, "device": self.config.device, "threads": self.config.threads}
            self.parties.append(self._party(f"client{number}", root, {"client": part, "data": data}))

    def _allowing(self) -> dict[str, Any]:
        """Return a policy that permits the method and task of this run: whoever starts it owns all of its parties."""
        return {"allow": {"methods": ["*", self.config.method], "tasks": ["*", self.config.task]}}

    def _modules(self) -> list[str]:
        """Return the modules of the names with a colon in this run's configuration, also in its tables of options."""
        named = (":".join(text.split(":")[:2]) for text in _texts(self.config.model_dump()))
        return sorted({name.partition(":")[0] for name in named if is_import_path(name)})

    def _party(self, role: str, root: Path, values: dict[str, Any]) -> _Party:
        part = values["server" if role == "server" else "client"]
        return _Party(role, root / f"{role}.toml", root / f"{role}.log", values, any(t.startswith("kill") for t in part["faults"]))

    def _of(self, client: int | None) -> list[str]:
        return [fault.text for fault in self._met if fault.client == client]

    # -- watching ------------------------------------------------------------------------------
    def _watch(self, context: BaseContext, observer: Observer | None) -> None:
        """Monitor the processes until the server has exited successfully; restart killed ones."""
        while True:
            self._show(observer)
            now = time.monotonic()
            for party in self.parties:
                process = party.process
                if process is None or process.exitcode is None:
                    continue
                if party.role == "server" and process.exitcode == 0:
                    self._show(observer)
                    return
                if process.exitcode == -KILL and (party.faulted or party.back):
                    party.back = party.back or now + self.back
                    if now >= party.back:
                        party.back = 0.0
                        party.start(context, self._script)
                elif process.exitcode != 0:
                    raise _failed(party, process.exitcode or 0)
            time.sleep(0.02)

    def kill(self, role: str) -> None:
        """Kill a party with SIGKILL; it is restarted.

        Args:
            role: ``server`` or the name of a client.
        """
        party = next(p for p in self.parties if p.role == role)
        assert party.process is not None
        party.faulted = True
        party.process.kill()

    def _show(self, observer: Observer | None) -> None:
        folder = RunFolder(self.place)
        if observer is None or not folder.path.exists():
            return
        for record in folder.read_metrics():
            if record["round"] > self._shown:
                self._shown = int(record["round"])
                observer(record, self.config.rounds)

    def _summary(self, observer: Observer | None) -> Result:
        result = Result.read(RunFolder.open(self.place))
        if result is None:
            raise EngineError("the server ended before the run did; it may have received a stop signal")
        return result

    def _end(self, seconds: float) -> None:
        """Stop all processes: wait `seconds` for the server's goodbye to arrive, then terminate, then kill."""
        there = [p.process for p in self.parties if p.process is not None and p.process.pid is not None]
        alive = [process for process in there if process.exitcode is None]
        _join(alive, seconds)
        for process in alive:
            if process.exitcode is None:
                with suppress(ProcessLookupError):
                    process.terminate()
        _join(alive, 2.0)
        for process in alive:
            if process.exitcode is None:
                process.kill()
                process.join()
        lost = [process.pid for process in there if process.exitcode == _LOST]
        for process in there:
            process.close()  # closes the monitored pipe, so that processes end whose fork server is gone
        until = time.monotonic() + 5.0
        while any(pid is not None and _alive(pid) for pid in lost) and time.monotonic() < until:
            time.sleep(0.02)


def federate(config: RunConfig, place: Path, observer: Observers = None, **parts: Any) -> Result:
    """Execute a run as a federation of processes on this machine and return its summary.

    Args:
        config: configuration of the run.
        place: folder of the run.
        observer: see `paceline.run.run`.
        **parts: further fields of `LoopbackFederation`.
    """
    with Watch(observer, place.name, config) as watch:
        return watch.ended(LoopbackFederation(config, place, **parts).run(watch))


def resume(path: Path, observer: Observers = None, *, rounds: int | None = None) -> Result:
    """Resume a federation of processes on this machine and return its summary.

    Args:
        path: folder of the run.
        observer: see `paceline.run.run`.
        rounds: the number of rounds; a federation has that many as its clients have agreed to.

    Raises:
        StoreError: the folder contains a run of another kind.
        ConfigError: `rounds` is another number.
    """
    folder = RunFolder.open(path)
    if rounds is not None:
        extend(folder, rounds)
    if (ended := Result.read(folder)) is not None:
        return ended
    if not (path / KEPT).is_dir():
        raise StoreError(f"{path} is the run of a server; continue it by starting the server again with paceline server --config")
    config = RunConfig.build(folder.read_config())
    with Watch(observer, folder.name, config) as watch:
        return watch.ended(LoopbackFederation(config, path).run(watch))


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a tree of plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _join(processes: Sequence[BaseProcess], seconds: float) -> None:
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(until - time.monotonic(), 0.0))


def _alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def _failed(party: _Party, code: int) -> PacelineError:
    if code == UNGUARDED:
        return EngineError(unguarded())
    if code == _LOST:
        return EngineError("the parent process of the server and the clients was killed")
    if (error := party.error()) is not None:
        return error
    last = party.last_lines()
    how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
    return EngineError(f"{party.role} {how}:\n{last}")


def _context() -> BaseContext:
    """Return a multiprocessing context with preloaded modules, if the system supports a fork server."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context(start_method(without="fork"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["paceline.deploy.preloaded"])
    return context


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
