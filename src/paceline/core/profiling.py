"""Where the time goes: each moment of a process is counted once, under the innermost name that is open."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["Spent", "spent"]


class Spent:
    """Seconds by name, of this process.

    Blocks may be nested; a block's seconds do not count for those around it. What a client function does that
    is left in the middle must not be inside a block of its own.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Count what happens inside as `name`."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def take(self) -> dict[str, float]:
        """Return the seconds counted since the last time, and start anew."""
        self._charge()
        taken, self.seconds = self.seconds, {}
        return taken

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add what another process counted."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


spent = Spent()
"""This process's."""
