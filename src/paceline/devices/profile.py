"""Profile of one device: compute speed, links, latency, availability."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from paceline.core.errors import ConfigError

__all__ = ["COMPUTE", "LATENCY", "LINK", "Profile"]

COMPUTE = 2e9
"""Effective training speed of an ordinary client, in FLOP/s: phone class, 2 GFLOP/s.

FLOPs count two per multiply-add, and three forward passes per training step. A local epoch of VGG-9 on 32x32 images
(0.24 GFLOP per sample) then takes 48 s for 400 samples.
"""

LINK = 50e6
"""Bandwidth of an ordinary client in each direction, in bit/s: 50 Mbit/s."""

LATENCY = 0.03
"""Latency of an ordinary client, in seconds per transfer: 30 ms."""


@dataclass(frozen=True)
class Profile:
    """One device at one moment.

    Args:
        compute: effective training speed, FLOP/s.
        up: upload bandwidth, bit/s.
        down: download bandwidth, bit/s.
        latency: seconds before the first byte of each transfer arrives.
        availability: probability that the device is available in a round.
        overhead: fixed additional seconds of any work (loading data, waking up).
        slowdown: factor on seconds measured on this machine, if these are used instead of counted FLOPs.
        burst: seconds of work at full speed in one call; then the device is hot.
        throttle: factor by which a hot device is slower.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> round(Profile(compute=2e9, up=5e6, down=50e6, latency=0.03).upload_seconds(1_000_000), 2)
        1.63
    """

    compute: float = COMPUTE
    up: float = LINK
    down: float = LINK
    latency: float = LATENCY
    availability: float = 1.0
    overhead: float = 0.0
    slowdown: float = 1.0
    burst: float = math.inf
    throttle: float = 1.0

    def __post_init__(self) -> None:
        wrong = [f"{n}={getattr(self, n)} must be above 0" for n in _POSITIVE if not getattr(self, n) > 0]
        wrong += [
            f"{n}={getattr(self, n)} must be finite and at least 0"
            for n in ("latency", "overhead")
            if not 0 <= getattr(self, n) < float("inf")
        ]
        if not self.burst >= 0 or not 1 <= self.throttle < math.inf:
            wrong.append(f"burst={self.burst} must be at least 0, and throttle={self.throttle} at least 1")
        if not 0 <= self.availability <= 1:
            wrong.append(f"availability={self.availability} must be from 0 to 1")
        if wrong:
            raise ConfigError("invalid device profile: " + "; ".join(wrong))

    def compute_seconds(self, flops: float) -> float:
        """Return the seconds for `flops` FLOPs of training, including the overhead."""
        return self._work(flops / self.compute)

    def measured_seconds(self, seconds: float) -> float:
        """Return the seconds on this device for work that took `seconds` on the machine running the simulation."""
        return self._work(seconds * self.slowdown)

    def _work(self, seconds: float) -> float:
        """Return the seconds of work that takes `seconds` at full speed."""
        return self.overhead + seconds + (max(seconds - self.burst, 0.0) * (self.throttle - 1.0) if self.throttle > 1.0 else 0.0)

    def upload_seconds(self, num_bytes: float) -> float:
        """Return the seconds to upload `num_bytes` bytes."""
        return self.latency + 8.0 * num_bytes / self.up

    def download_seconds(self, num_bytes: float) -> float:
        """Return the seconds to download `num_bytes` bytes."""
        return self.latency + 8.0 * num_bytes / self.down

    def as_dict(self) -> dict[str, float]:
        """Return all fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


_POSITIVE = ("compute", "up", "down", "slowdown")
