"""One stream of a client, from hello to close."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from paceline import __version__
from paceline.core.errors import WireError
from paceline.network import protocol as p
from paceline.network.frames import MessagePart
from paceline.network.handshake import Welcome
from paceline.network.job_queue import JobQueue
from paceline.network.stream import Link

__all__ = ["Dial"]


class Dial:
    """Performs the handshake, then relays messages between the client's desk and the server.

    Args:
        link: the stream.
        desk: job queue of the client.
        bye: called with the head of the server's goodbye.
    """

    def __init__(self, link: Link, jobs: JobQueue, bye: Callable[[dict[str, Any]], None]) -> None:
        self._link, self._jobs, self._bye = link, jobs, bye
        self._out: asyncio.Queue[tuple[int, Any, tuple[MessagePart, ...]]] = asyncio.Queue()
        self._answered = time.monotonic()

    def put(self, kind: int, head: Any = None, *parts: MessagePart) -> None:
        """Queue a message for sending."""
        self._out.put_nowait((kind, head, parts))

    async def talk(self, instance: bytes, pack: bool) -> None:
        """Run the stream until it ends.

        Args:
            instance: 16 random bytes that identify this process.
            pack: whether zstd may be used.

        Raises:
            WireError: the server violates the protocol, or its heartbeat times out.
        """
        link = self._link
        await link.send(p.HELLO, {"protocol": p.PROTOCOL, "version": __version__, "instance": instance, "pack": pack})
        first = await asyncio.wait_for(link.receive(), 30.0)
        if first is None or first.kind != p.WELCOME:
            raise WireError("the server's first message must be a welcome")
        welcome = Welcome.read(first.head, p.directory_of(first))
        self._jobs.join(welcome)
        tasks = [asyncio.ensure_future(t) for t in (self._read(), self._write(), self._watch(welcome.heartbeat))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        while (message := await self._link.receive()) is not None:
            kind = message.kind
            if kind == p.PING:
                self._pong()
            elif kind == p.CALL:
                self._jobs.call(message)
            elif kind in (p.COMMIT, p.ROLLBACK, p.NEWS):
                self._jobs.settle(message)
            elif kind == p.BYE:
                self._bye(message.head)
                return
            else:
                raise WireError(f"the server sent an unexpected message of kind {p.NAMES.get(kind, kind)}")

    async def _write(self) -> None:
        kind = 0
        while kind != p.LEAVE:
            kind, head, parts = await self._out.get()
            began = time.monotonic()
            await self._link.send(kind, head, *parts)
            if kind == p.REPLY:
                self._jobs.sent(head["id"], time.monotonic() - began)

    def _pong(self) -> None:
        self._answered = time.monotonic()
        self.put(p.PONG)

    async def _watch(self, heartbeat: float) -> None:
        while time.monotonic() - self._link.received_at <= 3 * heartbeat + 1.0:
            await asyncio.sleep(heartbeat)
            if time.monotonic() - self._answered >= heartbeat:  # pings queue up behind a model on a slow link
                self._pong()
        raise WireError("the server sent nothing for too long")
