"""What of a secure sum comes from outside, and what is made of it: packed words as tensors, records, shapes.

Packed words travel as tensors of bytes: in a message these lie behind its header, so that their length is bounded
by the message's own limit alone.
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

__all__ = ["MALFORMED", "as_bytes", "as_tensors", "fits", "need", "opened_record", "packed_record", "session_of"]

MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError)
"""What values from outside raise where they are not of the kind that the code expects."""


def need(message: Any, *names: str) -> tuple[Any, ...]:
    """Return the named parts of a message; raises `ProtocolError` where one is missing."""
    if not isinstance(message, Mapping) or not all(name in message for name in names):
        raise ProtocolError(f"malformed message: it lacks one of {', '.join(names)}")
    return tuple(message[name] for name in names)


def session_of(facts: Any) -> Session:
    """Return the session that a server offers; raises `ProtocolError` for facts that make none."""
    try:
        return Session.from_plain(facts)
    except (PacelineError, *MALFORMED) as error:
        raise ProtocolError(f"the session's facts are malformed: {error}") from None


def as_tensors(packed: Sequence[bytes]) -> list[Tensor]:
    """Return packed words as tensors of bytes."""
    return [torch.frombuffer(bytearray(part), dtype=torch.uint8) if part else torch.empty(0, dtype=torch.uint8) for part in packed]


def as_bytes(packed: Any) -> Any:
    """Undo `as_tensors`, without a copy; what is no list of such tensors stays as it is, for the protocol to refuse."""
    if not isinstance(packed, list) or not all(isinstance(p, Tensor) and p.dtype == torch.uint8 and p.dim() == 1 for p in packed):
        return packed
    return [memoryview(part.contiguous().numpy()) for part in packed]


def packed_record(values: Sequence[float]) -> bytes:
    """Return a record's bytes."""
    return struct.pack(f"<{len(values)}d", *values)


def opened_record(data: bytes) -> list[float] | None:
    """Return the record of a neighbour's bytes, or None where it sent something else."""
    values = [x for (x,) in struct.iter_unpack("<d", data)] if len(data) % 8 == 0 else [math.nan]
    return values if is_record(values) else None


def fits(codec: Codec, shape: Any, table: Any) -> bool:
    """Return whether a masked vector's segments follow from the shape that its sender tells."""
    try:
        structure_from_plain(shape["structure"])
        return bool(segments_table(codec.segments(shape)) == table)
    except (PacelineError, *MALFORMED):
        return False
