"""Wire format: messages split into frames, and the checks applied before their content is used.

A frame is one gRPC message::

    "PL" | version u8 | flags u8 | sequence u64 | CRC-32 of the payload u32 | payload     (little-endian)

The frames of one direction of one stream are numbered 0, 1, 2, ... A missing, duplicate or reordered frame ends the
stream, as does a wrong checksum. A message is an opening frame (kind, number of parts, and for each part its length on
the wire, its unpacked length and whether it is compressed with zstd), followed by the parts' bytes, in frames that
never span two parts. Part 0 is a small tree, the head. A small message is one frame: the opening and all parts in a row.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from paceline.core.errors import MissingExtraError, WireError
from paceline.core.serialization import Limits, dumps
from paceline.core.tree import Tree

__all__ = ["CHUNK", "HEAD", "HEAD_LIMITS", "MessagePart", "Opening", "frames", "open_frame", "opening", "unpack"]

MAGIC = b"PL"
VERSION = 2
OPEN = 1
WHOLE = 2
HEAD = struct.Struct("<2sBBQI")
_OPENING = struct.Struct("<BB")
_PART = struct.Struct("<QQB")

CHUNK = 256 * 1024
"""Bytes of a part in one frame."""

SMALL = 32 * 1024
"""Total size in bytes up to which the parts of a message travel in its opening frame."""

HEAD_LIMITS = Limits(size=1 << 20, header=1 << 20, depth=64, items=100_000, tensors=64)
"""Decoding limits of the head of a message."""

MOST_PARTS = 4

_OUT = Limits(header=4 << 30)
"""Encoding limits of outgoing trees: byte strings are part of a tree's header, which may be as large as the receiver allows."""


@dataclass
class MessagePart:
    """Bytes to send to one or several clients; split and checksummed only once.

    Args:
        data: bytes on the wire.
        raw: unpacked length in bytes.
        packed: whether `data` is compressed with zstd.
    """

    data: bytes
    raw: int
    packed: bool = False
    _checks: list[int] = field(default_factory=list, repr=False)

    @staticmethod
    def of(tree: Tree, pack: bool = False) -> MessagePart:
        """Encode a tree; with `pack`, compress it if that saves at least a tenth.

        Raises:
            MissingExtraError: zstandard is not installed.
        """
        data = dumps(tree, _OUT)
        if pack and len(data) > 1024:
            packed = _zstd().ZstdCompressor(level=1).compress(data)
            if len(packed) < 0.9 * len(data):
                return MessagePart(packed, len(data), True)
        return MessagePart(data, len(data))

    @property
    def chunks(self) -> Iterator[tuple[memoryview, int]]:
        """Chunks of one frame each, with their checksums, which are computed when a chunk is first sent."""
        view = memoryview(self.data)
        for number, at in enumerate(range(0, len(view), CHUNK)):
            piece = view[at : at + CHUNK]
            if number == len(self._checks):
                self._checks.append(zlib.crc32(piece))
            yield piece, self._checks[number]


@dataclass(frozen=True)
class Opening:
    """Announcement of a message: (wire bytes, unpacked bytes, compressed) of each part."""

    kind: int
    parts: tuple[tuple[int, int, bool], ...]

    @property
    def size(self) -> int:
        """Total bytes on the wire."""
        return sum(wire for wire, _, _ in self.parts)

    @property
    def raw(self) -> int:
        """Total bytes when unpacked."""
        return sum(raw for _, raw, _ in self.parts)


