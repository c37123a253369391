"""One connected client, as the server's loop keeps it."""

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
    """A message that waits to be sent; `phase` is the call's, whose sending time is measured."""

    kind: int
    head: Any = None
    parts: tuple[MessagePart, ...] = ()
    phase: Any = None


@dataclass(frozen=True)
class Closed:
    """Why a stream is ended by the server."""

    code: grpc.StatusCode
    why: str


@dataclass(eq=False)
class StreamSession:
    """A client's stream.

    Args:
        client, name: who, as the certificate says.
        instance: of the client's process; a client that was started anew has another one.
        certificate: PEM, looked at again while the stream lives.
        link: the stream.
        pack: whether the client can unpack zstd.
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
        """Send a message when its turn comes."""
        self.outbox.put_nowait(Outgoing(kind, head, parts, phase))

    def close(self, code: grpc.StatusCode, why: str) -> None:
        """End the stream."""
        if not self.closing.done():
            self.closing.set_result(Closed(code, why))

    async def write(self) -> None:
        """Send what is put, in order, for as long as the stream lives."""
        while True:
            item = await self.outbox.get()
            if item.phase is not None:
                if self.client in item.phase.answered:
                    continue
                item.phase.sent[self.client] = time.monotonic()
            await self.link.send(item.kind, item.head, *item.parts)
