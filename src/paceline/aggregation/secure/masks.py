"""Masks: pseudorandom words expanded from a seed, added to a vector in place.

Each (seed, segment) pair has its own key and therefore its own stream. The vector is processed block by block, so
that stream and vector stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES128, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from paceline.aggregation.secure.keys import derive_stream
from paceline.core.errors import ConfigError

__all__ = ["PRGS", "apply", "apply_all", "expand"]

PRGS = ("aes128ctr", "chacha20")
"""Mask generators; client and server must use the same one."""

_BLOCK = 1 << 18


def _stream(seed: bytes, segment: str, prg: str) -> CipherContext:
    """Open a key stream. The zero nonce is safe because every key is used for exactly one stream."""
    info = b"prg|" + segment.encode()
    if prg == "aes128ctr":
        return Cipher(AES128(derive_stream(seed, info, 16)), CTR(bytes(16))).encryptor()
    if prg == "chacha20":
        return Cipher(ChaCha20(derive_stream(seed, info, 32), bytes(16)), mode=None).encryptor()
    raise ConfigError(f"unknown mask generator {prg!r}; known: {', '.join(PRGS)}")


def expand(seed: bytes, segment: str, count: int, dtype: Any, prg: str = "aes128ctr") -> NDArray[Any]:
    """Return the first `count` words of a mask, read little-endian on every machine."""
    kind = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(_stream(seed, segment, prg).update(bytes(count * kind.itemsize)), dtype=kind)


def apply(accumulator: NDArray[Any], seed: bytes, segment: str, sign: int, prg: str = "aes128ctr") -> None:
    """Add (sign 1) or subtract (sign -1) one mask, in place and modulo the word size."""
    apply_all(accumulator, [(seed, sign)], segment, prg)


def apply_all(accumulator: NDArray[Any], seeds: Sequence[tuple[bytes, int]], segment: str, prg: str = "aes128ctr") -> None:
    """Add or subtract many masks, in place and modulo the word size.

    Args:
        accumulator: words, uint32 or uint64, shape [d].
        seeds: 32-byte seeds, each with sign 1 or -1.
        segment: name of the streams.
        prg: mask generator, one of `PRGS`.

    Raises:
        ConfigError: unknown generator.

    Example:
        >>> words = np.zeros(4, dtype="<u4")
        >>> apply_all(words, [(bytes(32), 1), (bytes(32), -1)], "main")
        >>> words.tolist()
        [0, 0, 0, 0]
    """
    size = accumulator.dtype.itemsize
    streams = [(_stream(seed, segment, prg), sign) for seed, sign in seeds]
    zeros = bytes(min(_BLOCK, len(accumulator) * size))
    buffer = bytearray(len(zeros) + 15)  # update_into requires space for one more cipher block
    words = np.frombuffer(buffer, dtype=accumulator.dtype.newbyteorder("<"), count=len(zeros) // size)
    for start in range(0, len(accumulator), _BLOCK // size):
        part = accumulator[start : start + _BLOCK // size]
        source = zeros if len(part) * size == len(zeros) else zeros[: len(part) * size]
        mask = words[: len(part)]
        for stream, sign in streams:
            stream.update_into(source, buffer)
            (np.add if sign > 0 else np.subtract)(part, mask, out=part)
