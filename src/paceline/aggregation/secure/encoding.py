"""Fixed-point encoding of floats as words modulo 2^b: clipping, stochastic rounding, packing.

A coordinate becomes w * round(clip(x) S) with S = (2^(q-1) - 1) / C, in two's complement modulo 2^b, so no
offset has to be subtracted from a sum. Rounding is stochastic and therefore unbiased.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.aggregation.secure.config import Segment
from paceline.core.errors import NonFiniteError, ProtocolError

__all__ = ["pack", "quantise", "scale_of", "signed", "to_words", "unpack"]

Words = NDArray[Any]


def scale_of(clip: float, bits: int) -> float:
    """Return S = (2^(q-1) - 1) / C, the number of quantisation steps per unit."""
    return float((1 << (bits - 1)) - 1) / clip


def quantise(
    values: NDArray[Any], clip: float, bits: int, rng: np.random.Generator, weight: int | NDArray[Any] = 1
) -> tuple[NDArray[np.int64], int]:
    """Return (w * stochastic round(clip(x) S) as int64, number of clipped coordinates).

    Args:
        values: floats, shape [d].
        clip: C.
        bits: q.
        rng: generator of the rounding.
        weight: whole number, scalar or shape [d].

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    top = float(np.abs(values).max()) if len(values) else 0.0
    if not np.isfinite(top):
        raise NonFiniteError("the update contains NaN or infinity; lower the learning rate")
    kind = np.float32 if bits <= 16 else np.float64
    clipped = int(np.count_nonzero(np.abs(values) > clip)) if top > clip else 0
    scaled = np.clip(values, -clip, clip).astype(kind) * kind(scale_of(clip, bits))
    whole = np.floor(scaled)
    whole += rng.random(len(values), dtype=kind) < (scaled - whole)
    limit = (1 << (bits - 1)) - 1  # rounding in float32 may exceed it
    np.clip(whole, -limit, limit, out=whole)
    out = whole.astype(np.int64)
    if isinstance(weight, np.ndarray) or weight != 1:
        out *= np.asarray(weight, dtype=np.int64)
    return out, clipped


def to_words(values: NDArray[np.int64], segment: Segment) -> Words:
    """Return integers modulo 2^b as words of the segment's dtype."""
    return (values.view(np.uint64) & np.uint64(segment.mask)).astype(segment.dtype)


def signed(words: Words, segment: Segment) -> NDArray[np.int64]:
    """Return words as signed integers: values from 2^(b-1) up are negative."""
    values = words.astype(np.uint64) & np.uint64(segment.mask)
    half = np.uint64(1 << (segment.bits - 1))
    return ((values ^ half).view(np.int64)) - np.int64(half)


def pack(words: Words, segment: Segment) -> bytes:
    """Return the low `segment.width` bytes of each word, little-endian.

    Raises:
        ProtocolError: the number of words is not the segment's length.

    Example:
        >>> segment = Segment("main", 2, 24)
        >>> pack(np.array([1, 258], dtype=segment.dtype), segment).hex()
        '010000020100'
    """
    if len(words) != segment.length:
        raise ProtocolError(f"segment {segment.name!r} must have {segment.length} words, not {len(words)}")
    data = np.ascontiguousarray(words & words.dtype.type(segment.mask), dtype=segment.dtype)
    if segment.width == data.dtype.itemsize:
        return data.tobytes()
    return np.ascontiguousarray(data.view(np.uint8).reshape(segment.length, data.dtype.itemsize)[:, : segment.width]).tobytes()


def unpack(data: bytes | memoryview, segment: Segment) -> Words:
    """Return the words of a packed segment.

    Raises:
        ProtocolError: the data have the wrong length.
    """
    if len(data) != segment.size:
        raise ProtocolError(f"segment {segment.name!r} must have {segment.size} bytes, not {len(data)}")
    kind = np.dtype(segment.dtype)
    if segment.width == kind.itemsize:
        return np.frombuffer(data, dtype=kind).copy()
    # read whole overlapping words and clear the bytes that were not sent: much faster than a copy byte by
    # byte; the padding extends the buffer to the end of the last word
    padded = b"".join((data, bytes(kind.itemsize - segment.width)))
    overlapping: Words = np.ndarray((segment.length,), kind, padded, 0, (segment.width,))
    out: Words = overlapping & kind.type((1 << 8 * segment.width) - 1)
    return out
