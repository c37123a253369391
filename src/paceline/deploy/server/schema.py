"""Tables of a server's state, and row types for reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.types import BigInteger

__all__ = ["AnswerRow", "Event", "PhaseRow", "RoundRow", "RunRow", "Status", "metadata"]

Status = Literal["ok", "late", "gone", "declined", "refused", "failed"]

_Long = BigInteger().with_variant(Integer, "sqlite")
metadata = MetaData()
_ROUND = ("run", "round", "attempt")

facts = Table("facts", metadata, Column("name", String(64), primary_key=True), Column("value", Text, nullable=False))

runs = Table(
    "runs",
    metadata,
    Column("run", String(200), primary_key=True),
    Column("plan", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("status", String(32), nullable=False),
    Column("detail", Text, nullable=False),
    Column("begun", Float, nullable=False),
    Column("ended", Float),
)

rounds = Table(
    "rounds",
    metadata,
    Column("run", String(200), ForeignKey("runs.run"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("status", String(32), nullable=False),
    Column("record", Text),
    Column("begun", Float, nullable=False),
    Column("ended", Float),
)

phases = Table(
    "phases",
    metadata,
    Column("run", String(200), ForeignKey("runs.run"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("phase", String(200), primary_key=True),
    Column("asked", Text, nullable=False),
    Column("begun", Float, nullable=False),
    Column("ended", Float),
)

answers = Table(
    "answers",
    metadata,
    Column("run", String(200), ForeignKey("runs.run"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("phase", String(200), primary_key=True),
    Column("client", Integer, primary_key=True),
    Column("status", String(32), nullable=False),
    Column("seconds", Float, nullable=False),
    Column("bytes_up", _Long, nullable=False),
    Column("bytes_down", _Long, nullable=False),
    Column("error", Text),
)

events = Table(
    "events",
    metadata,
    Column("id", _Long, primary_key=True, autoincrement=True),
    Column("run", String(200)),
    Column("at", Float, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("client", Integer),
    Column("detail", Text, nullable=False),
    Column("key", String(200), unique=True),
    Index("events_of_run", "run", "id"),
)


@dataclass(frozen=True)
class RunRow:
    """A run: its plan, folder, and status (running, done, failed, stopped)."""

    run: str
    plan: dict[str, Any]
    folder: str
    status: str
    detail: str
    begun: float
    ended: float | None


@dataclass(frozen=True)
class RoundRow:
    """An attempt at a round: running, done or lost, with its record once done."""

    run: str
    round: int
    attempt: int
    status: str
    record: dict[str, Any] | None
    begun: float
    ended: float | None


@dataclass(frozen=True)
class PhaseRow:
    """One call of a round: the addressed clients, its start and its end."""

    phase: str
    asked: tuple[int, ...]
    begun: float
    ended: float | None


@dataclass(frozen=True)
class AnswerRow:
    """Result of one client in one phase.

    Args:
        client: id of the client.
        status: ok, late, gone, declined (the client sits out), refused (by the client or its policy) or failed.
        seconds: from call to reply.
        bytes_up, bytes_down: bytes on the wire.
        error: reason if the status is not ok.
    """

    client: int
    status: Status = "ok"
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Event:
    """An entry of the event log."""

    id: int
    run: str | None
    at: float
    kind: str
    client: int | None
    detail: dict[str, Any] = field(default_factory=dict)