def frames(kind: int, parts: Sequence[MessagePart], first: int) -> Iterator[bytes]:
    r"""Yield the frames of a message.

    Args:
        kind: kind of the message, see `protocol`.
        parts: head and further parts.
        first: sequence number of the opening frame.

    Example:
        >>> (frame,) = list(frames(1, [MessagePart(b"", 0)], 0))
        >>> flags, payload = open_frame(frame, expected=0)
        >>> flags == OPEN | WHOLE, bytes(payload[:2])
        (True, b'\x01\x01')
    """
    text = _OPENING.pack(kind, len(parts)) + b"".join(_PART.pack(len(p.data), p.raw, p.packed) for p in parts)
    if sum(len(part.data) for part in parts) <= SMALL:
        text += b"".join(part.data for part in parts)
        yield HEAD.pack(MAGIC, VERSION, OPEN | WHOLE, first, zlib.crc32(text)) + text
        return
    yield HEAD.pack(MAGIC, VERSION, OPEN, first, zlib.crc32(text)) + text
    for part in parts:
        for piece, check in part.chunks:
            first += 1
            yield b"".join((HEAD.pack(MAGIC, VERSION, 0, first, check), piece))


def open_frame(frame: bytes, expected: int) -> tuple[int, memoryview]:
    """Return the flags of a frame, `OPEN` if it opens a message and `WHOLE` if it also contains its parts, and its payload.

    Args:
        frame: the received bytes.
        expected: expected sequence number.

    Raises:
        WireError: the frame is truncated, corrupted, out of order or of an unknown format.
    """
    if len(frame) <= HEAD.size:
        raise WireError(f"truncated frame of {len(frame)} bytes")
    magic, version, flags, sequence, check = HEAD.unpack_from(frame)
    if magic != MAGIC:
        raise WireError("not a Paceline frame (wrong magic bytes)")
    if version != VERSION:
        raise WireError(f"unsupported frame format {version} (this version reads {VERSION}); upgrade paceline")
    if flags not in (0, OPEN, OPEN | WHOLE):
        raise WireError(f"a frame has the unknown flags {flags:#x}")
    if sequence != expected:
        what = "is missing" if sequence > expected else "was repeated, or out of order"
        raise WireError(f"frame {sequence} arrived instead of {expected}; a frame {what}")
    payload = memoryview(frame)[HEAD.size :]
    if zlib.crc32(payload) != check:
        raise WireError(f"frame {sequence} was corrupted in transit")
    return flags, payload


def opening(payload: memoryview, whole: bool = False) -> tuple[Opening, list[memoryview]]:
    """Return the announcement in an opening frame's payload, and the parts if it contains the whole message.

    Raises:
        WireError: the payload is malformed.
    """
    if len(payload) < _OPENING.size:
        raise WireError("truncated opening frame")
    kind, count = _OPENING.unpack_from(payload)
    end = _OPENING.size + count * _PART.size
    if not 1 <= count <= MOST_PARTS or (len(payload) < end if whole else len(payload) != end):
        raise WireError(f"an opening frame of {len(payload)} bytes announces {count} parts")
    rows = [_PART.unpack_from(payload, _OPENING.size + i * _PART.size) for i in range(count)]
    if any(not wire > 0 or packed > 1 or (not packed and wire != raw) for wire, raw, packed in rows):
        raise WireError("an opening frame announces invalid lengths of parts")
    announced = Opening(kind, tuple((wire, raw, bool(packed)) for wire, raw, packed in rows))
    if not whole:
        return announced, []
    if announced.size != len(payload) - end:
        raise WireError(f"a frame with a whole message of {announced.size} bytes contains {len(payload) - end}")
    ends = list(accumulate((wire for wire, _, _ in rows), initial=end))
    return announced, [payload[start:stop] for start, stop in pairwise(ends)]


def unpack(data: bytes | bytearray | memoryview, raw: int) -> bytes:
    """Decompress zstd data to exactly `raw` bytes.

    Raises:
        WireError: the data are invalid or of another length.
        MissingExtraError: zstandard is not installed.
    """
    zstd = _zstd()
    try:
        if zstd.frame_content_size(data) != raw:
            raise WireError(f"compressed data do not expand to the announced {raw} bytes")
        made: bytes = zstd.ZstdDecompressor().decompress(data, max_output_size=raw)
    except zstd.ZstdError as error:
        raise WireError(f"compressed data cannot be decompressed: {error}") from None
    if len(made) != raw:
        raise WireError(f"compressed data expand to {len(made)} bytes, not {raw}")
    return made


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError("zstandard", "grpc") from None
    return zstandard
