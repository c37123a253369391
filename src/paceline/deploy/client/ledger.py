"""Usage ledger of a client: one small file with the totals that the policy's limits apply to."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from paceline.core.errors import StoreError
from paceline.deploy.plan import Plan, Usage
from paceline.store.files import atomic_write

__all__ = ["Ledger"]

_RUN = {"rounds": 0, "last_round": 0, "bytes": 0, "seconds": 0.0, "epsilon": 0.0, "delta": 0.0}
_DAY = {"rounds": 0, "bytes": 0, "seconds": 0.0}


class Ledger:
    """Accounting of a client's usage. Record a message when it arrives, and an answer before it is sent: a crash cannot lose them.

    Args:
        path: file of the ledger; a missing file means no usage.
        zone: time zone of the day boundaries, as in the policy's hours.

    Raises:
        StoreError: the file is damaged.
    """

    def __init__(self, path: str | Path, zone: str = "UTC") -> None:
        self.path, self.zone = Path(path), ZoneInfo(zone)
        self._lock = threading.Lock()
        self._runs: dict[str, dict[str, Any]] = {}
        self._days: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self._load()

    def usage(self, run: str, now: datetime) -> Usage:
        """Return the usage of a run, and of all runs today."""
        with self._lock:
            mine, day = self._runs.get(run, _RUN), self._days.get(self._day(now), _DAY)
            others = [row for name, row in self._runs.items() if name != run]
            return Usage(
                rounds=mine["rounds"],
                bytes=mine["bytes"],
                seconds=mine["seconds"],
                last_round=mine["last_round"],
                day_rounds=day["rounds"],
                day_bytes=day["bytes"],
                day_seconds=day["seconds"],
                epsilon=sum(row["epsilon"] for row in others),
                delta=sum(row["delta"] for row in others),
            )

    def join(self, run: str, plan: Plan) -> None:
        """Record that a run was joined, and the privacy budget that it spends; rejoining spends no more."""
        with self._lock:
            mine = self._runs.setdefault(run, dict(_RUN))
            if plan.privacy is not None:
                mine["epsilon"] = max(mine["epsilon"], plan.privacy.epsilon)
                mine["delta"] = max(mine["delta"], plan.privacy.delta)
            self._save()

    def note(self, run: str, round_: int, bytes_: int, seconds: float, now: datetime) -> None:
        """Add bytes and seconds of an answer; the round counts once, regardless of the number of calls."""
        with self._lock:
            mine = self._runs.setdefault(run, dict(_RUN))
            new = int(round_ > mine["last_round"])
            mine["last_round"] = max(mine["last_round"], round_)
            self._add(mine, now, new, bytes_, seconds)

    def moved(self, run: str, bytes_: int, now: datetime) -> None:
        """Add bytes that were sent or received, whatever came of them."""
        with self._lock:
            self._add(self._runs.setdefault(run, dict(_RUN)), now, 0, bytes_, 0.0)

    def _add(self, mine: dict[str, Any], now: datetime, rounds: int, bytes_: int, seconds: float) -> None:
        name = self._day(now)
        day = self._days.get(name) or dict(_DAY)
        for row in (mine, day):
            row["rounds"] += rounds
            row["bytes"] += bytes_
            row["seconds"] += seconds
        self._days = {name: day}
        self._save()

    def _day(self, now: datetime) -> str:
        return now.astimezone(self.zone).date().isoformat()

    def _save(self) -> None:
        text = json.dumps({"runs": self._runs, "days": self._days}, indent=1)
        atomic_write(self.path, text.encode() + b"\n", mode=0o600)

    def _load(self) -> None:
        try:
            facts = json.loads(self.path.read_bytes())
            self._runs = {str(k): _row(v, _RUN) for k, v in facts["runs"].items()}
            self._days = {str(k): _row(v, _DAY) for k, v in facts["days"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{self.path} is damaged ({error}); the policy's limits cannot be enforced without it: restore it from a backup"
            ) from None


def _row(values: Any, like: dict[str, Any]) -> dict[str, Any]:
    return {name: type(zero)(values[name]) for name, zero in like.items()}
