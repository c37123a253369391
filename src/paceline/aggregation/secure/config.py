"""Options of secure aggregation and the segments of a masked vector, identical on client and server."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from paceline.core.errors import ConfigError

__all__ = ["SecureConfig", "Segment"]


@dataclass(frozen=True)
class SecureConfig:
    """Options of secure aggregation (profile R).

    Args:
        clip: largest absolute value C of a coordinate of an update; larger values are clipped.
        clip_norm: L2 norm to which a whole update is scaled down first, or None.
        bits: q, bits of a quantised coordinate including its sign.
        max_weight: W; weights are rounded up to whole numbers and capped at W. 1 means uniform weights.
        gamma: fraction of corrupt clients that privacy must tolerate.
        delta: fraction of clients that may drop out.
        active: also protect against a server that deviates from the protocol (signatures, consistency round, larger thresholds).
        prg: mask generator, ``aes128ctr`` or ``chacha20``.
        sigma: privacy fails with probability at most 2^-sigma.
        eta: a round is lost with probability at most 2^-eta.
        complete_up_to: cohorts up to this size use the complete graph.
        threshold, neighbours: t and k instead of the computed ones; with `active`, t must exceed k/2.
        least_contributors: smallest number of clients that have trained a coordinate for its sum to be opened, and smallest
            number of clients in a tier, where clients send parts of a model.
        pipelined: exchange keys and shares of the next round in the messages of this one, where its cohort is known.

    Raises:
        ConfigError: a value is outside its range.
    """

    clip: float = 1.0
    clip_norm: float | None = None
    bits: int = 16
    max_weight: int = 1
    gamma: float = 0.1
    delta: float = 0.1
    active: bool = True
    prg: Literal["aes128ctr", "chacha20"] = "aes128ctr"
    sigma: int = 40
    eta: int = 30
    complete_up_to: int = 50
    threshold: int | None = None
    neighbours: int | None = None
    least_contributors: int = 3
    pipelined: bool = True

    def __post_init__(self) -> None:
        wrong = []
        if not 0 < self.clip < math.inf:
            wrong.append(f"clip={self.clip} must be above 0")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            wrong.append(f"clip_norm={self.clip_norm} must be above 0")
        if not 2 <= self.bits <= 24:
            wrong.append(f"bits={self.bits} must be from 2 to 24")
        if not 1 <= self.max_weight <= 2**20:
            wrong.append(f"max_weight={self.max_weight} must be from 1 to 2^20")
        wrong += [
            f"{n}={getattr(self, n)} must be at least 0 and below 1" for n in ("gamma", "delta") if not 0 <= getattr(self, n) < 1
        ]
        if self.prg not in ("aes128ctr", "chacha20"):
            wrong.append(f"prg={self.prg!r} must be aes128ctr or chacha20")
        least = {"sigma": 1, "eta": 1, "complete_up_to": 0, "threshold": 1, "neighbours": 1, "least_contributors": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                wrong.append(f"{name}={value} must be at least {bound}")
        if wrong:
            raise ConfigError("secure aggregation: " + "; ".join(wrong))

    def modulus_bits(self, clients: int) -> int:
        """Return b = q + ceil(log2(n W)), with which the sum of n clients cannot wrap."""
        return self.bits + math.ceil(math.log2(max(clients * self.max_weight, 1)))

    def least(self, clients: int) -> int:
        """Return n_min = min(ceil(gamma n) + 3, n): with n_min survivors at least three are honest."""
        return min(math.ceil(self.gamma * clients - 1e-9) + 3, clients)


@dataclass(frozen=True)
class Segment:
    """Part of the masked vector with its own modulus and mask stream.

    Args:
        name: name of the stream.
        length: number of words.
        bits: b; sums are modulo 2^b.
        part: segment of the model that it belongs to, see `paceline.core.nested`: clients of a smaller part do not send it. None
            for what all clients send.

    Raises:
        ConfigError: `bits` is not from 1 to 64, or the length is negative.
    """

    name: str
    length: int
    bits: int
    part: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 64 or self.length < 0:
            raise ConfigError(f"segment {self.name!r}: {self.length} words of {self.bits} bits; words have 1 to 64 bits")

    @property
    def dtype(self) -> str:
        """NumPy dtype of the words, in which sums wrap."""
        return "<u4" if self.bits <= 32 else "<u8"

    @property
    def width(self) -> int:
        """Bytes per word on the wire."""
        return -(-self.bits // 8)

    @property
    def size(self) -> int:
        """Size of the segment on the wire in bytes."""
        return self.length * self.width

    @property
    def mask(self) -> int:
        """2^b - 1."""
        return (1 << self.bits) - 1
