"""Large transfers take turns, so that a server's memory does not grow with the number of clients.

A transfer keeps its lane for a while only: one that is slow goes on without, and the next in line begins. So
nobody is kept waiting by a narrow link.
"""

from __future__ import annotations

import asyncio
import time

__all__ = ["Lanes", "Turn"]

LARGE = 256 * 1024
"""Bytes from which on a transfer takes a lane."""


class Lanes:
    """A number of lanes.

    Args:
        count: transfers at a time.
        hold: seconds after which a transfer makes room for the next.
    """

    def __init__(self, count: int = 16, hold: float = 2.0) -> None:
        self.hold = hold
        self._free = asyncio.Semaphore(count)

    async def turn(self, size: int) -> Turn:
        """Wait for a lane, if `size` bytes need one."""
        if size < LARGE:
            return Turn(None, 0.0)
        await self._free.acquire()
        return Turn(self._free, time.monotonic() + self.hold)


class Turn:
    """One transfer's time in a lane."""

    def __init__(self, free: asyncio.Semaphore | None, until: float) -> None:
        self._free, self._until = free, until

    def going_on(self) -> None:
        """Make room if this has taken long; called at each frame."""
        if self._free is not None and time.monotonic() > self._until:
            self.end()

    def end(self) -> None:
        """Make room; may be called again."""
        if self._free is not None:
            self._free.release()
            self._free = None
