"""A federation's server: a run whose clients are real. It can be killed at any moment and started again.

Beside the run's folder (configuration, metrics, checkpoint) it keeps `federation.json`: the run's own id, which
clients file their memory under, and how often the server was started. A start goes on at the interrupted
round. Clients draw from streams named by the run's seed, the round and the call, so the end has the bits of an
undisturbed run; secure sums begin anew, with fresh keys.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from paceline.deploy.authority import Authority
from paceline.deploy.enrolment import Enrolment
from paceline.deploy.gate import Gate
from paceline.deploy.identity import PinnedDirectory
from paceline.deploy.lists import Lists
from paceline.deploy.notes import Notes
from paceline.deploy.plan import Plan, Privacy
from paceline.deploy.settings import ServerConfig
from paceline.deploy.trust import Trust
from paceline.engines.grpc import (
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
from paceline.engines.grpc.faults import Faults
from paceline.engines.worker import Setup, Worker
from paceline.errors import CohortError, ConfigError, IdentityError, StoreError
from paceline.run import Observer, Run, RunConfig, Summary, prepare, reopen
from paceline.store import RunFolder, atomic_write

if TYPE_CHECKING:
    from paceline.tasks import Task

__all__ = ["FederationServer", "Present"]


_OURS = ("federation.json", "state.db", ".federation.json", "clients")
"""What a server that was killed early may have left in the run's folder, or `federate` for its clients."""


@dataclass(frozen=True)
class Present:
    """The clients that can be asked: those of a fleet that are connected and ready."""

    fleet: Any
    engine: GrpcEngine
    always: ClassVar[bool] = False

    def available(self, client: int, round: int) -> bool:
        """Return whether `client` can be asked in `round`."""
        return self.engine.present(client) and self.fleet.available(client, round)

    def rate(self, client: int) -> float:
        """Return the part of the rounds in which the fleet says that `client` can be asked."""
        return float(self.fleet.rate(client))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fleet, name)


