"""What a client has helped to open, over all runs and restarts, and what it therefore never opens.

Two sums of the same work over different clients show, by their difference, what the clients did that are in one of
them only. So a piece of work is opened over one set of survivors: any two opened sets are equal or have no client in
common. After a sum that could not be used it may be opened over the halves of that set, which no server can choose.

A client whose masked vector has left does not always hear what becomes of it: the others can open the sum without its
help. So it remembers the vector from the moment at which it leaves, and over which clients it may have been summed.
Later it helps only with sums that have most of those clients in them, or few.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paceline.aggregation.secure.work import OwnWork, halves
from paceline.errors import DiskFullError, ProtocolError, StoreError

__all__ = ["Openings"]

_TABLE = """
CREATE TABLE IF NOT EXISTS opened (
    work BLOB NOT NULL, version BLOB NOT NULL, survivors TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_work ON opened (work);
CREATE INDEX IF NOT EXISTS by_version ON opened (version);
CREATE INDEX IF NOT EXISTS by_round ON opened (run, round);
CREATE TABLE IF NOT EXISTS given (id INTEGER PRIMARY KEY, work BLOB NOT NULL, version BLOB NOT NULL, clients TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS given_work ON given (work);
CREATE INDEX IF NOT EXISTS given_version ON given (version);
"""


class Openings:
    """One client's book of opened sums.

    Args:
        path: of the SQLite file; None keeps it in memory.
        least_difference: least number of clients in which two opened cohorts over the same model version differ, where
            they differ at all.
        most: openings in one round of a run, whatever the server calls them; None for no limit.
        durable: sync the file before an answer leaves, so that a power cut does not make this client forget.

    Raises `StoreError` where the file is damaged.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, least_difference: int = 1, most: int | None = None, durable: bool = True
    ) -> None:
        self.path, self.least_difference, self.most = None if path is None else Path(path), least_difference, most
        self._durable = durable
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file, so that what is wrong with it is said before a run begins. Raises `StoreError`."""
        if self._db is not None:
            return
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(":memory:" if self.path is None else self.path, check_same_thread=False, isolation_level=None)
            db.execute("PRAGMA journal_mode=TRUNCATE")
            db.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'OFF'}")
            db.executescript(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from None
        self._db = db

    def give(self, own: OwnWork, clients: Sequence[int]) -> int:
        """Remember a masked vector that leaves, and who may be in its sum; on the disk when this returns its number."""
        self._all("INSERT INTO given (work, version, clients) VALUES (?, ?, ?)", own.work, own.version, json.dumps(sorted(clients)))
        return int(self._all("SELECT last_insert_rowid()")[0][0])

    def narrow(self, vector: int, survivors: Sequence[int]) -> None:
        """Remember which survivors were shown for a vector; on the disk when this returns."""
        self._all("UPDATE given SET clients = ? WHERE id = ?", json.dumps(sorted(survivors)), vector)

    def check(
        self, own: OwnWork, run: str, round: int, survivors: Sequence[int], least: Callable[[int], int], vector: int | None = None
    ) -> None:
        """Raise `ProtocolError` where opening this sum would show what no sum may show.

        Args:
            own: the work.
            run, round: as the server calls them; openings of a round are counted.
            survivors: the clients in the sum.
            least: least size of a half, from the size of the cohort that is split.
            vector: the number of this sum's own vector, see `give`.
        """
        now = sorted(survivors)
        before = self._sets("work", own.work)
        if before and now not in before and not any(tuple(now) in halves(own.common, old, least(len(old))) for old in before):
            raise ProtocolError("this work was opened before, over other survivors; a second sum would show the difference")
        for old in self._sets("version", own.version):
            difference = len(set(old) ^ set(now))
            if 0 < difference < self.least_difference and old not in before:
                raise ProtocolError(
                    f"a sum over the same model was opened before, over a cohort that differs in {difference} clients; "
                    f"{self.least_difference} are demanded (cohort.least_difference)"
                )
        for (text,) in self._all(
            "SELECT DISTINCT clients FROM given WHERE (work = ? OR version = ?) AND id IS NOT ?", own.work, own.version, vector
        ):
            if not _apart(now, old := json.loads(text)) and tuple(now) not in halves(own.common, old, least(len(old))):
                raise ProtocolError(
                    "this work may have been opened before, with a vector that left this client, over other survivors; a second "
                    "sum would show the difference"
                )
        count = self._all("SELECT COUNT(*) FROM opened WHERE run = ? AND round = ?", run, round)[0][0]
        if self.most is not None and count >= self.most:
            raise ProtocolError(f"{count} sums of round {round} were opened; more would show too much (limits.openings)")

    def record(self, own: OwnWork, run: str, round: int, survivors: Sequence[int], vector: int | None = None) -> None:
        """Remember an opening, which settles what became of a vector; on the disk when this returns."""
        row = (own.work, own.version, json.dumps(sorted(survivors)), run, round)
        self._all("INSERT INTO opened VALUES (?, ?, ?, ?, ?)", *row)
        self._all("DELETE FROM given WHERE id = ?", vector)

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _sets(self, column: str, key: bytes) -> list[list[int]]:
        return [json.loads(text) for (text,) in self._all(f"SELECT DISTINCT survivors FROM opened WHERE {column} = ?", key)]

    def _all(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        self.open()
        assert self._db is not None
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> StoreError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
            return DiskFullError(f"no room for {self.path}: make some; the client goes on by itself")
        return StoreError(f"{self.path} cannot be used ({error}); without it this client cannot know what it opened: put a copy back")


def _apart(now: Sequence[int], old: Sequence[int]) -> bool:
    """Return whether a sum may be opened beside one over an unknown part of `old`.

    Those who helped to open that one are two thirds of it, and refuse another one. So what has three fifths of the same
    clients finds too few who help; and what has a third or less of them in it is hidden by the others.
    """
    common = len(set(now) & set(old))
    return 5 * common >= 3 * len(old) or 3 * common <= len(now)
