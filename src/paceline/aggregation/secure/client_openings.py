"""What a client has helped to open, over all runs and restarts, and what it therefore never opens.

Two sums of the same work over different clients show, by their difference, what the clients did that are in one of
them only. So a piece of work is opened over one set of survivors: any two opened sets are equal or have no client in
common. After a sum that could not be used it may be opened over the halves of that set, which no server can choose.

Why no combination of opened sums shows one client: whoever helps to open a sum gives vectors to no other one from then
on, but to the same set and to its halves. A sum needs the help of t of its n clients. Of all sums in a combination take
the earliest, over a set S: its t helpers are in no other sum but S and the halves of S, each of which has at least
n/2 - (n - t) of them, with one coefficient. So they stay in the combination, or S and both halves cancel. Halves are
allowed where the graph is complete and those who did not help are too few to open a sum on their own (`least_half`);
halves of halves are not, as all who did not help could be in one of them.

Work that is nearly the same (`Scope`) gives nearly the same updates, so the same holds for it: sums over seven cohorts of
three, of which any two share one client and differ in four, have one solution, and it is everybody's own update.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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
"""For files of versions that did not note the function."""

Scope = Literal["model", "round", "always"]

_SCOPES: dict[Scope, str] = {
    "model": "work = :work OR version = :version",
    "round": "work = :work OR version = :version OR (run = :run AND round = :round AND function IN (:function, ''))",
    "always": "TRUE",
}
"""Which earlier sums a new one is held against."""

_NEAR: dict[Scope, str] = {**_SCOPES, "always": _SCOPES["round"]}
"""Which of them are over nearly the same work, so that no cohort may share clients with theirs without being equal."""


class Openings:
    """One client's book of opened sums.

    Args:
        path: of the SQLite file; None keeps it in memory.
        least_difference: least number of clients in which two opened cohorts differ, where they differ at all; above 1, those
            of nearly the same work are equal or share nobody.
        scope: which work is nearly the same: "model" is that over the same model version; "round" is also that of the same
            function in the same round of a run, whatever the model, as one that was changed in its last digit is another;
            "always" is as "round", and holds the difference between all sums.
        most: openings in one round of a run, whatever the server calls them; None for no limit.
        durable: sync the file before an answer leaves, so that a power cut does not make this client forget.

    Raises `StoreError` where the file is damaged.
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
        """Open the file, so that what is wrong with it is said before a run begins. Raises `StoreError`."""
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

    def check(self, own: OwnWork, run: str, round: int, clients: Sequence[int], least: Callable[[int], int]) -> None:
        """Raise `ProtocolError` where opening this sum would show what no sum may show.

        Args:
            own: the work.
            run, round: as the server calls them; openings of a round are counted.
            clients: who is to be in the sum; before anything is masked the cohort, later the survivors.
            least: least size of a half, from the size of the cohort that is split.
        """
        now, before, others = sorted(clients), list[list[int]](), list[tuple[bool, list[int]]]()
        facts = {"work": own.work, "version": own.version, "run": run, "round": round, "function": own.function}
        held = f"SELECT DISTINCT work = :work, {_NEAR[self.scope]}, survivors FROM opened WHERE {_SCOPES[self.scope]}"
        for same, near, text in self._all(held, facts):
            if same:
                before.append(json.loads(text))
            else:
                others.append((bool(near), json.loads(text)))
        if before and now not in before and not any(tuple(now) in parts for parts in splits(own.common, before, least).values()):
            raise ProtocolError(
                "this work was opened before, over other survivors; a second sum would show the difference; "
                "a run with another seed is other work, and one over the same clients as then is not refused"
            )
        for near, old in others:
            if old in before or not (difference := len(set(old) ^ set(now))):
                continue
            if difference < self.least_difference:
                raise ProtocolError(
                    f"a sum over the same model was opened before, over a cohort that differs in {difference} clients; "
                    f"{self.least_difference} are demanded (cohort.least_difference); a run with another seed begins with another model"
                )
            if near and self.least_difference > 1 and not set(old).isdisjoint(now):
                raise ProtocolError(
                    "a sum over the same model or in the same round was opened before, over another cohort that shares clients with this "
                    "one; several of them together would show single clients (cohort.least_difference); a run with another seed begins "
                    "with another model"
                )
        if self.most is None:
            return
        [(count,)] = self._all("SELECT COUNT(*) FROM opened WHERE run = ? AND round = ?", (run, round))
        if count >= self.most:
            raise ProtocolError(f"{count} sums of round {round} were opened; more would show too much (limits.openings)")

    def record(self, own: OwnWork, run: str, round: int, survivors: Sequence[int]) -> None:
        """Remember an opening; on the disk when this returns."""
        row = (own.work, own.version, json.dumps(sorted(survivors)), run, round, own.function)
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
            return DiskFullError(f"no room for {self.path}: make some; the client goes on by itself")
        return StoreError(
            f"{self.path} cannot be used ({error}); without it this client cannot know what it opened: put a copy back"
        )
