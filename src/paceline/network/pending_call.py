"""One call in the making, on the server: who was asked, who answered, and until when it is worth waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from paceline.core.engine import Call
from paceline.network.frames import MessagePart
from paceline.network.stream import Message

__all__ = ["Arrival", "Patience", "PendingCall"]


@dataclass(frozen=True)
class Patience:
    """When the server stops waiting for answers; all in real seconds.

    Args:
        phase: for an answer, unless `phases` says otherwise.
        phases: by ``program.function`` (or the function's name for a method's).
        share: part of the asked clients whose answers may be enough; 1 waits for all that are there.
        grace: once the share has answered, wait until so many times what that took.
        reconnect: for a client whose stream broke to come back before it counts as gone.
    """

    phase: float = 600.0
    phases: Mapping[str, float] = field(default_factory=dict)
    share: float = 1.0
    grace: float = 1.5
    reconnect: float = 5.0


@dataclass
class Arrival:
    """What came of one client: a reply, or the news that none will come."""

    client: int
    message: Message | None
    why: str = ""


@dataclass
class PendingCall:
    """An open call.

    Args:
        id: grows as long as the run lasts.
        call: what is asked.
        name: of the function; with its program's, where that is not the method.
        head: what all clients get as the call's head.
        message: what all clients get.
        patience: see there.
    """

    id: int
    call: Call
    name: str
    head: dict[str, Any]
    message: MessagePart
    patience: Patience
    asked: frozenset[int] = frozenset()
    sent: dict[int, float] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    arrivals: SimpleQueue[Arrival] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        self.asked = frozenset(self.call.clients)
        self.began = time.monotonic()
        self._enough: float | None = None

    def settle(self, arrival: Arrival) -> None:
        """Note what came of a client; only the first news of each counts. On the loop's thread."""
        if arrival.client in self.answered:
            if arrival.message is not None:
                arrival.message.close()
            return
        self.answered.add(arrival.client)
        self.arrivals.put(arrival)

    def close(self) -> None:
        """Take no further news, and let go of what was not fetched. On the loop's thread."""
        self.answered |= self.asked
        while not self.arrivals.empty():
            left = self.arrivals.get_nowait().message
            if left is not None:
                left.close()

    def own(self, client: int, pack: bool) -> tuple[MessagePart, ...]:
        """Return the part of the message that is this client's alone, if there is one."""
        each, peers = self.call.each_message.get(client), self.call.peers.get(client)
        if each is None and peers is None:
            return ()
        return (MessagePart.of({"own": each, "peers": peers}, pack),)

    def wait(self, deadline: float | None, check: Callable[[], None]) -> Arrival | None:
        """Return the next arrival, or None where waiting is over; `check` may raise. On the run's thread."""
        while True:
            end = self.began + self.patience.phases.get(self.name, self.patience.phase)
            if deadline is not None:
                end = min(end, self.began + deadline)
            if self._enough is not None:
                end = min(end, self._enough)
            left = end - time.monotonic()
            check()
            try:
                return self.arrivals.get(timeout=min(left, 0.2)) if left > 0 else self.arrivals.get_nowait()
            except Empty:
                if time.monotonic() >= end:
                    return None

    def count(self, came: int) -> None:
        """Look whether `came` replies are enough to set an early end."""
        if self._enough is None and self.patience.share < 1 and came >= self.patience.share * len(self.asked):
            now = time.monotonic()
            self._enough = now + (self.patience.grace - 1.0) * (now - self.began)
