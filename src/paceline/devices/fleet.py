"""Fleets: the profile of any client in any round as a pure function, so that a million clients cost no memory.

A fleet is a small frozen object. All its random values are hashes of (seed, client, round), so they are identical in
every process and need no list of devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from paceline import registry
from paceline.core.errors import CohortError, ConfigError, UnknownNameError
from paceline.core.random import derive, numpy_rng
from paceline.devices.profile import COMPUTE, LATENCY, LINK, Profile
from paceline.participation.processes import Participation

__all__ = ["Fleet", "Homogeneous", "Mobile", "Stragglers", "load_fleet", "profiles"]

MBIT = 1e6


@dataclass(frozen=True)
class Fleet:
    """A population of devices; subclasses define the individual profiles.

    Args:
        num_clients: size of the population.
        seed: seed of the run.
        compute: speed of an ordinary client, FLOP/s.
        link: bandwidth of an ordinary client in each direction, bit/s.
        latency: seconds of each transfer.
        overhead: fixed additional seconds of any work.
        churn: probability that a client is unavailable in a round, drawn for each client and round.
        participation: process of availability, in addition to `churn`.

    Raises:
        ConfigError: a value is outside its range.
    """

    num_clients: int
    seed: int = 0
    compute: float = COMPUTE
    link: float = LINK
    latency: float = LATENCY
    overhead: float = 0.0
    churn: float = 0.0
    participation: Participation = field(default_factory=Participation)

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.num_clients < 1:
            raise ConfigError(f"a fleet needs at least one client, not {self.num_clients}")
        if not 0 <= self.churn < 1:
            raise ConfigError(f"churn={self.churn} must be at least 0 and below 1")
        self._base()

    def profile(self, client: int, round: int) -> Profile:
        """Return the device of `client` in `round`."""
        self._check(client)
        return self.ordinary

    @cached_property
    def always(self) -> bool:
        """Whether all clients are available in every round."""
        return self.churn == 0 and type(self.participation) is Participation

    def available(self, client: int, round: int) -> bool:
        """Return whether `client` is available in `round`."""
        chance = self._availability(client)
        there = chance >= 1 or _uniform(self.seed, "available", client, round) < chance
        return there and self.participation.available(client, round)

    def rate(self, client: int) -> float:
        """Return the long-run fraction of rounds in which `client` is available."""
        return self._availability(client) * self.participation.rate(client)

    def describe(self) -> str:
        """Return a one-line description of the fleet."""
        text = f"{self.name}: {self.num_clients} clients of {self.compute / 1e9:g} GFLOP/s"
        text += f" with {self.link / MBIT:g} Mbit/s"
        return text + (f", {self.churn:.0%} away in each round" if self.churn else "")

    def _availability(self, client: int) -> float:
        self._check(client)
        return 1.0 - self.churn

    @cached_property
    def ordinary(self) -> Profile:
        """Profile of an ordinary device."""
        return self._base()

    def _normal(self, *path: int | str) -> float:
        """Return the standard normal number, clipped at 3, of the stream `path`."""
        return min(max(_NORMAL.inv_cdf(_uniform(self.seed, *path)), -3.0), 3.0)

    def _base(self, **changes: float) -> Profile:
        values: dict[str, float] = {"compute": self.compute, "up": self.link, "down": self.link}
        values |= {"latency": self.latency, "overhead": self.overhead, "availability": 1.0 - self.churn}
        return Profile(**{**values, **changes})

    def _check(self, client: int) -> None:
        if not 0 <= client < self.num_clients:
            raise CohortError(f"client {client} does not exist in a fleet of {self.num_clients}")


def profiles(fleet: Any, clients: Sequence[int], round: int) -> list[Profile]:
    """Return the device of each of some clients in a round."""
    if not clients or type(fleet).profile is not Fleet.profile:
        return [fleet.profile(client, round) for client in clients]
    fleet.profile(min(clients), round)  # raises for a client that does not exist
    return [fleet.profile(max(clients), round)] * len(clients)


@dataclass(frozen=True)
class Homogeneous(Fleet):
    """All clients are identical."""

    name: ClassVar[str] = "homogeneous"


@dataclass(frozen=True)
class Stragglers(Fleet):
    """Some clients are slower than the rest, in compute, link or both.

    By default they cycle through x1.3 with 1.5 Mbit/s, x1.8 with 5 Mbit/s and x2.5 with 50 Mbit/s: limited by the link, by
    both, and by compute.

    Args:
        share: fraction of the clients that are stragglers, rounded to the nearest number.
        slow: factor by which their compute is slower; if given, all have the same compute.
        up: their upload bandwidth in bit/s; if given, all have the same links.
        down: their download bandwidth in bit/s; as `up` by default.
        pick: ``"last"`` selects the highest client ids, ``"random"`` draws them by the seed.
    """

    share: float = 0.2
    slow: float | None = None
    up: float | None = None
    down: float | None = None
    pick: str = "last"

    name: ClassVar[str] = "stragglers"
    cycle: ClassVar[tuple[tuple[float, float], ...]] = ((1.3, 1.5e6), (1.8, 5e6), (2.5, 50e6))
    """(slowdown, bandwidth in bit/s) of the first, second and third straggler, repeated cyclically."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share={self.share} must be from 0 to 1")
        if self.slow is not None and not self.slow >= 1:
            raise ConfigError(f"slow={self.slow} must be at least 1")
        if self.pick not in ("last", "random"):
            raise UnknownNameError("way to pick stragglers", self.pick, ("last", "random"))
        self._slow(0)

    @property
    def num_stragglers(self) -> int:
        """Number of stragglers."""
        return math.floor(self.share * self.num_clients + 0.5)

    def rank(self, client: int) -> int | None:
        """Return the index of `client` among the stragglers, or None."""
        self._check(client)
        if self.pick == "last":
            number = client - (self.num_clients - self.num_stragglers)
        else:
            number = int(straggler_ranks(self.num_clients, self.num_stragglers, self.seed)[client])
        return number if number >= 0 else None

    def profile(self, client: int, round: int) -> Profile:
        """Return the device of `client`; it is the same in every round."""
        number = self.rank(client)
        return self.ordinary if number is None else self._slow(number)

    def describe(self) -> str:
        """Return a one-line description of the fleet."""
        kinds = dict.fromkeys(self._slow(i) for i in range(len(self.cycle)))
        text = ", ".join(f"x{p.slowdown:g} at {p.up / MBIT:g} Mbit/s" for p in kinds)
        return f"{super().describe()}; {self.num_stragglers} stragglers ({text})"

    def _slow(self, number: int) -> Profile:
        slow, link = self.cycle[number % len(self.cycle)]
        slow = slow if self.slow is None else self.slow
        up = link if self.up is None else self.up
        down = up if self.down is None else self.down
        return self._base(compute=self.compute / slow, up=up, down=down, slowdown=slow)


