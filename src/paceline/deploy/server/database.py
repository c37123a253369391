"""Persistent state of a server: runs, rounds, phases, replies, and a log of events.

SQLite by default, or PostgreSQL by URL. Writes are committed when the call returns, and are idempotent, so a
restarted server can repeat its last step. Models and updates are not stored here; they are in the checkpoint of the
run's folder.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paceline.core.errors import ConfigError, MissingExtraError, StoreError, StoreUnavailableError
from paceline.deploy.database_errors import named

try:
    import sqlalchemy as sa
except ImportError as error:
    raise MissingExtraError("SQLAlchemy", "grpc") from error

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from paceline.deploy.server import schema
from paceline.deploy.server.schema import AnswerRow, Event, PhaseRow, RoundRow, RunRow

__all__ = ["AnswerRow", "Event", "PhaseRow", "RoundRow", "RunRow", "ServerState"]

FORMAT = "1"
MOST = 1 << 20
"""Largest plan, record or detail in bytes; larger data belong in the run's folder."""
_TABLES = 0x9ACE11E
"""Advisory lock that serialises the creation of tables."""
_LIVELY = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""Options of a PostgreSQL connection that detect a vanished server within about ten seconds."""


class ServerState:
    """Persistent state of a server; thread-safe.

    Writes take the time `at` of the event, by default the current time. Every write raises `DiskFullError` if there is no
    space and `StoreUnavailableError` if the database server does not answer; earlier writes are intact.

    Args:
        url: path of a SQLite file, or a URL: ``sqlite:///...``, ``postgresql+psycopg://user@host/database``.
        clock: returns seconds since 1970.
        wait: seconds to wait for an unavailable database server.
        tell: called once when waiting begins, with the reason.

    Raises:
        StoreError: the database cannot be opened or is of another format.
        ConfigError: malformed URL.
        MissingExtraError: the database driver is not installed.
    """

    def __init__(
        self,
        url: str | Path,
        clock: Callable[[], float] = time.time,
        wait: float = 0.0,
        warn: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.engine, self.where = _engine(url)
        self.now = clock
        self._insert: Any = postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert
        found = self._retry(self._tables, wait, warn)
        if found != FORMAT:
            raise StoreError(f"{self.where} has format {found}, but this version reads {FORMAT}; use the Paceline that wrote it")

    @property
    def remote(self) -> bool:
        """Whether the database is another process, which may be unavailable for a while."""
        return self.engine.dialect.name == "postgresql"

    def _retry(self, function: Callable[[], str], wait: float, warn: Callable[[str], None]) -> str:
        """Retry until the database answers."""
        end, warned = time.monotonic() + wait, False
        while True:
            try:
                return function()
            except StoreUnavailableError as error:
                if time.monotonic() >= end:
                    after = f" (waited {wait:g} s)" if wait else ""
                    raise StoreUnavailableError(f"{error}{after}; start the database, then this server") from error
                if not warned:
                    warn(str(error))
                warned = True
                time.sleep(0.2)

    def _tables(self) -> str:
        """Create missing tables; return the format of the database."""
        with self._transaction() as db:
            if self.remote:  # two servers may start at the same time
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_TABLES)))
            schema.metadata.create_all(db)
            db.execute(self._once(schema.facts, {"name": "format", "value": FORMAT}))
            found: str = db.execute(sa.select(schema.facts.c.value).where(schema.facts.c.name == "format")).scalar_one()
        return found

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    # -- writing -------------------------------------------------------------------------------
    def begin_run(self, run: str, plan: Mapping[str, Any], folder: str = "", at: float | None = None) -> None:
        """Record the start or continuation of a run; raises `StoreError` if a run of that name has another plan."""
        text = _json(plan)
        row = {"run": run, "plan": text, "folder": folder, "status": "running", "detail": "", "begun": self._at(at)}
        with self._transaction() as db:
            db.execute(self._once(schema.runs, row))
            known = db.execute(sa.select(schema.runs.c.plan).where(schema.runs.c.run == run)).scalar_one()
            if known != text:
                raise StoreError(
                    f"{self.where} has a run {run!r} with another plan; choose another name, or resume with the same plan"
                )
            again = sa.update(schema.runs).where(schema.runs.c.run == run, schema.runs.c.status != "running")
            db.execute(again.values(status="running", detail="", ended=None))

    def end_run(self, run: str, status: str = "done", detail: str = "", at: float | None = None) -> None:
        """Record that a run is done, failed or stopped."""
        self._end(schema.runs, {"run": run}, at, status=status, detail=detail)

    def begin_round(self, run: str, round_: int, attempt: int = 0, at: float | None = None) -> None:
        """Record an attempt at a round."""
        row = {"run": run, "round": round_, "attempt": attempt, "status": "running", "begun": self._at(at)}
        self._add(schema.rounds, row)

    def end_round(
        self,
        run: str,
        round_: int,
        attempt: int = 0,
        status: str = "done",
        record: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> None:
        """Record that a round is done, with its record, or lost."""
        values = {"status": status, "record": None if record is None else _json(record)}
        self._end(schema.rounds, {"run": run, "round": round_, "attempt": attempt}, at, **values)

    def begin_phase(self, run: str, round_: int, attempt: int, phase: str, asked: Sequence[int], at: float | None = None) -> None:
        """Record the clients addressed by a call; `phase` names the call within the round, such as a function and a number."""
        row = {"run": run, "round": round_, "attempt": attempt, "phase": phase}
        self._add(schema.phases, {**row, "asked": _json([int(c) for c in asked]), "begun": self._at(at)})

    def end_phase(self, run: str, round_: int, attempt: int, phase: str, at: float | None = None) -> None:
        """Record the end of a call."""
        self._end(schema.phases, {"run": run, "round": round_, "attempt": attempt, "phase": phase}, at)

    def answer(self, run: str, round_: int, attempt: int, phase: str, *given: AnswerRow) -> None:
        """Record the results of clients in a call, in one transaction; an ok is never overwritten."""
        key = {"run": run, "round": round_, "attempt": attempt, "phase": phase}
        rows = [{**key, **vars(answer)} for answer in given]
        if not rows:
            return
        statement = self._insert(schema.answers)
        columns = schema.answers.c
        changes = {name: statement.excluded[name] for name in ("status", "seconds", "bytes_up", "bytes_down", "error")}
        keys = [columns[name] for name in ("run", "round", "attempt", "phase", "client")]
        with self._transaction() as db:
            db.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes, where=columns.status != "ok"), rows)

    def event(
        self,
        kind: str,
        run: str | None = None,
        client: int | None = None,
        detail: Mapping[str, Any] | None = None,
        key: str | None = None,
        at: float | None = None,
    ) -> None:
        """Add an entry to the event log; a second one with the same `key` is ignored."""
        row = {"run": run, "at": self._at(at), "kind": kind, "client": client, "detail": _json(detail or {}), "key": key}
        self._add(schema.events, row)

    # -- reading -------------------------------------------------------------------------------
    def run(self, run: str) -> RunRow | None:
        """Return a run, or None."""
        return next((row for row in self.runs() if row.run == run), None)

    def runs(self, status: str | None = None) -> list[RunRow]:
        """Return all runs, or those with a status, in order of their start."""
        query = sa.select(schema.runs).order_by(schema.runs.c.begun)
        rows = self._read(query if status is None else query.where(schema.runs.c.status == status))
        return [RunRow(r.run, json.loads(r.plan), r.folder, r.status, r.detail, r.begun, r.ended) for r in rows]

    def rounds(self, run: str) -> list[RoundRow]:
        """Return all attempts at all rounds of a run, in order."""
        table = schema.rounds
        query = sa.select(table).where(table.c.run == run).order_by(table.c.round, table.c.attempt)
        return [
            RoundRow(r.run, r.round, r.attempt, r.status, None if r.record is None else json.loads(r.record), r.begun, r.ended)
            for r in self._read(query)
        ]

    def last_round(self, run: str) -> int:
        """Return the last completed round, or 0."""
        table = schema.rounds
        query = sa.select(sa.func.max(table.c.round)).where(table.c.run == run, table.c.status == "done")
        return self._read(query)[0][0] or 0

    def phases(self, run: str, round_: int, attempt: int = 0) -> list[PhaseRow]:
        """Return the calls of a round, in order of their start."""
        t = schema.phases
        query = sa.select(t).where(t.c.run == run, t.c.round == round_, t.c.attempt == attempt).order_by(t.c.begun)
        return [PhaseRow(r.phase, tuple(json.loads(r.asked)), r.begun, r.ended) for r in self._read(query)]

    def answered(self, run: str, round_: int, attempt: int, phase: str) -> dict[int, AnswerRow]:
        """Return the result of each client in a call."""
        t = schema.answers
        query = sa.select(t).where(t.c.run == run, t.c.round == round_, t.c.attempt == attempt, t.c.phase == phase)
        rows = self._read(query.order_by(t.c.client))
        return {r.client: AnswerRow(r.client, r.status, r.seconds, r.bytes_up, r.bytes_down, r.error) for r in rows}

    def events(self, run: str | None = None, kind: str | None = None, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return log entries with an id above `after`, optionally of one run or kind, at most `limit`."""
        t = schema.events
        query = sa.select(t).where(t.c.id > after).order_by(t.c.id).limit(limit)
        query = query if run is None else query.where(t.c.run == run)
        query = query if kind is None else query.where(t.c.kind == kind)
        return [Event(r.id, r.run, r.at, r.kind, r.client, json.loads(r.detail)) for r in self._read(query)]

    # -- parts ---------------------------------------------------------------------------------
    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Yield a connection; commit at the end, or roll back. Converts driver errors into Paceline's."""
        try:
            with self.engine.begin() as db:
                yield db
        except sqlite3.Error as error:  # raised by the pragmas of a new connection
            raise named(error, self.where) from error
        except sa.exc.DBAPIError as error:
            raise named(
                error.orig if isinstance(error.orig, Exception) else error, self.where, error.connection_invalidated
            ) from error
        except sa.exc.SQLAlchemyError as error:
            raise StoreError(f"{self.where}: {error}") from error

    def _at(self, at: float | None) -> float:
        return self.now() if at is None else at

    def _once(self, table: sa.Table, row: Mapping[str, Any]) -> Any:
        return self._insert(table).values(row).on_conflict_do_nothing()

    def _add(self, table: sa.Table, row: Mapping[str, Any]) -> None:
        with self._transaction() as db:
            db.execute(self._once(table, row))

    def _end(self, table: sa.Table, key: Mapping[str, Any], at: float | None, **values: Any) -> None:
        """Set values and the end time, unless already set; raises `StoreError` if the row does not exist."""
        where = [table.c[name] == value for name, value in key.items()]
        with self._transaction() as db:
            known = db.execute(sa.select(table).where(*where)).one_or_none()
            if known is None:
                raise StoreError(f"{self.where}: {table.name} {tuple(key.values())} ended without having started")
            if known.ended is None or any(getattr(known, name) != value for name, value in values.items()):
                db.execute(sa.update(table).where(*where).values(**values, ended=self._at(at)))

    def _read(self, query: Any) -> Sequence[Any]:
        with self._transaction() as db:
            return db.execute(query).all()


