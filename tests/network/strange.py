"""Strange clients: they speak TLS and frames, and say what they like."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from paceline.deploy.identity.trust import Trust
from paceline.network import protocol as p
from paceline.network.buffers import Budget
from paceline.network.frames import MessagePart
from paceline.network.stream import Link
from paceline.network.tls import Credentials, options


class Strange:
    """A stream under a client's certificate, driven by hand; an async context manager."""

    def __init__(self, folder: Path, port: int) -> None:
        trust = Trust.load(folder / "trust.pem")
        self.credentials = Credentials.read(folder / "client.key", folder / "client.pem", trust.roots)
        self.port = port

    async def __aenter__(self) -> Strange:
        wide = [(name, 1 << 30 if name == "grpc.max_send_message_length" else value) for name, value in options()]
        self.channel = grpc.aio.secure_channel(f"localhost:{self.port}", self.credentials.channel(), options=wide)
        self.call = self.channel.stream_stream(p.METHOD)()

        async def read() -> bytes | None:
            frame = await self.call.read()
            return None if frame is grpc.aio.EOF else frame

        self.link = Link(read, self.call.write, limit=1 << 30, budget=Budget())
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.call.cancel()
        await self.channel.close()

    async def hello(self, **changes: Any) -> Any:
        """Say hello and return the welcome."""
        head = {"protocol": p.PROTOCOL, "version": "x", "instance": os.urandom(16), "pack": False, **changes}
        await self.link.send(p.HELLO, head)
        return await self.link.receive()

    async def next_call(self) -> Any:
        """Return the next call; pings are answered."""
        while True:
            message = await self.link.receive()
            if message is None or message.kind in (p.CALL, p.BYE):
                return message if message is not None and message.kind == p.CALL else None
            if message.kind == p.PING:
                await self.link.send(p.PONG)

    async def reply(self, call: Any, value: Any = None, **changes: Any) -> None:
        """Answer a call with any value under any head."""
        facts = {"id": call.head["id"], "dropped": None, "compute": 0.0, "network": 0.0, "seconds": 0.0}
        facts |= {"down": 1, "up": 1, "trained": False}
        await self.link.send(p.REPLY, {**facts, **changes}, MessagePart.of(value))

    async def ended(self) -> tuple[grpc.StatusCode, str]:
        """Return how the server ends this stream."""
        async with asyncio.timeout(5):
            return await self.call.code(), await self.call.details()


async def refused(work: Any) -> tuple[grpc.StatusCode, str]:
    """Return how a stream that `work` drives is ended by the server."""
    try:
        await work
    except grpc.aio.AioRpcError as error:
        return error.code(), str(error.details())
    raise AssertionError("the server did not end this stream")


async def outcome(strange: Strange, work: Any) -> tuple[grpc.StatusCode, str]:
    """The same, where a write may fail before the status has come."""
    try:
        await work
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return await strange.ended()
    raise AssertionError("the server did not end this stream")
