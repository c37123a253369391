"""Persistent record of the sums that a client has helped to open, and the rule for the sums that it refuses.

The difference between two sums of the same work over different cohorts reveals the contribution of the clients that
are in only one of them. A piece of work is therefore opened for one set of survivors: any two opened sets are equal or
disjoint. If an opened sum proves unusable, the same work may be opened for the two halves of that set. The server
cannot choose the halves. The record covers all runs and restarts.

Why no linear combination of opened sums isolates a client: a client that has helped to open a sum contributes no
vector to another sum of the work afterwards, except over the same set or one of its halves. Opening a sum takes t of
its n clients. Consider the earliest sum in a combination, over a set S. Its t helpers appear in no other sums than
those over S and its halves. Each half contains at least n/2 - (n - t) of the helpers, all with the same coefficient.
These helpers therefore remain in the combination, unless S and both halves cancel. Halves are allowed only if the
graph is complete and the clients that did not help are too few to open a sum on their own (`least_half`). Halves of
halves are not allowed, because all clients that did not help could be in one of them.

Nearly the same work (`Scope`) gives nearly the same updates, so the same rule holds for it: seven cohorts of three clients,
of which any two share one client and differ in four, give seven sums whose only solution is every client's own update.

In a sum over parts of a model every segment has its own set of clients (`Cover`). The rules hold for each of them: two sums of the same
work have the same clients in every segment, and differences are compared segment by segment, or between all
segments if their coordinates may differ. Such a sum is never repeated in halves, because the clients that helped to open the
whole may all be missing in a segment of a half. For one segment the argument above needs two honest helpers among its owners.
Take an honest owner. Some o of its k neighbours own the segment (`TierRules`), and at least t have helped to remove its mask, so
o + t - k have done both. This is more than the number of corrupt clients (`graph.least_owners`), so an honest one is among them. The same
holds for that client in turn, whose neighbours do not include itself. Drop-outs after the masking remove owners and other clients, but
never make other clients owners or helpers.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from paceline.aggregation.secure.covers import Cover
from paceline.aggregation.secure.task_hash import OwnWork, splits
from paceline.core.errors import DiskFullError, ProtocolError, StoreError

__all__ = ["Openings"]

_TABLE = """
CREATE TABLE IF NOT EXISTS opened (
    work BLOB NOT NULL, version BLOB NOT NULL, survivors TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
    function TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS by_work ON opened (work);
CREATE INDEX IF NOT EXISTS by_version ON opened (version);
CREATE INDEX IF NOT EXISTS by_round ON opened (run, round);
"""

_COLUMNS = "SELECT COUNT(*) FROM pragma_table_info('opened') WHERE name = 'function'"
_LATER = "ALTER TABLE opened ADD COLUMN function TEXT NOT NULL DEFAULT ''"
"""Migration of files written before the function was recorded."""

_COUNT = "SELECT NULL, NULL, COUNT(*) FROM opened WHERE run = :run AND round = :round"
"""The sums opened in a round, as one more row of the earlier ones: each query locks and unlocks the file."""

Scope = Literal["model", "round", "always"]

_SCOPES: dict[Scope, str] = {
    "model": "work = :work OR version = :version",
    "round": "work = :work OR version = :version OR (run = :run AND round = :round AND function IN (:function, ''))",
    "always": "TRUE",
}
"""Condition that selects the earlier sums that a new one is compared with."""

_NEAR: dict[Scope, str] = {**_SCOPES, "always": _SCOPES["round"]}
"""Which of them are over nearly the same work, so that no cohort may share clients with theirs without being equal."""


class Openings:
    """Record of the sums that one client has helped to open.

    Args:
        path: SQLite file; None for a record in memory.
        least_difference: smallest number of clients in which two different opened cohorts may differ; above 1, cohorts of
            nearly the same work are equal or disjoint.
        scope: which work counts as nearly the same. "model": sums over the same model version. "round": in addition, sums of
            the same function in the same round of a run, whatever the model, because a change in the last digit makes it
            another version. "always": as "round"; in addition, all sums are held to the smallest difference.
        most: maximum number of openings in one round of a run, whatever the server calls them; None for no limit.
        durable: sync the file before an answer is sent, so that a power failure cannot erase an opening.

    Raises:
        StoreError: the file is damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        least_difference: int = 1,
        most: int | None = None,
        durable: bool = True,
        scope: Scope = "model",
    ) -> None:
        self.path, self.least_difference, self.most = None if path is None else Path(path), least_difference, most
        self.scope, self._durable = scope, durable
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file; call it at start, so that a fault is reported before the run begins.

        Raises:
            StoreError: the file cannot be opened or created.
        """
        if self._db is not None:
            return
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
            db = sqlite3.connect(":memory:" if self.path is None else self.path, check_same_thread=False, isolation_level=None)
            db.execute("PRAGMA journal_mode=TRUNCATE")
            db.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'OFF'}")
            db.executescript(_TABLE)
            if not db.execute(_COLUMNS).fetchone()[0]:
                db.execute(_LATER)
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from None
        self._db = db

    def check(self, own: OwnWork, run: str, round: int, clients: Cover | Sequence[int], least: Callable[[int], int]) -> None:
        """Refuse to open a sum whose difference from an earlier one could reveal single clients.

        Args:
            own: the work.
            run, round: as named by the server; the openings of a round are counted.
            clients: the clients in the sum: the cohort before masking, the survivors afterwards.
            least: maps the size of a cohort to the smallest permitted half of it.

        Raises:
            ProtocolError: the sum must not be opened.
            StoreError: the file cannot be read.
        """
        now = clients if isinstance(clients, Cover) else Cover.of(clients)
        before, others, count = list[Cover](), list[tuple[bool, Cover]](), 0
        facts = {"work": own.work, "version": own.version, "run": run, "round": round, "function": own.function}
        earlier = f"SELECT DISTINCT work = :work, {_NEAR[self.scope]}, survivors FROM opened WHERE {_SCOPES[self.scope]}"
        for same, near, text in self._all(f"{earlier} UNION ALL {_COUNT}", facts):
            if same is None:
                count = int(text)
            elif same:
                before.append(Cover.read(text))
            else:
                others.append((bool(near), Cover.read(text)))
        if before and now not in before and not _is_half(now, before, own.common, least):
            raise ProtocolError(
                "this work was opened before for other survivors; a second sum would reveal the difference; "
                "repeat it with the same clients, or start a run with another seed"
            )
        for near, mine, theirs in [(near, a, b) for near, old in others if old not in before for a, b in now.compared(old)]:
            if not (difference := len(mine ^ theirs)):
                continue
            if difference < self.least_difference:
                raise ProtocolError(
                    f"a sum over the same model was opened before for a cohort that differs in {difference} clients; "
                    f"the minimum is {self.least_difference} (cohort.least_difference); start a run with another seed"
                )
            if near and self.least_difference > 1 and not mine.isdisjoint(theirs):
                raise ProtocolError(
                    "a sum over the same model or in the same round was opened before for another cohort that shares clients with this "
                    "one; several such sums together could reveal single clients (cohort.least_difference); start a run with "
                    "another seed"
                )
        if self.most is not None and count >= self.most:
            raise ProtocolError(f"{count} sums of round {round} were opened, the maximum of this client's policy (limits.openings)")

    def open_sum(self, own: OwnWork, run: str, round: int, survivors: Cover, least: Callable[[int], int]) -> None:
        """Check a sum and record its opening, in one transaction: no other process of this client opens a sum in between.

        Raises what `check` raises. The opening is on disk when this method returns.
        """
        self._all("BEGIN IMMEDIATE")
        try:
            self.check(own, run, round, survivors, least)
            self.record(own, run, round, survivors)
        except BaseException:
            self._all("ROLLBACK")
            raise
        self._all("COMMIT")

    def record(self, own: OwnWork, run: str, round: int, survivors: Cover | Sequence[int]) -> None:
        """Record an opening. It is on disk when this method returns, or with the transaction of `open_sum`."""
        opened = survivors if isinstance(survivors, Cover) else Cover.of(survivors)
        row = (own.work, own.version, opened.text(), run, round, own.function)
        self._all("INSERT INTO opened VALUES (?, ?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _all(self, statement: str, values: Sequence[object] | Mapping[str, object] = ()) -> list[tuple[Any, ...]]:
        self.open()
        assert self._db is not None
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> StoreError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
            return DiskFullError(f"no disk space left for {self.path}; free some space, and the client continues by itself")
        return StoreError(
            f"{self.path} cannot be used ({error}); it records which sums this client opened: restore it from a backup"
        )


def _is_half(now: Cover, before: Sequence[Cover], common: bytes, least: Callable[[int], int]) -> bool:
    """Return whether a sum is over a permitted half of an opened one; a sum over parts of a model has none."""
    whole = [old.clients for old in before if not old.partition]
    return not now.partition and any(now.clients in parts for parts in splits(common, whole, least).values())
