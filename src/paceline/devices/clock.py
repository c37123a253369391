"""Virtual time: work and bytes become seconds, and a synchronous call costs its slowest member."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from paceline.core.errors import CheckpointError, ConfigError
from paceline.core.tree import node
from paceline.devices.profile import Profile

__all__ = ["Cost", "TimedPhase", "Times", "VirtualClock", "times"]


@node
class Cost:
    """What a client's answer to one call takes.

    Args:
        flops: floating-point operations of its work.
        bytes_down: bytes that it receives.
        bytes_up: bytes that it sends.
        seconds_measured: seconds that the work took on this machine; they count in place of `flops`.
    """

    flops: float
    bytes_down: int
    bytes_up: int
    seconds_measured: float | None = None


class Times(NamedTuple):
    """Seconds of one client's answer: its work, and both transfers."""

    compute: float
    network: float

    @property
    def total(self) -> float:
        """Seconds from the call to the reply's arrival."""
        return self.compute + self.network


@node
class TimedPhase:
    """One synchronous call on the clock.

    Args:
        name: of the client function.
        seconds: that passed.
        bytes_up, bytes_down: summed over the clients.
        slowest: the client that was waited for, or None where nobody answered.
        compute, network: seconds of that client, cut at the deadline in this order: work, then transfers.
    """

    name: str
    seconds: float
    bytes_up: int = 0
    bytes_down: int = 0
    slowest: int | None = None
    compute: float = 0.0
    network: float = 0.0


class Answered(Protocol):
    """What the clock reads of a client's receipt."""

    @property
    def client(self) -> int:
        """Who."""

    @property
    def compute(self) -> float:
        """Seconds of work."""

    @property
    def network(self) -> float:
        """Seconds of both transfers."""

    @property
    def bytes_up(self) -> int:
        """Bytes sent by the client."""

    @property
    def bytes_down(self) -> int:
        """Bytes received by the client."""

    @property
    def dropped(self) -> str | None:
        """Why there is no reply, or None; ``"late"`` has times, everything else never arrives."""


def times(profile: Profile, cost: Cost) -> Times:
    """Return the seconds that `cost` takes on a device."""
    measured = cost.seconds_measured
    work = profile.compute_seconds(cost.flops) if measured is None else profile.measured_seconds(measured)
    return Times(work, profile.download_seconds(cost.bytes_down) + profile.upload_seconds(cost.bytes_up))


class VirtualClock:
    """Seconds since the start of the run.

    `now` may be set. `phases` are the latest synchronous calls, oldest first.
    """

    def __init__(self, now: float = 0.0, keep: int = 1000) -> None:
        self.now = now
        self.phases: deque[TimedPhase] = deque(maxlen=keep)

    def synchronous(
        self,
        times: Mapping[int, Times],
        deadline: float | None = None,
        *,
        name: str = "call",
        missing: bool = False,
        bytes_up: int = 0,
        bytes_down: int = 0,
    ) -> float:
        """Wait for all replies, or until the deadline if one is late or missing; return the seconds it took.

        Args:
            times: seconds of each client.
            deadline: seconds after the call at which waiting ends; None waits for the slowest.
            name: of the phase.
            missing: whether a reply will never come. Without a deadline that is noticed at once.
            bytes_up, bytes_down: for the phase's record.
        """
        if deadline is not None and not deadline > 0:
            raise ConfigError(f"deadline={deadline}; it is a positive number of seconds")
        slowest = max(times, key=lambda c: (times[c].total, -c), default=None)
        seconds = 0.0 if slowest is None else times[slowest].total
        if deadline is not None and (missing or seconds > deadline):
            seconds = deadline
        work = 0.0 if slowest is None else min(times[slowest].compute, seconds)
        network = 0.0 if slowest is None else min(times[slowest].network, seconds - work)
        self.phases.append(TimedPhase(name, seconds, bytes_up, bytes_down, slowest, work, network))
        self.now += seconds
        return seconds

    def advance(self, name: str, receipts: Sequence[Answered], deadline: float | None = None) -> float:
        """Let the synchronous call `name` pass, from its receipts; return the seconds it took."""
        came = {r.client: Times(r.compute, r.network) for r in receipts if r.dropped in (None, "late")}
        return self.synchronous(
            came,
            deadline,
            name=name,
            missing=len(came) < len(receipts),
            bytes_up=sum(r.bytes_up for r in receipts),
            bytes_down=sum(r.bytes_down for r in receipts),
        )

    def wait(self, seconds: float) -> None:
        """Let seconds pass between calls: clients work, and the server asks nothing."""
        if not 0 <= seconds < float("inf"):
            raise ConfigError(f"a wait of {seconds} seconds is impossible")
        if seconds:
            self.phases.append(TimedPhase("wait", seconds))
            self.now += seconds

    def arrivals(self, times: Mapping[int, Times]) -> list[tuple[float, int]]:
        """Return (moment on this clock, client) of calls made now, in order of arrival; ties by client id."""
        return sorted((self.now + t.total, client) for client, t in times.items())

    def state(self) -> dict[str, float]:
        """Return what a checkpoint needs."""
        return {"now": self.now}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go back to a state; the records of phases start anew. Raises `CheckpointError` for no state."""
        now = state.get("now")
        if not isinstance(now, float):
            raise CheckpointError(f"{state!r} is no state of a clock")
        self.now = now
        self.phases.clear()
