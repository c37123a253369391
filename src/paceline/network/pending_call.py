"""State of one open call on the server: addressed clients, arrivals, and timeouts."""

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
    """Timeouts for answers, in real seconds.

    Args:
        phase: timeout of a call, unless overridden by `phases`.
        phases: timeout by ``program.function`` (or by function name for the method).
        share: fraction of the addressed clients after which the call may end early; 1 waits for all connected clients.
        grace: once `share` of the clients have answered, wait until `grace` times the elapsed time.
        reconnect: seconds for a client whose stream broke to return before it counts as gone.
    """

    phase: float = 600.0
    phases: Mapping[str, float] = field(default_factory=dict)
    share: float = 1.0
    grace: float = 1.5
    reconnect: float = 5.0


@dataclass
class Arrival:
    """Result of one client: a reply, or the reason why none will arrive."""

    client: int
    message: Message | None
    why: str = ""


@dataclass
class PendingCall:
    """An open call.

    Args:
        id: increases over the whole run.
        call: the call.
        name: name of the function, prefixed by its program's unless that is the method.
        head: head of the call, common to all clients.
        message: message common to all clients.
        patience: timeouts.
        asked: the addressed clients.
        sent: time (monotonic) at which the call was sent, by client.
        answered: clients with a result.
        arrivals: queue of results.
        lost: earlier operations of the round that do not count a client.
        own_bytes: size of the part for a client alone, by client, once it was sent.
    """

    id: int
    call: Call
    name: str
    head: dict[str, Any]
    message: MessagePart
    patience: Patience
    called: frozenset[int] = frozenset()
    sent: dict[int, float] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    arrivals: SimpleQueue[Arrival] = field(default_factory=SimpleQueue)
    lost: Mapping[int, list[int]] = field(default_factory=dict)
    own_bytes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.called = frozenset(self.call.clients)
        self.began = time.monotonic()
        self._enough: float | None = None

    def settle(self, arrival: Arrival) -> None:
        """Record the result of a client; only the first one counts. Runs on the loop's thread."""
        if arrival.client in self.answered:
            if arrival.message is not None:
                arrival.message.close()
            return
        self.answered.add(arrival.client)
        self.arrivals.put(arrival)

    def close(self) -> None:
        """Reject further results and release those that were not fetched. Runs on the loop's thread."""
        self.answered |= self.called
        while not self.arrivals.empty():
            left = self.arrivals.get_nowait().message
            if left is not None:
                left.close()

    def own(self, client: int, pack: bool) -> tuple[MessagePart, ...]:
        """Return the part of the message for this client alone, if there is one."""
        each, peers, lost = self.call.each_message.get(client), self.call.peers.get(client), self.lost.get(client)
        if each is None and peers is None and lost is None:
            return ()
        part = MessagePart.of({"own": each, "peers": peers} | ({"lost": lost} if lost else {}), pack)
        self.own_bytes[client] = len(part.data)
        return (part,)

    def wait(self, deadline: float | None, check: Callable[[], None]) -> Arrival | None:
        """Return the next result, or None after the timeout. Runs on the run's thread.

        Args:
            deadline: seconds after the start of the call; None for no deadline.
            check: called repeatedly; may raise to abort.
        """
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
        """Set an early end if `came` replies are enough."""
        if self._enough is None and self.patience.share < 1 and came >= self.patience.share * len(self.called):
            now = time.monotonic()
            self._enough = now + (self.patience.grace - 1.0) * (now - self.began)
