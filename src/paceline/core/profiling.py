"""Per-process profiler: wall time by section, excluding nested sections, and a GPU's time where that was asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["GPU", "Spent", "spent"]

GPU = "gpu: "
"""Prefix of the entries that are a GPU's time."""

_PENDING = 2000
"""Intervals on a GPU after which the profiler waits for it, to read their times."""


class Spent:
    """Wall time in seconds by section.

    Sections may be nested; the time of a nested section does not count for the enclosing ones. Do not open a section
    around code of a client function that can be suspended.

    A GPU works on a section's operations after the host has issued them. With `watch`, events between the operations
    measure its own time, in entries whose names begin with `GPU`; what it waits for the host within a section counts too.

    Example:
        >>> profile = Spent()
        >>> with profile.on("training"):
        ...     pass
        >>> list(profile.take())
        ['training']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.watches = False
        """Whether workers that are built from now on watch their GPU."""
        self._open: list[str] = []
        self._since = 0.0
        self._device: Any = None
        self._mark: Any = None
        self._intervals: list[tuple[str, Any, Any]] = []

    def watch(self, device: str) -> None:
        """Measure the time of a GPU too; nothing for other devices."""
        import torch

        self._device, self._mark = (torch.device(device), None) if torch.device(device).type == "cuda" else (None, None)

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
        self._settle()
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
        if self._device is not None:
            self._charge_device()

    def _charge_device(self) -> None:
        """Put an event after the operations of the section that is open."""
        import torch

        if torch.cuda.is_current_stream_capturing():  # an event would become a part of the graph
            return
        mark: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(self._device))
        if self._open and self._mark is not None:
            self._intervals.append((self._open[-1], self._mark, mark))
        self._mark = mark
        if len(self._intervals) >= _PENDING:
            self._settle()

    def _settle(self) -> None:
        """Wait for the GPU, and add the times of all intervals."""
        if self._intervals:
            self._intervals[-1][2].synchronize()
        for name, first, last in self._intervals:
            self.seconds[GPU + name] = self.seconds.get(GPU + name, 0.0) + first.elapsed_time(last) / 1e3
        self._intervals = []


spent = Spent()
"""Profiler of this process."""