@dataclass(frozen=True)
class Mobile(Fleet):
    """Phones: log-normal compute and bandwidth, links that change each round, intermittent availability.

    Args:
        compute: median speed, FLOP/s.
        link: median download bandwidth, bit/s; the median upload is a third of it.
        compute_spread: standard deviation of ln(compute) over clients.
        link_spread: standard deviation of ln(bandwidth) over clients.
        vary: standard deviation of ln(bandwidth) from round to round.
        least, most: a client's availability is drawn uniformly from this range, then reduced by `churn`.
    """

    link: float = 30e6
    latency: float = 0.05
    compute_spread: float = 0.6
    link_spread: float = 0.8
    vary: float = 0.3
    least: float = 0.5
    most: float = 0.95

    name: ClassVar[str] = "mobile"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("compute_spread", "link_spread", "vary"):
            if not 0 <= getattr(self, option) <= 3:
                raise ConfigError(f"{option}={getattr(self, option)} must be from 0 to 3")
        if not 0 < self.least <= self.most <= 1:
            raise ConfigError(f"least={self.least}, most={self.most} must satisfy 0 < least <= most <= 1")

    def profile(self, client: int, round: int) -> Profile:
        """Return the device of `client` with its links in `round`."""
        slow = math.exp(-self.compute_spread * self._normal("compute", client))
        own = self.link_spread * self._normal("link", client)
        up = own + self.vary * self._normal("up", client, round)
        down = own + self.vary * self._normal("down", client, round)
        return self._base(
            compute=self.compute / slow,
            up=self.link / 3 * math.exp(up),
            down=self.link * math.exp(down),
            availability=self._availability(client),
            slowdown=slow,
        )

    @cached_property
    def always(self) -> bool:
        """Whether all clients are available in every round: never for phones."""
        return False

    def describe(self) -> str:
        """Return a one-line description of the fleet."""
        often = (1 - self.churn) * (self.least + self.most) / 2
        return f"{super().describe()} (medians), log-normal, {often:.0%} available in each round"

    def _availability(self, client: int) -> float:
        share = _uniform(self.seed, "availability", client)
        return super()._availability(client) * (self.least + (self.most - self.least) * share)


