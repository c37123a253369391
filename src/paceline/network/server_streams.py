"""Server side of all streams: sessions, calls and replies. Runs on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from paceline.core.errors import PacelineError, StoreError, WireError
from paceline.network import protocol as p
from paceline.network.admission import Door, Note
from paceline.network.buffers import Budget
from paceline.network.dispatch import Dispatcher
from paceline.network.frames import MessagePart, Opening
from paceline.network.interfaces import HubSettings, Members, Progress
from paceline.network.server_session import Closed, StreamSession

__all__ = ["Hub"]

_STATUS = grpc.StatusCode

_NEW = 0.05
"""Seconds for which a stream is not ended after its connection: gRPC would lose the reason where its first frame is still under way."""

MOST_REFUSALS = 1000
"""Maximum number of refusals on one stream, to protect the log from flooding."""


def _unheard(event: str, client: int | None, facts: dict[str, Any]) -> None:
    """Ignore events."""


@dataclass
class Hub:
    """All streams of a server.

    Args:
        members: see `Members`.
        progress: progress of the run; updated by the engine.
        plan: description of the run, a tree for the clients.
        settings: stream settings.
        directory: returns the signed directory of identity keys, or nothing.
        note: receives events: a name, the client's id or None, and facts.
        shaper: injected faults; None for none.
    """

    members: Members
    progress: Progress
    plan: Mapping[str, Any]
    settings: HubSettings = field(default_factory=HubSettings)
    directory: Callable[[], bytes] = bytes
    note: Note = _unheard
    shaper: Any = None

    def __post_init__(self) -> None:
        self.sessions: dict[int, StreamSession] = {}
        self._known = self.directory()
        self.budget = Budget(self.settings.memory)
        self.dispatcher = Dispatcher(self.sessions, self.settings.pack, self.note, self.shaper)
        self.door = Door(self.members, self.settings, self.sessions, self.note, self.budget, self.shaper)

    # -- a stream's life -----------------------------------------------------------------------
    async def connect(self, _: Any, context: Any) -> None:
        """Serve one stream from its first message until it ends."""
        session = await self.door.enter(context)
        closed = session if isinstance(session, Closed) else await self._live(session)
        if closed is not None and closed.code is not _STATUS.OK:
            await context.abort(closed.code, closed.why)

    async def _live(self, session: StreamSession) -> Closed | None:
        signed = self._signed()
        self.sessions[session.client] = session
        session.link.vet = lambda kind, head, opening: self._vet(session, kind, head, opening)
        session.put(p.WELCOME, self._welcome(session), *signed)
        self.note("connected", session.client, {"name": session.name})
        reader, writer = asyncio.ensure_future(self._read(session)), asyncio.ensure_future(session.write())
        tasks: set[asyncio.Future[Any]] = {reader, writer, session.closing}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if session.closing.done():
                return session.closing.result()
            error = reader.exception() if reader.done() else None
            if isinstance(error, StoreError):
                self.note("disk", session.client, {"why": p.clean(error)})
                return Closed(_STATUS.RESOURCE_EXHAUSTED, "the server has no memory for a message at present")
            if isinstance(error, PacelineError):
                return self.door.refuse(session.client, _STATUS.DATA_LOSS, "malformed", str(error), session.name)
            return None  # the stream ended or broke
        finally:
            self._left(session)  # before any await, which a cancelled stream does not return from
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            await session.link.flush(1.0)
            await asyncio.sleep(max(0.0, session.since + _NEW - time.monotonic()))

    def _welcome(self, session: StreamSession) -> dict[str, Any]:
        now = self.progress
        facts = {"run": now.run, "incarnation": now.incarnation, "round": now.round, "take": now.take, "saved": now.saved}
        kept, lost = now.kept.get(session.client, (0, ()))
        facts |= {"number": session.client, "kept": kept, "lost": list(lost), "plan": dict(self.plan)}
        return facts | {"heartbeat": self.settings.heartbeat}

    def _signed(self) -> tuple[MessagePart, ...]:
        signed = self.directory()
        if signed != self._known:
            self._known = signed
            for session in self.sessions.values():
                session.put(p.NEWS, None, MessagePart.of({"directory": signed}))
        return (MessagePart.of({"directory": signed}),) if signed else ()

    def _left(self, session: StreamSession) -> None:
        if self.sessions.get(session.client) is not session:
            return  # replaced by a newer stream
        del self.sessions[session.client]
        why = session.closing.result().why if session.closing.done() else "the stream ended"
        self.note("disconnected", session.client, {"why": why})
        self.dispatcher.lost(session.client)

    # -- messages of clients --------------------------------------------------------------------
    def _vet(self, session: StreamSession, kind: int, head: Mapping[str, Any], opening: Opening) -> bool:
        """Reject parts on messages other than replies, and unrequested replies; discard late replies unread."""
        if kind != p.REPLY:
            if len(opening.parts) > 1:
                raise WireError(f"a message of kind {p.NAMES.get(kind, kind)} has unexpected parts")
            return True
        return self.dispatcher.expects(session.client, p.field(head, "id", int))

    async def _read(self, session: StreamSession) -> None:
        while (message := await session.link.receive()) is not None:
            kind, head = message.kind, message.head
            if kind == p.REPLY:
                self.dispatcher.reply(session, message)
            elif kind == p.READY:
                if not session.ready:
                    session.ready = True
                    self.dispatcher.refusals.pop(session.client, None)
                    self.dispatcher.send_call(session.client)
            elif kind == p.REFUSE:
                self._refused(session, [p.clean(r) for r in p.field(head, "reasons", list)[:20]], p.field(head, "later", bool))
            elif kind == p.LEAVE:
                session.close(_STATUS.OK, p.clean(head.get("why", "")))
            elif kind != p.PONG:
                raise WireError(f"a client sent an unexpected message of kind {p.NAMES.get(kind, kind)}")

    def _refused(self, session: StreamSession, reasons: list[str], later: bool) -> None:
        """Record that a client does not participate, in this run or at present."""
        session.refusals += 1
        if session.refusals > MOST_REFUSALS:
            raise WireError(f"more than {MOST_REFUSALS} refusals on one stream")
        session.ready = False
        self.dispatcher.refusals.pop(session.client, None)
        if not later:
            self.dispatcher.refusals[session.client] = "; ".join(reasons)
        self.note("refused_by_client", session.client, {"reasons": reasons, "later": later})
        self.dispatcher.send_call(session.client)

    # -- the course of the run, on the loop's thread -------------------------------------------
    def ready(self) -> list[int]:
        """Return the connected clients that participate; callable from any thread."""
        return sorted(c for c, s in list(self.sessions.items()) if s.ready)

    def completed(self, round: int, kept: Mapping[int, Sequence[int]], head: Callable[[int], Any]) -> None:
        """Complete a round: send a commit to all clients.

        Args:
            round: the completed round.
            kept: clients whose work is part of the result, with the operations that do not count them.
            head: returns the head of a client's commit.
        """
        self.progress.round = round
        self.progress.kept.update({client: (round, tuple(lost)) for client, lost in kept.items()})
        self.dispatcher.engaged.clear()
        self.broadcast(p.COMMIT, head)

    def again(self) -> None:
        """Repeat a round: send a rollback to all clients."""
        self.progress.take += 1
        self.dispatcher.engaged.clear()
        self.broadcast(p.ROLLBACK, lambda _: {"take": self.progress.take})

    def broadcast(self, kind: int, head: Callable[[int], Any]) -> None:
        """Send a message without parts to all connected clients, also to those whose READY is on its way.

        Args:
            kind: kind of the message.
            head: returns the head for a client.
        """
        for client, session in self.sessions.items():
            session.put(kind, head(client))

    async def left(self, seconds: float) -> None:
        """Wait at most `seconds` until all clients have disconnected."""
        end = time.monotonic() + seconds
        while self.sessions and time.monotonic() < end:
            await asyncio.sleep(0.01)

    async def watch(self) -> None:
        """Send pings, close silent streams, and check certificates, until cancelled."""
        beat, last = self.settings.heartbeat, time.monotonic()
        while True:
            await asyncio.sleep(min(self.settings.watch, beat))
            now = time.monotonic()
            due = now - last >= beat
            last = now if due else last
            self._signed()  # distribute a newer directory
            for session in list(self.sessions.values()):
                self.door.recheck(session)
                if now - session.link.received_at > 3 * beat and not session.link.waits:
                    session.close(_STATUS.DEADLINE_EXCEEDED, "the client sent nothing for too long")
                elif due and session.outbox.empty():
                    session.put(p.PING)
