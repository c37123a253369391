"""Server of a federation: a run with real clients. It can be killed at any time and restarted.

Next to the run's folder content (configuration, metrics, checkpoint) it stores `federation.json`: the id of the run,
under which clients store their memory, and the number of server starts. A restart resumes at the interrupted
round. Clients draw from random streams named by the run's seed, the round and the call, so the result is bitwise
equal to that of an undisturbed run; secure sums restart with fresh keys.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from paceline.assembly import read_task
from paceline.core.address import Address
from paceline.core.errors import ConfigError, IdentityError, PlanError, StoreError
from paceline.core.names import is_name, run_id, safe_name
from paceline.data.schema import Schema
from paceline.deploy.federated_fields import check_federated
from paceline.deploy.identity.admission import Gate
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.enrolment_server import Enrolment
from paceline.deploy.identity.keys import PinnedDirectory
from paceline.deploy.identity.register import Register
from paceline.deploy.identity.trust import Trust
from paceline.deploy.plan import PRIVACY_MECHANISMS, Plan, Privacy, offer
from paceline.deploy.server.attendance import Attendance, check_expected
from paceline.deploy.server.events import Notes
from paceline.deploy.server.expiry import Lists
from paceline.deploy.server.starting import unsent
from paceline.deploy.settings import ServerConfig, ServerPart
from paceline.engines.setup import Setup
from paceline.engines.worker import Worker
from paceline.network import (
    Credentials,
    GrpcEngine,
    Hub,
    HubSettings,
    LoopThread,
    Patience,
    Progress,
    Server,
    Stopped,
)
from paceline.network.fault_injection import Faults
from paceline.network.interfaces import check_limit
from paceline.run import Observer, Result, Run, RunConfig, prepare, reopen
from paceline.store import RunFolder, atomic_write
from paceline.store.lock import LOCK
from paceline.store.start import open_start
from paceline.tasks import schema_of

if TYPE_CHECKING:
    from paceline.aggregation.secure.server_openings import OpenedSums
    from paceline.tasks import Task

__all__ = ["FederationServer", "Present", "invited"]


_OURS = ("federation.json", "state.db", ".federation.json", "opened.json", ".opened.json", "clients")
"""Files that an early killed server may have left in the run's folder, and the clients' state of `federate`."""


LOCAL_AUTHORITY_WARNING = (
    "the authority is on this machine: an attacker who controls it can admit clients and surround an honest one, so minimum numbers "
    "of clients do not protect against this server; run the authority elsewhere if clients must not trust the server"
)
"""Logged at start if the server could create clients itself."""


def invited(part: ServerPart, now: datetime) -> set[str]:
    """Return the names that may still enrol, if the authority is on this machine and sites are expected."""
    if part.ca is None or not part.expected:
        return set()
    with Register(part.ca / "register.db").transaction() as rows:
        return {token.name for token in rows.tokens() if token.used is None and token.expires > now}


@dataclass(frozen=True)
class Present:
    """Availability model: clients of a fleet that are connected and ready."""

    fleet: Any
    engine: GrpcEngine
    always: ClassVar[bool] = False

    def available(self, client: int, round: int) -> bool:
        """Return whether `client` can be called in `round`."""
        return self.engine.present(client) and self.fleet.available(client, round)

    def rate(self, client: int) -> float:
        """Return the fraction of rounds in which `client` is available according to the fleet."""
        return float(self.fleet.rate(client))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fleet, name)


@dataclass
class FederationServer:
    """One server process.

    Args:
        config: see `ServerConfig`.
        run: configuration of a new run; an existing run's folder must have the same configuration.
        notes: event sink.
        task: task object to use instead of the configured task.
        privacy: differential privacy promised to the clients.
        observer: called with each round's record.
        listening: set once the server accepts clients.

    Raises:
        PacelineError: a file is missing or damaged, or the configuration is inconsistent.
    """

    config: ServerConfig
    run: RunConfig
    notes: Notes
    task: Task | None = None
    privacy: Privacy | None = None
    observer: Observer | None = None
    listening: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        check_federated(self.run)
        part = self.config.server
        self.run, self._start = open_start(self.run, part.run, shared=True)
        self.trust = Trust.load(part.folder / "trust.pem")
        if part.ca is None and (part.enrol or part.renew):
            raise ConfigError("server.enrol and server.renew require the authority on this machine; name its folder in server.ca")
        lists = part.ca or part.folder
        listed, revoked = part.directory or lists / "directory", part.crl or lists / "crl.pem"
        self.gate = Gate(self.trust, listed, revoked, every=min(1.0, part.heartbeat))
        self.directory = PinnedDirectory(listed, self.trust, accept_changed=True)  # the operator has signed it
        self.credentials = Credentials.read(part.folder / "server.key", part.folder / "server.pem", self.trust.roots)
        self.port = self.enrol_port = self.renew_port = 0
        self.engine: GrpcEngine | None = None
        self._loop = LoopThread()
        check_expected(part.expected, self.gate.members(), invited(part, self.gate.clock()), self.run.clients)
        self._enrolment: Enrolment | None = None
        self._lists: Lists | None = None
        self._stop = False
        self._schema: Schema | None = None
        self._held: RunFolder | None = None
        self._opened: OpenedSums | None = None

    # -- life ----------------------------------------------------------------------------------
    def go(self) -> Result:
        """Serve until the run has ended; return its summary.

        Raises:
            Stopped: `stop` was called.
            PacelineError: the run failed.
        """
        done, why = False, "the server is stopping"
        try:
            run = self._prepare()
            engine = self.engine
            assert engine is not None
            self.port = self._loop.wait(self._server.start())
            self._loop.spawn(engine.hub.watch())
            authority = self._authority()
            if self.config.server.ca is not None:
                self.notes.event("membership", None, {"why": LOCAL_AUTHORITY_WARNING})
            self._enrolment = self._open_enrolment(authority)
            self._lists = Lists(self.gate, self.notes.event, authority, self.credentials.certificate)
            self._lists.start()
            self.listening.set()
            self.notes("listening", port=self.port, run=engine.hub.progress.run, incarnation=engine.hub.progress.incarnation)
            if run.round == 0:
                self._attendance.first()
            elif run.round < self.run.rounds:
                self._attendance.wait()
            summary = run.go()
            done, why = True, "the run has ended"
            self.notes("done", rounds=summary.rounds, accuracy=summary.accuracy, model_sha256=summary.model_sha256)
            return summary
        except Stopped:
            self.notes.ended("stopped")
            raise
        except BaseException as error:
            why = "the server failed"
            self.notes("error", why=f"{type(error).__name__}: {error}")
            self.notes.ended("failed", str(error))
            raise
        finally:
            try:
                if done:
                    self.notes.ended("done")
            finally:
                self._close(why, done)

    def stop(self) -> None:
        """Stop as soon as the state is safe; callable from a signal handler."""
        self._stop = True
        if self.engine is not None:
            self.engine.stopping = True

    def _close(self, why: str, done: bool) -> None:
        if self._lists is not None:
            self._lists.stop()
        if self._enrolment is not None:
            self._enrolment.stop()
        if self._held is not None:
            self._held.release()
        if self.port:
            self._loop.wait(self._server.stop(why, done))
        self._loop.stop()
        self.notes.close()

    @property
    def least(self) -> int:
        """Number of clients needed for a round: at least enough to form its sums."""
        return max(self.config.server.least, self.run.quorum, 3 if self.run.aggregation == "secure" else 1)

    # -- building ------------------------------------------------------------------------------
    def _prepare(self) -> Run:
        folder, known = self._folder()
        self._held = folder.hold()
        self._facts = self._started(folder)
        from paceline.aggregation.secure.program import SecureAggregation, secure_config
        from paceline.aggregation.secure.server_openings import OpenedSums
        from paceline.aggregation.secure.task_hash import Agreement
        from paceline.registry import find_method

        if self.privacy is not None and not PRIVACY_MECHANISMS:
            raise PlanError(["the plan promises differential privacy, but no mechanism for it is installed; remove the promise"])
        task = self.task if self.task is not None else read_task(self.run)
        self._schema = schema_of(task)
        parts: dict[str, Any] = {"task": task, "engine": self._engine, "start": self._start}
        if self.run.aggregation == "secure":
            agreed = Agreement.of(self.run, find_method(self.run.method), self._schema)
            self._opened = OpenedSums(folder.path / "opened.json")
            parts["aggregation"] = SecureAggregation(secure_config(self.run.secure), self.directory, agreed, self._opened)
        self.notes.begin(self._facts["id"], self._plan().to_tree(), str(folder.path), self._facts["starts"])
        if known:
            run = reopen(folder, observer=self._observe, **parts)
        else:
            run = prepare(self.run, folder=folder, observer=self._observe, **parts)
            folder.write_config(self.run.model_dump(exclude_none=True), run.task.info.get("schema"))
        engine = self.engine
        assert engine is not None
        if self._start is not None and (wrong := unsent(run, task, self._start)):
            raise PlanError(wrong)
        if run.method.sends_model:
            check_limit("a client's reply", self._reply(run), self.config.server.limit, "server.limit")
        progress = engine.hub.progress
        progress.round = progress.saved = run.round
        progress.kept = self.notes.counted(run.round)
        engine.round = run.round
        run.fed.incarnation = progress.incarnation
        run.fed.fleet = Present(run.fed.fleet, engine)
        self._every = run.config.checkpoint_every
        self.notes("resumed" if known else "started", run=progress.run, round=run.round, folder=str(folder.path))
        return run

    def _plan(self) -> Plan:
        return Plan.of(self.run, self.privacy, self._schema)

    def _reply(self, run: Run) -> int:
        """Return the size in bytes of a reply with as many values as the model."""
        return run.fed.aggregation.reply_size(run.fed.engine.init_params(), self.run.cohort)

    def _folder(self) -> tuple[RunFolder, bool]:
        path = self.config.server.run
        if (path / "config.toml").exists():
            folder = RunFolder.open(path)
            kept = RunConfig.build(folder.read_config())
            changed = [n for n in RunConfig.model_fields if getattr(kept, n) != getattr(self.run, n)]
            if changed:
                raise ConfigError(
                    f"{path} contains a run with other options ({', '.join(changed)}); name another folder, or revert them"
                )
            return folder, True
        if path.is_dir() and all(f.name == LOCK or f.name.startswith(_OURS) for f in path.iterdir()):
            return RunFolder(path), False
        return RunFolder.create(path.parent, path.name), False

    def _started(self, folder: RunFolder) -> dict[str, Any]:
        """Count this start durably, before anything is sent."""
        path = folder.path / "federation.json"
        try:
            fresh: dict[str, Any] = {"id": run_id(folder.path.absolute().name), "starts": 0}
            before = json.loads(path.read_bytes()) if path.exists() else fresh
            name = str(before["id"])
            facts = {"id": name if is_name(name) else safe_name(name), "starts": int(before["starts"]) + 1}
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}); restore a backup, or start a new run in another folder") from None
        atomic_write(path, json.dumps(facts).encode())
        return facts

    def _engine(self, setup: Setup) -> GrpcEngine:
        part, waiting = self.config.server, self.config.waiting
        chosen = {name: getattr(part, name) for name in ("heartbeat", "limit", "memory", "lanes", "window", "pack")}
        settings = HubSettings(**chosen, watch=min(1.0, part.heartbeat))
        progress = Progress(self._facts["id"], self._facts["starts"])
        worker = Worker(setup)
        plan = offer(self.run, self._plan(), worker.initial.layout)
        hub = Hub(
            self.gate, progress, plan, settings, directory=self._signed, note=self.notes.event, shaper=Faults.of(part.faults, None)
        )
        patience = Patience(waiting.phase, waiting.phases, waiting.share, waiting.grace, waiting.reconnect)
        self.engine = GrpcEngine(
            hub,
            self._loop,
            worker,
            self.run.clients,
            patience=patience,
            measured=self.run.measured,
            hidden=self.run.aggregation == "secure",
            pack=part.pack,
            least=self.least,
            record=self.notes,
        )
        self.engine.stopping = self._stop
        members = self.gate.members
        self._attendance = Attendance(self.engine, self.notes, members, self.least, part.expected, waiting.expected, waiting.start)
        self._server = Server(hub, self.credentials, part.listen)
        self.notes.ready(lambda: self.engine.hub.ready() if self.engine else [], self.least)
        return self.engine

    def _authority(self) -> Authority | None:
        part, passphrase = self.config.server, os.environ.get("PACELINE_CA_PASSPHRASE")
        if part.ca is None:
            return None
        try:
            return Authority.open(part.ca, passphrase.encode() if passphrase else None)
        except IdentityError as error:
            if part.enrol or part.renew:
                raise
            self.notes.event(
                "lists", None, {"why": f"the directory and revocation list are not republished automatically: {error}"}
            )
            return None

    def _open_enrolment(self, authority: Authority | None) -> Enrolment | None:
        part = self.config.server
        if authority is None or not (part.enrol or part.renew):
            return None
        opened = Enrolment(authority, self.gate, self.credentials, self.notes)
        renew = part.renew or (Address(part.enrol.host, 0) if part.enrol else None)
        self.enrol_port, self.renew_port = opened.start(part.enrol, renew)
        self.notes("enrolling", port=self.enrol_port or None, renew=self.renew_port)
        return opened

    def _signed(self) -> bytes:
        """Return the newest valid directory; an invalid file never replaces it, and `Lists` reports it."""
        signed = self.gate.directory_file()
        with suppress(IdentityError):
            self.directory.follow(signed)
        return signed

    def _observe(self, record: dict[str, Any], total_rounds: int) -> None:
        """After each round: report it, and wait until enough clients for the next one are ready."""
        engine = self.engine
        assert engine is not None
        number = int(record["round"])
        if number % self._every == 0 or number == total_rounds:
            engine.saved(number)
            if self._opened is not None:
                self._opened.settled(number)
        self.notes.round(record)
        if self.observer is not None:
            self.observer(record, total_rounds)
        if number < total_rounds:
            self._attendance.wait()
