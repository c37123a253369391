"""Per-process profiler: wall time by section, excluding nested sections."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["Spent", "spent"]


class Spent:
    """Wall time in seconds by section.

    Sections may be nested; the time of a nested section does not count for the enclosing ones. Do not open a section
    around code of a client function that can be suspended.

    Example:
        >>> profile = Spent()
        >>> with profile.on("training"):
        ...     pass
        >>> list(profile.take())
        ['training']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Context manager: measure a section."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def take(self) -> dict[str, float]:
        """Return the seconds accumulated since the last call, and reset them."""
        self._charge()
        taken, self.seconds = self.seconds, {}
        return taken

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add the measurements of another process."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


spent = Spent()
"""Profiler of this process."""
