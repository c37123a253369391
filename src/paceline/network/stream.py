"""One stream, used by either side: complete messages over individually checked frames."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from paceline.core.errors import WireError
from paceline.core.serialization import Limits, loads
from paceline.core.tree import Tree
from paceline.network.buffers import Budget, Buffer
from paceline.network.frames import HEAD_LIMITS, WHOLE, MessagePart, Opening, frames, open_frame, opening, unpack
from paceline.network.transfer_limits import Lanes, Turn

__all__ = ["Link", "Message", "Shaper"]

Vet = Callable[[int, Mapping[str, Any], Opening], bool]
"""Decision on a message once its head has arrived: True stores its parts, False discards them unread; may raise."""


class Shaper(Protocol):
    """Modifies frames in transit; used for fault injection."""

    async def outgoing(self, frame: bytes) -> list[bytes]:
        """Return the frames to send in place of this frame."""

    async def incoming(self, frame: bytes) -> None:
        """Delay an incoming frame before it is processed."""


@dataclass
class Message:
    """A received message.

    Args:
        kind: see `protocol`.
        head: the decoded head.
        opening: the announcement.
        parts: bytes of the other parts.
        began, ended: times (monotonic) of the first and the last frame.
        excess: whether the message exceeds the limit, so that its parts were discarded.
    """

    kind: int
    head: dict[str, Any]
    opening: Opening
    parts: list[Buffer]
    began: float
    ended: float
    excess: bool = False

    def tree(self, number: int, limits: Limits) -> Tree:
        """Decode a part.

        Args:
            number: index of the part, 0 for the first after the head.
            limits: decoding limits.

        Raises:
            WireError: the part is malformed or exceeds the limits.
        """
        _, raw, packed = self.opening.parts[number + 1]
        data: bytes | bytearray = self.parts[number].take()
        if packed:
            data = unpack(data, raw)
        return loads(data, replace(limits, size=max(limits.size, 1)), copy=False)

    def close(self) -> None:
        """Release the buffers."""
        for part in self.parts:
            part.close()


class Link:
    """Sends and receives messages on one stream.

    Args:
        read: returns the next frame, or None at the end.
        write: sends a frame and returns once another may follow.
        limit: largest message, in bytes on the wire and unpacked.
        budget: memory for incoming messages.
        vet: see `Vet`.
        shaper: injected faults; None for none.
        lanes: limits on concurrent large transfers (outgoing, incoming); None for no limits.
        skips: kinds of which a message above the limit is read with its parts discarded; any other one ends the stream.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[bytes | None]],
        write: Callable[[bytes], Awaitable[None]],
        *,
        limit: int,
        budget: Budget,
        vet: Vet | None = None,
        shaper: Shaper | None = None,
        lanes: tuple[Lanes, Lanes] | None = None,
        skips: Collection[int] = (),
    ) -> None:
        self._read, self._write = read, write
        self._limit, self._budget, self._shaper = limit, budget, shaper
        self.vet, self._skips = vet, skips
        self._sent = self._seen = 0
        self.bytes_in = self.bytes_out = 0
        self._lanes = lanes or (Lanes(1 << 30), Lanes(1 << 30))
        self._frame_out: asyncio.Future[None] | None = None
        self.received_at = time.monotonic()
        self.waits = False
        """Whether the peer waits for a transfer lane, so that its silence is expected."""

    async def send(self, kind: int, head: Tree = None, *parts: MessagePart) -> None:
        """Send a message; returns when its last frame has been written.

        Args:
            kind: see `protocol`.
            head: the head, a small tree.
            *parts: further parts.
        """
        turn = await self._lanes[0].turn(sum(len(part.data) for part in parts))
        try:
            for frame in frames(kind, (MessagePart.of(head or {}), *parts), self._sent):
                self._sent += 1
                self.bytes_out += len(frame)
                for one in [frame] if self._shaper is None else await self._shaper.outgoing(frame):
                    await self._whole(one)
                turn.going_on()
        finally:
            turn.end()

    async def _whole(self, frame: bytes) -> None:
        """Write a frame, which goes on if the sender is cancelled: gRPC takes no status beside a frame."""
        self._frame_out = asyncio.ensure_future(self._write(frame))
        self._frame_out.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._frame_out)

    async def flush(self, seconds: float) -> None:
        """Wait at most `seconds` for the frame that is being written; call it once nothing more is sent."""
        if self._frame_out is not None:
            await asyncio.wait({self._frame_out}, timeout=seconds)

    async def receive(self) -> Message | None:
        """Return the next message, or None at the end of the stream.

        Raises:
            WireError: the peer violates the format; nothing more can be read afterwards.
            StoreError: a temporary file cannot be written.
        """
        frame = await self._frame()
        if frame is None:
            return None
        flags, payload = frame
        if not flags:
            raise WireError("a message started without an opening frame")
        (announced, pieces), began = opening(payload, bool(flags & WHOLE)), time.monotonic()
        excess = max(announced.size, announced.raw) > self._limit
        if excess and announced.kind not in self._skips:
            raise WireError(f"an announced message of {announced.raw} bytes exceeds the limit of {self._limit}")
        wire, raw, packed = announced.parts[0]
        if max(wire, raw) > HEAD_LIMITS.size or packed:
            raise WireError(f"the head of a message has {raw} bytes, above the limit of {HEAD_LIMITS.size}")
        first = Buffer(wire, Budget())
        await self._fill(first, pieces)
        head = loads(first.take(), HEAD_LIMITS)
        if not isinstance(head, dict) or not all(isinstance(key, str) for key in head):
            raise WireError("the head of a message must be a dict with text keys")
        keep = (self.vet is None or self.vet(announced.kind, head, announced)) and not excess
        message = Message(announced.kind, head, announced, [], began, began, excess)
        turn = None
        try:
            for wire, _, _ in announced.parts[1:]:
                message.parts.append(Buffer(wire, self._budget, keep))
            turn = await self._turn(announced.size)
            for part in message.parts:
                await self._fill(part, pieces, turn)
        except BaseException:
            message.close()
            raise
        finally:
            if turn is not None:
                turn.end()
        message.ended = time.monotonic()
        return message

    async def _turn(self, size: int) -> Turn:
        self.waits = True
        try:
            return await self._lanes[1].turn(size)
        finally:
            self.waits, self.received_at = False, time.monotonic()

    async def _fill(self, buffer: Buffer, pieces: list[memoryview], turn: Turn | None = None) -> None:
        """Fill a buffer with the next part: from `pieces`, if the opening frame contained all of them, else from frames."""
        if pieces:
            buffer.add(pieces.pop(0))
            return
        while True:
            frame = await self._frame()
            if frame is None:
                raise WireError("the stream ended inside a message")
            flags, payload = frame
            if flags:
                raise WireError("a message started inside another one")
            if turn is not None:
                turn.going_on()
            if buffer.add(payload):
                return

    async def _frame(self) -> tuple[int, memoryview] | None:
        frame = await self._read()
        if frame is None:
            return None
        if self._shaper is not None:
            await self._shaper.incoming(frame)
        self.received_at = time.monotonic()
        self.bytes_in += len(frame)
        opened = open_frame(frame, self._seen)
        self._seen += 1
        return opened
