"""Server-side session of one connected client."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import grpc

from paceline.network.frames import MessagePart
from paceline.network.stream import Link

__all__ = ["Closed", "Outgoing", "StreamSession"]


@dataclass(frozen=True)
class Outgoing:
    """A queued message; `phase` is the call whose sending time is recorded."""

    kind: int
    head: Any = None
    parts: tuple[MessagePart, ...] = ()
    phase: Any = None


@dataclass(frozen=True)
class Closed:
    """Status and reason with which the server closes a stream."""

    code: grpc.StatusCode
    why: str


@dataclass(eq=False)
class StreamSession:
    """Stream of one client.

    Args:
        client, name: id and name from the certificate.
        instance: identifies the client's process; a restarted client has a new one.
        certificate: PEM; checked again while the stream is open.
        link: the stream.
        pack: whether the client can decompress zstd.
        ready: whether the client participates.
        refusals: number of refusals received on this stream.
        since: time (monotonic) of the connection.
        outbox: queued messages.
        closing: resolves when the server closes the stream.
    """

    client: int
    name: str
    instance: bytes
    certificate: bytes
    link: Link
    pack: bool = False
    ready: bool = False
    refusals: int = 0
    since: float = field(default_factory=time.monotonic)
    outbox: asyncio.Queue[Outgoing] = field(default_factory=asyncio.Queue)
    closing: asyncio.Future[Closed] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def put(self, kind: int, head: Any = None, *parts: MessagePart, phase: Any = None) -> None:
        """Queue a message for sending."""
        self.outbox.put_nowait(Outgoing(kind, head, parts, phase))

    def close(self, code: grpc.StatusCode, why: str) -> None:
        """Close the stream."""
        if not self.closing.done():
            self.closing.set_result(Closed(code, why))

    async def write(self) -> None:
        """Send queued messages in order, until cancelled."""
        while True:
            item = await self.outbox.get()
            if item.phase is not None:
                if self.client in item.phase.answered:
                    continue
                item.phase.sent[self.client] = time.monotonic()
            await self.link.send(item.kind, item.head, *item.parts)
