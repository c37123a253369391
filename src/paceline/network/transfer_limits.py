"""Limits on concurrent large transfers, so that server memory does not grow with the number of clients.

A transfer occupies a lane for a limited time: a slow one continues without a lane, and the next in line begins. A slow
link therefore does not block other clients.
"""

from __future__ import annotations

import asyncio
import time

__all__ = ["Lanes", "Turn"]

LARGE = 256 * 1024
"""Size in bytes from which a transfer needs a lane."""


class Lanes:
    """A fixed number of lanes for large transfers.

    Args:
        count: number of concurrent transfers.
        hold: seconds after which a transfer releases its lane.
    """

    def __init__(self, count: int = 16, hold: float = 2.0) -> None:
        self.hold = hold
        self._free = asyncio.Semaphore(count)

    async def turn(self, size: int) -> Turn:
        """Wait for a lane if `size` bytes need one."""
        if size < LARGE:
            return Turn(None, 0.0)
        await self._free.acquire()
        return Turn(self._free, time.monotonic() + self.hold)


class Turn:
    """Occupation of a lane by one transfer."""

    def __init__(self, free: asyncio.Semaphore | None, until: float) -> None:
        self._free, self._until = free, until

    def going_on(self) -> None:
        """Release the lane if its time is over; called for each frame."""
        if self._free is not None and time.monotonic() > self._until:
            self.end()

    def end(self) -> None:
        """Release the lane; idempotent."""
        if self._free is not None:
            self._free.release()
            self._free = None