def _engine(url: str | Path) -> tuple[Engine, str]:
    """Return the engine of a path or URL, and its name without a password."""
    text = str(url)
    try:
        parsed = sa.make_url(text) if "://" in text else sa.URL.create("sqlite", database=text)
    except sa.exc.ArgumentError:
        raise ConfigError("the server's database is neither a path nor a URL such as postgresql+psycopg://user@host/name") from None
    where = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(f"{where}: unsupported database; use sqlite or postgresql")
    if parsed.get_backend_name() == "postgresql":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        try:
            return sa.create_engine(parsed.update_query_dict({**_LIVELY, **parsed.query}), pool_pre_ping=True), where
        except ImportError as error:
            raise MissingExtraError(parsed.get_driver_name(), "postgres") from error
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigError("an in-memory database does not survive a restart of the server; name a file")
    path = Path(parsed.database)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        raise StoreError(
            f"{path} cannot be created: {error.strerror or error}; check the folder's owner and permissions"
        ) from error
    engine = sa.create_engine(parsed, connect_args={"timeout": 30})
    sa.event.listen(engine, "connect", _durable)
    return engine, str(path)


def _durable(connection: Any, record: Any) -> None:
    """Enable concurrent readers with one writer, and commits that survive a power failure."""
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _json(value: Any) -> str:
    """Return plain values as JSON, with non-finite floats as null; raises `StoreError` for anything else."""
    try:
        text = json.dumps(_finite(value), sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"only plain values can be stored in the server's database; save models in the run's folder: {error}"
        ) from None
    if len(text) > MOST:
        raise StoreError(f"{len(text)} bytes exceed the limit of the server's database; save them in the run's folder")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
