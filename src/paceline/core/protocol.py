"""What the client functions of a protocol get: a protocol, such as secure aggregation, wraps the functions of the method.

A method's client function gets a `Client` and nothing else. A protocol's gets a `ProtocolContext`, with which it runs the
method's functions for its own client; it reaches no other client.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paceline.core.client import Client
from paceline.core.engine import ClientFunction
from paceline.core.memory import Memory
from paceline.core.tree import Tree

__all__ = ["ProtocolContext", "ProtocolSession"]


@dataclass
class ProtocolSession:
    """What a client holds between two calls of a protocol, until the round is committed or rolled back; it is never stored.

    Args:
        state: the protocol's own.
        coming: what this round has prepared for the next one, by client function of the method.
        ready: what the last round has prepared for this one.
        later: work that can be done as soon as a reply is sent, and of which a later reply contains the result.
        sent: what this client declared last, by client function, and in how many rounds in a row.
        failed: why the client gave nothing to the sum, for its own log.
        wasted: seconds of work that failed, which count for nothing.
        begun: operation that was begun last, and the client's memory before it.
    """

    state: Any = None
    failed: str = ""
    wasted: float = 0.0
    coming: dict[str, Any] = field(default_factory=dict)
    ready: dict[str, Any] = field(default_factory=dict)
    later: Callable[[], Any] | None = None
    sent: dict[str, tuple[Any, int]] = field(default_factory=dict)
    begun: tuple[int, Any] | None = None
    _done: Any = None

    def idle(self) -> None:
        """Do the work that was left for later; an error is raised where the result is used."""
        if self.later is not None:
            later, self.later = self.later, None
            try:
                self._done = later()
            except Exception as error:
                self._done = error

    def result(self) -> Any:
        """Return the result of the work that was left for later, None if there was none, or raise its error."""
        self.idle()
        done, self._done = self._done, None
        if isinstance(done, Exception):
            raise done
        return done

    def forget(self, function: str) -> None:
        """Forget what an earlier try in this round prepared of a function, and what it left for later."""
        self.coming.pop(function, None)
        self.later = self._done = None

    def begin(self, operation: int, memory: Memory) -> None:
        """Begin a try at an operation, with the memory as of before an earlier one: the reply of that try is in no sum."""
        if self.begun is not None and self.begun[0] == operation:
            memory.reset(self.begun[1])
        self.begun = operation, memory.mark()

    def note(self, function: str, sent: Any) -> None:
        """Note what this client sent in a round."""
        before, times = self.sent.get(function, (None, 0))
        self.sent[function] = sent, times + 1 if times and before == sent else 1

    def end_round(self) -> bool:
        """Erase all but what was prepared for the next round and what was sent; return whether there is anything of it."""
        self.state, self.failed, self.ready, self.coming = None, "", self.coming, {}
        self.later = self._done = self.begun = None
        return bool(self.ready or self.sent)


class ProtocolContext(ABC):
    """One call of a protocol to one client.

    Args:
        client: the client, with its memory and the random streams of this call.
        session: what it holds between calls.
        functions: the method's client functions, as they are declared here.
        names_clients: `Method.names_clients` of the method.
    """

    def __init__(
        self, client: Client, session: ProtocolSession, functions: Mapping[str, ClientFunction], names_clients: bool
    ) -> None:
        self.client, self.session, self.functions, self.names_clients = client, session, functions, names_clients

    @abstractmethod
    def inner(self, stream: str, peers: Mapping[int, Tree]) -> Client:
        """Return the same client as the method's function sees it.

        Args:
            stream: names that function's random streams.
            peers: records published by the others, by client.
        """

    @abstractmethod
    def ahead(self, stream: str) -> Client:
        """Return the same client as of the next round, with a copy of its memory as it is now, and random streams of this name."""

    @abstractmethod
    def invoke(self, client: Client, function: str, message: Tree) -> Any:
        """Return what the method's `function` returns for this client, or for an `inner` of it."""

    @abstractmethod
    def preview(self, function: str, message: Tree) -> Tree | None:
        """Return a reply of the method's `function` with its shape, which depends on no data; None where none can be formed."""

    @abstractmethod
    def cover(self, stream: str, peers: Mapping[int, Tree], function: str, message: Tree) -> Client | None:
        """Run the method's `function`, which failed on this client's samples, on as many drawn at random; return the client that ran it.

        Of what it stores, the method's `paced_by` stays, so that neither times nor what follows from them tell of the failure.
        None is returned if it fails on these samples too, or if the method does not record times.
        """

    @abstractmethod
    def note_times(self, inner: Client, down: int, up: int) -> None:
        """Store how long the method's function took: its work, and these bytes."""
