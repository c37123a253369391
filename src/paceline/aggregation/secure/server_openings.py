"""What a server remembers of the sums that it opened in a round, so that it asks only what clients will answer.

A client opens one piece of work over one set of survivors (`Openings`). A server that repeats a round, because
another of its sums failed or because it was started again, therefore asks exactly that set again, or clients that were not part of it.
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


class OpenedSums:
    """Opened sums of the round under way, by the work's common key.

    Args:
        path: where they are kept over a restart; None keeps them in memory.

    Raises `StoreError` where the file is damaged.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.round, self.why = 0, ""
        self._lost: set[tuple[bytes, tuple[int, ...]]] = set()
        self._missed: set[int] = set()
        self._sums: dict[str, list[dict[str, Any]]] = {}
        if self.path is not None and self.path.exists():
            try:
                kept = json.loads(self.path.read_bytes())
                self.round = int(kept["round"])
                self._sums = {str(key): [{"clients": [int(c) for c in row["clients"]], "spoilt": bool(row["spoilt"])} for row in rows]
                              for key, rows in kept["sums"].items()}  # fmt: skip
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise StoreError(f"{self.path} is damaged ({error}); put it back, or begin a new run in another folder") from None

    def begin(self, round: int) -> None:
        """Forget the sums of earlier rounds."""
        if round != self.round:
            self.round, self.why, self._sums = round, "", {}
            self._lost.clear()
            self._missed.clear()

    def clients(self) -> set[int]:
        """Return who is in any opened sum of this round."""
        return {client for rows in self._sums.values() for row in rows for client in row["clients"]}

    def record(self, common: bytes, survivors: Sequence[int]) -> None:
        """Remember that a sum is being opened; kept when this returns."""
        rows = self._sums.setdefault(common.hex(), [])
        if not any(row["clients"] == list(survivors) for row in rows):
            rows.append({"clients": list(survivors), "spoilt": False})
            self._save()

    def spoil(self, common: bytes, survivors: Sequence[int], why: str) -> None:
        """Remember that an opened sum cannot be used, and why."""
        self.why = why
        for row in self._sums.get(common.hex(), []):
            if row["clients"] == list(survivors):
                row["spoilt"] = True
        self._save()

    def lose(self, common: bytes, survivors: Sequence[int]) -> bool:
        """Note that too few shares of a sum came; return whether that is the second time, after which it counts as spoilt."""
        key = common, tuple(survivors)
        if key not in self._lost:
            self._lost.add(key)
            return False
        self.spoil(common, survivors, "too few shares came, twice")
        return True

    def missed(self, silent: Collection[int]) -> bool:
        """Note who gave no answer; return whether one of them is in an opened sum, and that for the first time in this round."""
        new = self.clients().intersection(silent) - self._missed
        self._missed |= new
        return bool(new)

    def groups(self, common: bytes, cohort: Collection[int], least: Callable[[int], int]) -> list[tuple[tuple[int, ...], bool]]:
        """Return which clients of a cohort to sum over, in how many sums; and for each whether all of them must be in it.

        Args:
            common: the work.
            cohort: who could be asked.
            least: least size of a sum, from the size of the cohort that it is part of.
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
            atomic_write(self.path, json.dumps({"round": self.round, "sums": self._sums}).encode())
