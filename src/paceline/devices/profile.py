"""What one device can do: compute, links, latency, availability."""

from __future__ import annotations

from dataclasses import dataclass, fields

from paceline.core.errors import ConfigError

__all__ = ["COMPUTE", "LATENCY", "LINK", "Profile"]

COMPUTE = 2e9
"""Effective training speed of an ordinary client, in FLOP/s: phone class, 2 GFLOP/s.

FLOPs are counted with two for each multiply-add and three forward passes for each training step. A local
epoch of VGG-9 on 32x32 images (0.24 GFLOP a sample) then takes 48 s for 400 samples.
"""

LINK = 50e6
"""Bandwidth of an ordinary client in each direction, in bit/s: 50 Mbit/s."""

LATENCY = 0.03
"""Latency of an ordinary client, in seconds for each transfer: 30 ms."""


@dataclass(frozen=True)
class Profile:
    """One device at one moment.

    Args:
        compute: effective training speed, FLOP/s.
        up: upload bandwidth, bit/s.
        down: download bandwidth, bit/s.
        latency: seconds before the first byte of each transfer arrives.
        availability: probability that the device can be asked in a round.
        overhead: seconds that any work costs on top (loading data, waking up).
        slowdown: factor on seconds that were measured on this machine in place of counted FLOPs.

    Raises `ConfigError` for values that no device can have.

    >>> Profile(compute=2e9, up=5e6, down=50e6, latency=0.03).upload_seconds(1_000_000)
    1.63
    """

    compute: float = COMPUTE
    up: float = LINK
    down: float = LINK
    latency: float = LATENCY
    availability: float = 1.0
    overhead: float = 0.0
    slowdown: float = 1.0

    def __post_init__(self) -> None:
        wrong = [f"{n}={getattr(self, n)} is not above 0" for n in _POSITIVE if not getattr(self, n) > 0]
        wrong += [
            f"{n}={getattr(self, n)} is not in 0..infinity"
            for n in ("latency", "overhead")
            if not 0 <= getattr(self, n) < float("inf")
        ]
        if not 0 <= self.availability <= 1:
            wrong.append(f"availability={self.availability} is no probability")
        if wrong:
            raise ConfigError("this device profile is impossible: " + "; ".join(wrong))

    def compute_seconds(self, flops: float) -> float:
        """Return the seconds that `flops` FLOPs of training take, overhead included."""
        return self.overhead + flops / self.compute

    def measured_seconds(self, seconds: float) -> float:
        """Return the seconds that work takes here which took `seconds` on this machine."""
        return self.overhead + seconds * self.slowdown

    def upload_seconds(self, num_bytes: float) -> float:
        """Return the seconds until `num_bytes` bytes from the device have arrived."""
        return self.latency + 8.0 * num_bytes / self.up

    def download_seconds(self, num_bytes: float) -> float:
        """Return the seconds until `num_bytes` bytes have arrived at the device."""
        return self.latency + 8.0 * num_bytes / self.down

    def as_dict(self) -> dict[str, float]:
        """Return all figures by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


_POSITIVE = ("compute", "up", "down", "slowdown")
