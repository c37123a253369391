"""Validation and conversion of untrusted messages of a secure sum: packed words, records, shapes.

Packed words are sent as byte tensors. In a message these follow the header, so only the size limit of the message
itself applies to them. A client's policy reads a session and a list of survivors by the functions that the protocol uses.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paceline.aggregation.plain import is_record
from paceline.aggregation.secure.codec import Codec
from paceline.aggregation.secure.session import Session, segments_table
from paceline.core.errors import PacelineError, ProtocolError
from paceline.core.update import structure_from_plain

__all__ = [
    "MALFORMED",
    "as_bytes",
    "as_tensors",
    "common_and_own",
    "fits",
    "need",
    "opened_record",
    "packed_record",
    "session_of",
    "survivors_of",
]

MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError)
"""Exceptions that untrusted values of an unexpected type can raise in code that handles them."""


def need(message: Any, *names: str) -> tuple[Any, ...]:
    """Return the named parts of a message; raises `ProtocolError` if one is missing."""
    if not isinstance(message, Mapping) or not all(name in message for name in names):
        raise ProtocolError(f"malformed message: expected the keys {', '.join(names)}")
    return tuple(message[name] for name in names)


def common_and_own(message: Any) -> tuple[Any, Any]:
    """Return the part of a message for all clients and the part for this client alone; raises `ProtocolError` for any other form."""
    if not isinstance(message, Mapping) or set(message) != {"all", "own"}:
        raise ProtocolError("malformed message: expected one part for all clients and one for this client, and nothing else")
    return message["all"], message["own"]


def survivors_of(message: Any) -> tuple[list[int], Any]:
    """Return the list of survivors that a server announces, and the part for this client alone, or None.

    Raises:
        ProtocolError: the message has another form, or could be read in two ways.
    """
    common, own = common_and_own(message) if isinstance(message, Mapping) and "own" in message else (message, None)
    if not isinstance(common, Mapping) or set(common) != {"alive"} or not isinstance(common["alive"], list):
        raise ProtocolError("malformed message: expected a list of survivors and nothing else")
    return common["alive"], own


def session_of(facts: Any) -> Session:
    """Return the session that a server proposes; raises `ProtocolError` for malformed parameters."""
    try:
        return Session.from_plain(facts)
    except (PacelineError, *MALFORMED) as error:
        raise ProtocolError(f"malformed session parameters: {error}") from None


def as_tensors(packed: Sequence[bytes]) -> list[Tensor]:
    """Return packed words as byte tensors."""
    return [torch.frombuffer(bytearray(part), dtype=torch.uint8) if part else torch.empty(0, dtype=torch.uint8) for part in packed]


def as_bytes(packed: Any) -> Any:
    """Undo `as_tensors` without a copy. Any other value is returned unchanged, for the protocol to refuse."""
    if not isinstance(packed, list) or not all(isinstance(p, Tensor) and p.dtype == torch.uint8 and p.dim() == 1 for p in packed):
        return packed
    return [memoryview(part.contiguous().numpy()) for part in packed]


def packed_record(values: Sequence[float]) -> bytes:
    """Encode a record as little-endian float64."""
    return struct.pack(f"<{len(values)}d", *values)


ABSENT = b"\0"
"""Sealed in place of a record by a client that has none; the others leave it out."""


def opened_record(data: bytes) -> list[float] | None:
    """Decode a neighbour's record; None if it is absent or malformed."""
    values = [x for (x,) in struct.iter_unpack("<d", data)] if len(data) % 8 == 0 else [math.nan]
    return values if is_record(values) else None


def fits(codec: Codec, shape: Any, table: Any) -> bool:
    """Return whether a masked vector's segments match the shape that its sender declares."""
    try:
        structure_from_plain(shape["structure"])
        return bool(segments_table(codec.segments(shape)) == table)
    except (PacelineError, *MALFORMED):
        return False
