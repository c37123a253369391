"""Dispatch of one call at a time to the clients, and tracking of its replies. Runs on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from paceline.core.errors import WireError
from paceline.network import protocol as p
from paceline.network.admission import Note
from paceline.network.pending_call import Arrival, PendingCall
from paceline.network.server_session import StreamSession
from paceline.network.stream import Message

__all__ = ["Dispatcher"]


class Dispatcher:
    """Sends calls to connected clients, resends them after a reconnect, and gives up on clients that do not return.

    Args:
        sessions: open sessions by client.
        pack: compress messages for a single client.
        note: receives events, such as late replies.
        shaper: injected faults; None for none.
    """

    def __init__(self, sessions: Mapping[int, StreamSession], pack: bool, note: Note, shaper: Any) -> None:
        self._sessions, self._pack, self._note, self._shaper = sessions, pack, note, shaper
        self.phase: PendingCall | None = None
        self.last = 0
        self.engaged: dict[int, bytes] = {}
        """Process instance of each client that has worked in this round; a restarted process has lost that work."""
        self.refusals: dict[int, str] = {}
        """Clients that refuse to participate in this run, with their reasons."""

    def open(self, phase: PendingCall) -> None:
        """Send a call to its clients."""
        self.phase, self.last = phase, phase.id
        if self._shaper is not None:
            self._shaper.enter(phase.name, phase.call.round)
        for client in phase.call.clients:
            self.send_call(client)

    def shut(self) -> None:
        """Close the call; later replies are late."""
        phase, self.phase = self.phase, None
        if phase is not None:
            if self._shaper is not None:
                self._shaper.leave()
            phase.close()

    def expects(self, client: int, number: int) -> bool:
        """Return whether an arriving reply is still needed; unneeded replies are discarded unread.

        Raises:
            WireError: the reply was never requested.
        """
        phase = self.phase
        if phase is not None and number == phase.id:
            if client not in phase.called:
                raise WireError("a reply arrived from a client that was not called")
            return client not in phase.answered
        if number > self.last:
            raise WireError(f"a reply to call {number}, which does not exist")
        return False

    def reply(self, session: StreamSession, message: Message) -> None:
        """Process a completely received reply."""
        phase = self.phase
        if phase is None or message.head["id"] != phase.id or session.client in phase.answered:
            message.close()
            self._note("late", session.client, {"id": message.head["id"]})
            return
        self.engaged[session.client] = session.instance
        phase.settle(Arrival(session.client, message))

    def send_call(self, client: int) -> None:
        """Send the open call to a client that is part of it and has not answered."""
        phase, session = self.phase, self._sessions.get(client)
        if phase is None or client not in phase.called or client in phase.answered:
            return
        if client in self.refusals:
            phase.settle(Arrival(client, None, "refused: " + self.refusals[client]))
        elif session is None or not session.ready:
            self.lost(client)
        elif self.engaged.get(client, session.instance) != session.instance:
            phase.settle(Arrival(client, None, "gone"))
        else:
            session.put(p.CALL, phase.head, phase.message, *phase.own(client, self._pack and session.pack), phase=phase)

    def lost(self, client: int) -> None:
        """Start the reconnect timeout of a disconnected client; it counts as gone when the timeout expires."""
        phase = self.phase
        if phase is None or client not in phase.called or client in phase.answered:
            return

        def give_up() -> None:
            session = self._sessions.get(client)
            if self.phase is phase and (session is None or not session.ready):
                phase.settle(Arrival(client, None, "gone"))

        asyncio.get_running_loop().call_later(phase.patience.reconnect, give_up)