@dataclass(frozen=True)
class Spread(Fleet):
    """Fixed durations: client i takes slowest * (1 - percent / 100 * i / (M - 1)) seconds for any training.

    Client 0 is the slowest. The duration includes work and both transfers, regardless of their size; calls without
    training take no time.

    Args:
        percent: by how much the fastest client's duration is below that of the slowest.
        slowest: seconds.
    """

    percent: float = 80.0
    slowest: float = 1.0

    name: ClassVar[str] = "spread"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.percent < 100 or not 0 < self.slowest < math.inf:
            raise ConfigError(f"percent={self.percent} must be at least 0 and below 100, and slowest={self.slowest} above 0")

    def seconds(self, client: int) -> float:
        """Return the duration of a client's training."""
        return self.slowest * (1.0 - self.percent / 100.0 * client / max(self.num_clients - 1, 1))

    def profile(self, client: int, round: int) -> Profile:
        """Return the device of `client`; it is the same in every round."""
        self._check(client)
        fast = {"compute": math.inf, "up": math.inf, "down": math.inf, "latency": 0.0}
        return Timed(**fast, overhead=self.seconds(client), availability=1.0 - self.churn)

    def describe(self) -> str:
        """Return a one-line description of the fleet."""
        last = self.seconds(self.num_clients - 1)
        return f"{self.name}: {self.num_clients} clients, {self.slowest:g} to {last:g} s per local training"


@dataclass(frozen=True)
class Timed(Profile):
    """A device whose training takes exactly its overhead; everything else takes no time."""

    def compute_seconds(self, flops: float) -> float:
        """Return the overhead if there is work, else 0."""
        return self.overhead if flops else 0.0


_NORMAL = NormalDist()


def load_fleet(spec: str, num_clients: int, seed: int = 0, participation: Participation | None = None) -> Fleet:
    """Return the fleet described by a text such as ``"stragglers:share=0.2,slow=2.0,churn=0.1"``.

    Args:
        spec: name of a fleet, and its options.
        num_clients: size of the population.
        seed: seed of the run.
        participation: process of availability; by default all clients are always available.

    Raises:
        UnknownNameError: unknown fleet or option.
        ConfigError: invalid value.

    Example:
        >>> load_fleet("stragglers:share=0.2,slow=2.0", num_clients=10).profile(9, 1).slowdown
        2.0
    """
    offered = {"num_clients": num_clients, "seed": seed, "participation": participation or Participation()}
    made = registry.build("fleet", spec, offered)
    if not isinstance(made, Fleet):
        raise ConfigError(f"fleet {spec!r} is not a Fleet; derive its class from paceline.devices.Fleet")
    return made


def _uniform(seed: int, *path: int | str) -> float:
    """Return the uniform random number in (0, 1) of the stream `path`."""
    return ((derive(seed, "fleet", *path) >> 11) + 0.5) / 2.0**52


@lru_cache(maxsize=8)
def straggler_ranks(num_clients: int, count: int, seed: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return each client's index among `count` stragglers drawn by the seed, or -1."""
    ranks = np.full(num_clients, -1, dtype=np.int32)
    ranks[numpy_rng(seed, "fleet", "stragglers").choice(num_clients, count, replace=False)] = np.arange(count)
    return ranks