@dataclass
class FederationServer:
    """One server process.

    Args:
        config: see `ServerConfig`.
        run: what is run, for a new run; the folder's own configuration is gone on with.
        notes: where events go.
        task: a task object in place of the one that the configuration names.
        privacy: what the run promises its clients.
        observer: is told of every round.
    """

    config: ServerConfig
    run: RunConfig
    notes: Notes
    task: Task | None = None
    privacy: Privacy | None = None
    observer: Observer | None = None
    listening: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        part = self.config.server
        self.trust = Trust.load(part.folder / "trust.pem")
        lists = part.ca or part.folder
        listed, revoked = part.directory or lists / "directory", part.crl or lists / "crl.pem"
        self.gate = Gate(self.trust, listed, revoked, every=min(1.0, part.heartbeat))
        self.directory = PinnedDirectory(listed, self.trust)
        self.credentials = Credentials.read(part.folder / "server.key", part.folder / "server.pem", self.trust.roots)
        self.port = self.enrol_port = self.renew_port = 0
        self.engine: GrpcEngine | None = None
        self._loop = LoopThread()
        self._enrolment: Enrolment | None = None
        self._lists: Lists | None = None
        self._stop = False

    # -- life ----------------------------------------------------------------------------------
    def go(self) -> Summary:
        """Serve until the run has ended; return its summary. Raises `Stopped` after `stop`."""
        done, why = False, "the server stops"
        try:
            run = self._prepare()
            engine = self.engine
            assert engine is not None
            self.port = self._loop.wait(self._server.start())
            self._loop.spawn(engine.hub.watch())
            authority = self._authority()
            self._enrolment = self._open_enrolment(authority)
            self._lists = Lists(self.gate, self.notes.event, authority, self.credentials.certificate)
            self._lists.start()
            self.listening.set()
            self.notes("listening", port=self.port, run=engine.hub.progress.run, incarnation=engine.hub.progress.incarnation)
            if run.round < self.run.rounds:
                self._await(engine)
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
            if done:
                self.notes.ended("done")
            self._close(why, done)

    def stop(self) -> None:
        """End as soon as the state is safe; may be called from a signal handler."""
        self._stop = True
        if self.engine is not None:
            self.engine.stopping = True

    def _close(self, why: str, done: bool) -> None:
        if self._lists is not None:
            self._lists.stop()
        if self._enrolment is not None:
            self._enrolment.stop()
        if self.port:
            self._loop.wait(self._server.stop(why, done))
        self._loop.stop()
        self.notes.close()

    def _await(self, engine: GrpcEngine) -> None:
        """Wait until enough clients are there. Raises `CohortError` where they never come."""
        least, seconds = self.least, self.config.waiting.start
        if len(engine.hub.ready()) < least:
            self.notes("waiting", clients=least, here=len(engine.hub.ready()))
        if not engine.wait_ready(least, seconds):
            raise CohortError(f"{len(engine.hub.ready())} clients are there after {seconds:.0f} s; {least} are needed")

    @property
    def least(self) -> int:
        """Clients that a round needs."""
        return max(self.config.server.least, self.run.quorum)

    # -- building ------------------------------------------------------------------------------
    def _prepare(self) -> Run:
        folder, known = self._folder()
        self._facts = self._started(folder)
        from paceline.aggregation.secagg import SecureAggregation, secure_config

        secure = self.run.aggregation == "secure"
        parts: dict[str, Any] = {"task": self.task, "engine": self._engine}
        if secure:
            parts["aggregation"] = SecureAggregation(secure_config(self.run.secure), self.directory)
        self.notes.begin(self._facts["id"], Plan.of(self.run, self.privacy).to_tree(), str(folder.path), self._facts["starts"])
        if known:
            run = reopen(folder.path, observer=self._observe, **parts)
        else:
            run = prepare(self.run, folder=folder, observer=self._observe, **parts)
            folder.write_config(self.run.model_dump(exclude_none=True))
        engine = self.engine
        assert engine is not None
        progress = engine.hub.progress
        progress.round = progress.saved = run.round
        progress.kept = frozenset(self.notes.kept(run.round))
        engine.round = run.round
        run.fed.incarnation = progress.incarnation
        run.fed.fleet = Present(run.fed.fleet, engine)
        self._every = run.config.checkpoint_every
        self.notes("resumed" if known else "started", run=progress.run, round=run.round, folder=str(folder.path))
        return run

    def _folder(self) -> tuple[RunFolder, bool]:
        path = self.config.server.run
        if (path / "config.toml").exists():
            folder = RunFolder.open(path)
            kept = RunConfig.build(folder.read_config())
            changed = [n for n in RunConfig.model_fields if getattr(kept, n) != getattr(self.run, n)]
            if changed:
                raise ConfigError(f"{path} holds a run with other options ({', '.join(changed)}); name another folder, or take them back")
            return folder, True
        if path.is_dir() and all(f.name.startswith(_OURS) for f in path.iterdir()):
            return RunFolder(path), False
        return RunFolder.create(path.parent, path.name), False

    def _started(self, folder: RunFolder) -> dict[str, Any]:
        """Count this start, durably, before anything is asked."""
        path = folder.path / "federation.json"
        try:
            fresh: dict[str, Any] = {"id": f"{folder.name}-{secrets.token_hex(6)}", "starts": 0}
            before = json.loads(path.read_bytes()) if path.exists() else fresh
            facts = {"id": str(before["id"]), "starts": int(before["starts"]) + 1}
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}); put it back, or begin a new run in another folder") from None
        atomic_write(path, json.dumps(facts).encode())
        return facts

    def _engine(self, setup: Setup) -> GrpcEngine:
        part, waiting = self.config.server, self.config.waiting
        chosen = {name: getattr(part, name) for name in ("heartbeat", "limit", "memory", "lanes", "window", "pack")}
        settings = HubSettings(**chosen, watch=min(1.0, part.heartbeat))
        progress = Progress(self._facts["id"], self._facts["starts"])
        plan = {"config": self.run.model_dump(mode="json", exclude_none=True), "plan": Plan.of(self.run, self.privacy).to_tree()}
        hub = Hub(
            self.gate, progress, plan, settings, directory=self._signed, note=self.notes.event, shaper=Faults.of(part.faults, None)
        )
        patience = Patience(waiting.phase, waiting.phases, waiting.share, waiting.grace, waiting.reconnect)
        self.engine = GrpcEngine(
            hub,
            self._loop,
            Worker(setup),
            self.run.clients,
            patience=patience,
            measured=self.run.measured,
            pack=part.pack,
            least=self.least,
            record=self.notes,
        )
        self.engine.stopping = self._stop
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
            if part.enrol:
                raise
            self.notes.event("lists", None, {"why": f"the lists are not published anew by themselves: {error}"})
            return None

    def _open_enrolment(self, authority: Authority | None) -> Enrolment | None:
        part = self.config.server
        if authority is None or not part.enrol:
            return None
        opened = Enrolment(authority, self.gate, self.credentials, self.notes)
        host = part.enrol.rpartition(":")[0]
        self.enrol_port, self.renew_port = opened.start(part.enrol, part.renew or f"{host}:0")
        self.notes("enrolling", port=self.enrol_port, renew=self.renew_port)
        return opened

    def _signed(self) -> bytes:
        self.directory.reload()
        return self.directory.path.read_bytes()

    def _observe(self, record: dict[str, Any], total_rounds: int) -> None:
        """After each round: tell, and wait until the next one has enough clients."""
        engine = self.engine
        assert engine is not None
        number = int(record["round"])
        if number % self._every == 0 or number == total_rounds:
            engine.saved(number)
        self.notes.round(record)
        if self.observer is not None:
            self.observer(record, total_rounds)
        if number < total_rounds:
            self._await(engine)
