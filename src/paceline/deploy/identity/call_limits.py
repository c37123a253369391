"""Limits on the open calls of a port, so that no peer can block others. Runs on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from paceline.core.errors import PacelineError

__all__ = ["Bounds", "CallLimiter", "RequestTimeout", "Ticket", "TooManyCalls"]


class TooManyCalls(PacelineError):
    """Too many open calls; the same call may succeed a moment later."""


class RequestTimeout(PacelineError):
    """A call's request did not arrive in time."""


@dataclass(frozen=True)
class Bounds:
    """Limits of a port.

    Args:
        each: open calls of one peer; beyond it, the call of that peer that has been silent longest is closed.
        all: open calls in total; beyond it, the same applies to the peer with most of them.
        busy: calls being processed; beyond it, further requests are refused.
        read: seconds for a request to arrive.
        work: seconds for its answer.
        idle: seconds after which a connection without calls, or an unfinished handshake, is closed.
        age: seconds after which any connection is closed.
        connections: connections of all peers.
    """

    each: int = 8
    all: int = 256
    busy: int = 64
    read: float = 10.0
    work: float = 30.0
    idle: float = 10.0
    age: float = 60.0
    connections: int = 512


@dataclass(eq=False)
class Ticket:
    """One open call; a context manager that closes it."""

    who: str
    limiter: CallLimiter

    def __post_init__(self) -> None:
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.limiter.leave(self)

    async def read(self, read: Callable[[], Awaitable[Any]]) -> Any:
        """Return the call's request.

        Args:
            read: reads one message from the peer.

        Raises:
            RequestTimeout: the request is late.
            TooManyCalls: the call was closed to make room.
        """

        async def once() -> Any:
            return await read()

        reading = asyncio.ensure_future(once())
        try:
            await asyncio.wait({reading, self.closed}, timeout=self.limiter.bounds.read, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            if self.closed.done():
                raise TooManyCalls(self.closed.result())
            raise RequestTimeout(f"no request arrived within {self.limiter.bounds.read:g} s")
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


class CallLimiter:
    """Open calls of a port.

    Args:
        bounds: limits of the port.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._idle: dict[str, list[Ticket]] = {}
        self._busy: set[Ticket] = set()

    @property
    def open(self) -> int:
        """Number of open calls."""
        return sum(map(len, self._idle.values())) + len(self._busy)

    def enter(self, who: str) -> Ticket:
        """Open a call of a peer.

        Raises:
            TooManyCalls: there is no room, and no silent call to close.
        """
        if len(self._idle.get(who, ())) + sum(t.who == who for t in self._busy) >= self.bounds.each:
            self._make_room(who, f"more than {self.bounds.each} calls are open for {who}; try again in a moment")
        elif self.open >= self.bounds.all:
            most = max(self._idle, key=lambda w: len(self._idle[w]), default=who)
            self._make_room(most, f"more than {self.bounds.all} calls are open; try again in a moment")
        ticket = Ticket(who, self)
        self._idle.setdefault(who, []).append(ticket)
        return ticket

    def work(self, ticket: Ticket) -> None:
        """Mark a call's request as received and in progress.

        Raises:
            TooManyCalls: too many calls are in progress.
        """
        if len(self._busy) >= self.bounds.busy:
            raise TooManyCalls(f"{len(self._busy)} requests are in progress; try again in a moment")
        self._remove_idle(ticket)
        self._busy.add(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Close a call."""
        self._remove_idle(ticket)
        self._busy.discard(ticket)

    def _make_room(self, who: str, why: str) -> None:
        silent = self._idle.get(who)
        if not silent:
            raise TooManyCalls(why)
        oldest = silent[0]
        self._remove_idle(oldest)
        if not oldest.closed.done():
            oldest.closed.set_result(why)

    def _remove_idle(self, ticket: Ticket) -> None:
        silent = self._idle.get(ticket.who, [])
        if ticket in silent:
            silent.remove(ticket)
        if not silent:
            self._idle.pop(ticket.who, None)
