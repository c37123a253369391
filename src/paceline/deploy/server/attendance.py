"""Waiting for clients: all expected sites before the first round, then the required minimum before each round."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.core.errors import CohortError, ConfigError, nearest
from paceline.deploy.identity.directory import Member
from paceline.network import GrpcEngine

__all__ = ["AGAIN", "Attendance", "check_expected"]

AGAIN = 5.0
"""Seconds between two log lines about missing clients."""

_NAMED = 50
"""Maximum number of names in one log line; further ones are counted."""


def check_expected(expected: int | Sequence[str], members: Sequence[Member], invited: Container[str], clients: int) -> None:
    """Raise `ConfigError` that lists every expected site that can never connect.

    Args:
        expected: names of sites, or their number.
        members: clients in the directory.
        invited: names with a valid token, which will be in the directory.
        clients: number of clients of the run, which calls only those with smaller ids.
    """
    if isinstance(expected, int):
        if expected > clients:
            raise ConfigError(
                f"server.expected = {expected} exceeds the run's {clients} clients; raise run.clients, or expect fewer"
            )
        return
    numbers = {member.name: member.id for member in members}
    faults = []
    for name in expected:
        number = numbers.get(name)
        if number is None and name not in invited:
            faults.append(f"{name!r} is neither in the directory nor invited{nearest(name, numbers)}")
        elif number is not None and number >= clients:
            faults.append(f"{name!r} has number {number}, and the run has only {clients} clients")
    if faults:
        raise ConfigError(f"server.expected: {'; '.join(faults)}; `paceline ca list` shows all clients")


@dataclass
class Attendance:
    """Waits for clients.

    Args:
        engine: reports the connected clients.
        note: logs an event: its name and facts.
        members: returns the current clients in the directory; sites may enrol in the meantime.
        least: clients needed for a round.
        expected: names of sites, or their number.
        patience: seconds to wait for all of them.
        start: seconds to wait for the minimum.
    """

    engine: GrpcEngine
    note: Any
    members: Callable[[], Sequence[Member]]
    least: int
    expected: int | Sequence[str]
    patience: float
    start: float

    def __post_init__(self) -> None:
        self._logged_at = -math.inf

    def missing(self) -> tuple[list[str], int]:
        """Return the names of the expected sites that are not ready, and their number.

        If only a number is expected, the names are those of all clients that are not ready.
        """
        ready = set(self.engine.hub.ready())
        numbers = {m.name: m.id for m in self.members() if m.id < self.engine.num_clients}
        if isinstance(self.expected, int):
            count = max(self.expected - len(ready), 0)
            return ([name for name, number in numbers.items() if number not in ready] if count else []), count
        absent = [name for name in self.expected if numbers.get(name) not in ready]
        return absent, len(absent)

    def first(self) -> None:
        """Wait for all expected sites, then start with the available ones if they are enough.

        Raises:
            CohortError: fewer than the minimum connect, or are willing to participate.
        """
        began = time.monotonic()
        if self.expected:
            self.engine.wait_until(self._settled, self.least, self.patience)
        names, count = self.missing()
        if count:
            facts = {"sites": names[:_NAMED], "count": count, "here": len(self.engine.hub.ready()), "least": self.least}
            self.note("missing", **facts, seconds=round(time.monotonic() - began, 1))
        self.wait(max(self.start - (time.monotonic() - began), 0.0))

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the minimum number of clients, at most `seconds` (default `start`).

        Raises:
            CohortError: too few clients connect.
        """
        limit = self.start if seconds is None else seconds
        if not self.engine.wait_until(self._enough, self.least, limit):
            here, (names, _) = len(self.engine.hub.ready()), self.missing()
            absent = f"; missing: {', '.join(names[:_NAMED])}" if names else ""
            raise CohortError(f"{here} clients are connected after {self.start:.0f} s; the minimum is {self.least}{absent}")

    def _settled(self) -> bool:
        """Return whether all expected sites are ready or have refused to participate."""
        names, count = self.missing()
        refused = self.engine.hub.dispatcher.refusals
        out = {m.name for m in self.members() if m.id in refused} if refused else set()
        return self._log_missing(count - len(out.intersection(names)) <= 0)

    def _enough(self) -> bool:
        return self._log_missing(len(self.engine.hub.ready()) >= self.least)

    def _log_missing(self, done: bool) -> bool:
        """Log the missing clients at intervals; return `done`."""
        if not done and time.monotonic() - self._logged_at >= AGAIN:
            self._logged_at = time.monotonic()
            names, count = self.missing()
            named = {"missing": names[:_NAMED], "count": count} if count else {}
            self.note("waiting", clients=self.least, here=len(self.engine.hub.ready()), **named)
        return done
