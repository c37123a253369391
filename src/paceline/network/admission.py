"""Admission of new streams: authenticate the client, check its hello, and accept or refuse the stream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import grpc.aio

from paceline.core.errors import IdentityError, WireError
from paceline.network import protocol as p
from paceline.network.buffers import Budget
from paceline.network.interfaces import AdmittedClient, HubSettings, Members, NotNow
from paceline.network.server_session import Closed, StreamSession
from paceline.network.stream import Link, Shaper
from paceline.network.transfer_limits import Lanes

__all__ = ["Door", "Note"]

_STATUS = grpc.StatusCode

_HELLO = 2
"""Frames of a hello: its opening and its head."""

Note = Callable[[str, int | None, dict[str, Any]], None]


class Door:
    """Admits clients, one stream each, and reports every refusal.

    Args:
        members: certificates of the clients.
        settings: settings of the streams.
        sessions: open sessions by client.
        note: receives events.
        budget: memory for incoming messages.
        shaper: injected faults; None for none.
    """

    def __init__(
        self,
        members: Members,
        settings: HubSettings,
        sessions: Mapping[int, StreamSession],
        note: Note,
        budget: Budget,
        shaper: Shaper | None,
    ) -> None:
        self._members, self._settings, self._sessions = members, settings, sessions
        self._note, self._budget, self._shaper = note, budget, shaper
        self._greeting: dict[int, int] = {}
        self._out, self._in = Lanes(settings.lanes), Lanes(settings.lanes)

    async def enter(self, context: Any) -> StreamSession | Closed:
        """Return the session of a new stream, or the status with which it is refused.

        Args:
            context: gRPC context of the stream.
        """
        try:
            certificate, member = self._who(context)
        except IdentityError as error:
            with contextlib.suppress(TimeoutError):  # a client reads the reason only after it has sent its hello
                async with asyncio.timeout(1.0):
                    for _ in range(_HELLO):
                        await context.read()
            return self.refuse(None, _code(error), "certificate", str(error), context.peer())
        if self._greeting.get(member.id, 0) >= self._settings.waiting:
            return self.refuse(member.id, _STATUS.RESOURCE_EXHAUSTED, "crowd", "too many streams are being opened", context.peer())
        self._greeting[member.id] = self._greeting.get(member.id, 0) + 1
        try:
            return await self._greet(certificate, member, context)
        finally:
            self._greeting[member.id] -= 1
            if not self._greeting[member.id]:
                del self._greeting[member.id]

    def recheck(self, session: StreamSession) -> None:
        """Close a stream whose certificate has expired or was revoked."""
        try:
            self._members.member(session.certificate)
        except IdentityError as error:
            self.refuse(session.client, _code(error), "certificate", str(error), session.name)
            session.close(_code(error), p.clean(error))

    def refuse(self, client: int | None, code: grpc.StatusCode, reason: str, why: str, who: str) -> Closed:
        """Report a refusal and return its status.

        Args:
            client: id of the client, None if unknown.
            code: gRPC status code.
            reason: category of the refusal, for the log.
            why: explanation sent to the client.
            who: name or address of the client.
        """
        self._note("refused", client, {"reason": reason, "why": p.clean(why), "from": who})
        return Closed(code, p.clean(why))

    def _who(self, context: Any) -> tuple[bytes, AdmittedClient]:
        shown = context.auth_context().get("x509_pem_cert")
        if not shown:
            raise IdentityError("the client presented no certificate")
        return shown[0], self._members.member(shown[0])

    async def _greet(self, certificate: bytes, member: AdmittedClient, context: Any) -> StreamSession | Closed:
        async def read() -> bytes | None:
            frame = await context.read()
            return None if frame is grpc.aio.EOF else frame

        limit, lanes = self._settings.limit, (self._out, self._in)
        link = Link(read, context.write, limit=limit, budget=self._budget, shaper=self._shaper, lanes=lanes)
        link.vet = _no_parts
        try:
            hello = await asyncio.wait_for(link.receive(), self._settings.hello)
            if hello is None or hello.kind != p.HELLO:
                raise WireError("the first message of a stream must be a hello")
            version, instance = p.field(hello.head, "protocol", int), p.field(hello.head, "instance", bytes)
            pack = p.field(hello.head, "pack", bool)
            if len(instance) != 16:
                raise WireError("malformed hello: the instance id must have 16 bytes")
        except (WireError, TimeoutError) as error:
            return self.refuse(
                member.id, _STATUS.INVALID_ARGUMENT, "hello", str(error) or "no hello arrived in time", context.peer()
            )
        if version != p.PROTOCOL:
            why = f"the server uses protocol {p.PROTOCOL}, this client {version}; upgrade paceline"
            return self.refuse(member.id, _STATUS.FAILED_PRECONDITION, "protocol", why, context.peer())
        before = self._sessions.get(member.id)
        if before is not None:
            quiet = time.monotonic() - before.link.received_at > 2 * self._settings.heartbeat
            if before.instance != instance and not quiet:
                why = f"client {member.id} is already connected; use one certificate per client process"
                return self.refuse(member.id, _STATUS.ALREADY_EXISTS, "twice", why, context.peer())
            before.close(_STATUS.CANCELLED, "replaced by a newer stream")
        return StreamSession(member.id, member.name, instance, certificate, link, pack)


def _code(error: IdentityError) -> grpc.StatusCode:
    """Return the status for a refused certificate: temporary, so that the client retries, or permanent."""
    return _STATUS.UNAUTHENTICATED if isinstance(error, NotNow) else _STATUS.PERMISSION_DENIED


def _no_parts(kind: int, head: Mapping[str, Any], opening: Any) -> bool:
    if len(opening.parts) > 1:
        raise WireError("malformed hello: unexpected parts")
    return True
