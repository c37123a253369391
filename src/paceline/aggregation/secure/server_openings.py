"""Server-side record of the sums opened in each round, used to request only what clients will accept.

A client opens a piece of work for one set of survivors (`Openings`). A server that repeats a round, because another
sum of it failed or after a restart, therefore requests exactly that set again, or clients that were not part of it. A restart can
repeat several rounds, if checkpoints lie apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from paceline.aggregation.secure.task_hash import splits
from paceline.core.errors import StoreError
from paceline.store.files import atomic_write

__all__ = ["OpenedSums"]

_Sums = dict[str, list[dict[str, Any]]]
"""Rows of a round by the common key of the work: the clients of each opened sum, and whether it cannot be used."""


class OpenedSums:
    """Opened sums by round and by the common key of the work: of all rounds that may be repeated.

    Args:
        path: file that preserves the record across restarts, until `settled`; None for a record of the current round, in memory.

    Raises:
        StoreError: the file is damaged.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.round, self.cause = 0, ""
        self.tiers: tuple[int, ...] = ()
        """Tiers that the next sum over parts of a model may use, after too few clients of others were left; empty for all."""
        self._lost: set[tuple[bytes, tuple[int, ...]]] = set()
        self._missed: set[int] = set()
        self._rounds: dict[int, _Sums] = {}
        if self.path is not None and self.path.exists():
            try:
                saved = json.loads(self.path.read_bytes())
                rounds = {saved["round"]: saved["sums"]} if "sums" in saved else saved["rounds"]  # of one round, as older files
                self._rounds = {int(round): _sums_of(sums) for round, sums in rounds.items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise StoreError(
                    f"{self.path} is damaged ({error}); restore a backup, or start a new run in another folder"
                ) from None

    def begin(self, round: int) -> None:
        """Start a round, or repeat one."""
        if round != self.round:
            self.round, self.cause, self.tiers = round, "", ()
            self._lost.clear()
            self._missed.clear()
            if self.path is None:
                self._rounds.clear()

    def settled(self, round: int) -> None:
        """Forget the sums of the rounds up to `round`, which the server has saved and never repeats."""
        self._rounds = {number: sums for number, sums in self._rounds.items() if number > round}

    @property
    def _sums(self) -> _Sums:
        return self._rounds.setdefault(self.round, {})

    def clients(self) -> set[int]:
        """Return the clients in any opened sum of this round."""
        return {client for rows in self._sums.values() for row in rows for client in row["clients"]}

    def record(self, common: bytes, survivors: Sequence[int]) -> None:
        """Record that a sum is being opened; saved when this method returns."""
        rows = self._sums.setdefault(common.hex(), [])
        if not any(row["clients"] == list(survivors) for row in rows):
            rows.append({"clients": list(survivors), "spoilt": False})
            self._save()

    def mark_unusable(self, common: bytes, survivors: Sequence[int], cause: str) -> None:
        """Record that an opened sum cannot be used, and why."""
        self.cause = cause
        for row in self._sums.get(common.hex(), []):
            if row["clients"] == list(survivors):
                row["spoilt"] = True
        self._save()

    def mark_lost(self, common: bytes, survivors: Sequence[int]) -> bool:
        """Record that too few shares of a sum arrived; return True the second time, after which the sum counts as unusable."""
        key = common, tuple(survivors)
        if key not in self._lost:
            self._lost.add(key)
            return False
        self.mark_unusable(common, survivors, "too few shares arrived, twice")
        return True

    def newly_missing(self, silent: Collection[int]) -> bool:
        """Note who gave no answer; return whether one of them is in an opened sum, and that for the first time in this round."""
        new = self.clients().intersection(silent) - self._missed
        self._missed |= new
        return bool(new)

    def groups(self, common: bytes, cohort: Collection[int], least: Callable[[int], int]) -> list[tuple[tuple[int, ...], bool]]:
        """Return the groups of a cohort to sum over, each with a flag whether all of its clients are required.

        Args:
            common: key of the work.
            cohort: the available clients.
            least: maps the size of a cohort to the smallest permitted part of it.
        """
        rows, there = self._sums.get(common.hex(), []), set(cohort)
        if not rows:
            return [(tuple(sorted(there)), False)]
        known = [tuple(row["clients"]) for row in rows]
        fresh = there.difference(*known)
        out: list[tuple[tuple[int, ...], bool]] = []
        split = splits(common, known, least)
        for row, clients in zip(rows, known, strict=True):
            again = split[clients]
            if any(half in known for half in again):
                out += [(half, True) for half in again if half not in known and there.issuperset(half)]
            elif not row["spoilt"] and there.issuperset(clients):
                out.append((clients, True))
            else:
                out += [(half, True) for half in again if there.issuperset(half)]
        return ([(tuple(sorted(fresh)), False)] if len(fresh) >= max(3, least(len(fresh))) else []) + out

    def _save(self) -> None:
        if self.path is not None:
            atomic_write(self.path, json.dumps({"rounds": self._rounds}).encode())


def _sums_of(saved: dict[str, Any]) -> _Sums:
    """Return the sums of a round from a file; any error says that it is damaged."""
    return {
        str(key): [{"clients": [int(c) for c in row["clients"]], "spoilt": bool(row["spoilt"])} for row in rows]
        for key, rows in saved.items()
    }
