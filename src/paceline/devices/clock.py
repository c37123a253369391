"""Virtual time: work and transfers are converted to seconds; a synchronous call takes as long as its slowest client."""

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
    """Cost of one client's answer to a call.

    Args:
        flops: floating-point operations of its work.
        bytes_down: bytes received by the client.
        bytes_up: bytes sent by the client.
        seconds_measured: seconds that the work took on this machine; used instead of `flops` if given.
    """

    flops: float
    bytes_down: int
    bytes_up: int
    seconds_measured: float | None = None


class Times(NamedTuple):
    """Duration of one client's answer in seconds: work, and both transfers."""

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
        name: name of the client function.
        seconds: duration.
        bytes_up, bytes_down: totals over the clients.
        slowest: the slowest client, or None if no client answered.
        compute, network: seconds of that client, truncated at the deadline in this order: work, then transfers.
    """

    name: str
    seconds: float
    bytes_up: int = 0
    bytes_down: int = 0
    slowest: int | None = None
    compute: float = 0.0
    network: float = 0.0


class Answered(Protocol):
    """Fields of a client's receipt used by the clock."""

    @property
    def client(self) -> int:
        """Id of the client."""

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
        """Reason why there is no reply, or None; ``"late"`` has times, any other reply never arrives."""


def times(profile: Profile, cost: Cost) -> Times:
    """Return the duration of `cost` on a device.

    Args:
        profile: the device: FLOP/s, bit/s in both directions, and latency in seconds.
        cost: FLOPs and bytes.

    Example:
        >>> times(Profile(compute=1e9, up=8e6, down=8e6, latency=0.0), Cost(flops=2e9, bytes_down=1_000_000, bytes_up=0))
        Times(compute=2.0, network=1.0)
    """
    measured = cost.seconds_measured
    work = profile.compute_seconds(cost.flops) if measured is None else profile.measured_seconds(measured)
    return Times(work, profile.download_seconds(cost.bytes_down) + profile.upload_seconds(cost.bytes_up))


class VirtualClock:
    """Virtual seconds since the start of the run.

    `now` may be set. `phases` are the latest synchronous calls, oldest first.

    Args:
        now: initial time in seconds.
        keep: maximum number of recorded phases.
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
        """Wait for all replies, or until the deadline if one is late or missing; return the elapsed seconds.

        Args:
            times: duration by client.
            deadline: seconds after the call at which waiting ends; None waits for the slowest.
            name: name of the phase.
            missing: whether a reply will never arrive. Without a deadline that is detected immediately.
            bytes_up, bytes_down: totals for the phase's record.

        Raises:
            ConfigError: the deadline is not positive.
        """
        slowest = max(times, key=lambda c: (times[c].total, -c), default=None)
        took = Times(0.0, 0.0) if slowest is None else times[slowest]
        return self._pass(name, slowest, took, deadline, missing, bytes_up, bytes_down)

    def _pass(
        self, name: str, slowest: int | None, took: Times, deadline: float | None, missing: bool, bytes_up: int, bytes_down: int
    ) -> float:
        """Let a call pass whose slowest client took `took`; see `synchronous`."""
        if deadline is not None and not deadline > 0:
            raise ConfigError(f"deadline={deadline} must be above 0 seconds")
        seconds = took.total
        if deadline is not None and (missing or seconds > deadline):
            seconds = deadline
        work = min(took.compute, seconds)
        network = min(took.network, seconds - work)
        self.phases.append(TimedPhase(name, seconds, bytes_up, bytes_down, slowest, work, network))
        self.now += seconds
        return seconds

    def advance(self, name: str, receipts: Sequence[Answered], deadline: float | None = None) -> float:
        """Advance the clock by a synchronous call; return the elapsed virtual seconds.

        Args:
            name: name of the phase.
            receipts: answers of the call, with their durations and bytes.
            deadline: virtual seconds after which waiting ends; None waits for the slowest client.
        """
        slowest, longest, missing, up, down = None, 0.0, False, 0, 0
        for receipt in receipts:  # one pass without an object for each client
            up, down = up + receipt.bytes_up, down + receipt.bytes_down
            if receipt.dropped not in (None, "late"):
                missing = True
                continue
            seconds = receipt.compute + receipt.network
            if slowest is None or seconds > longest or (seconds == longest and receipt.client < slowest.client):
                slowest, longest = receipt, seconds
        if slowest is None:
            return self._pass(name, None, Times(0.0, 0.0), deadline, missing, up, down)
        return self._pass(name, slowest.client, Times(slowest.compute, slowest.network), deadline, missing, up, down)

    def wait(self, seconds: float) -> None:
        """Advance the clock between calls: clients work, and the server is idle.

        Raises:
            ConfigError: negative or infinite duration.
        """
        if not 0 <= seconds < float("inf"):
            raise ConfigError(f"a wait of {seconds} seconds must be finite and at least 0")
        if seconds:
            self.phases.append(TimedPhase("wait", seconds))
            self.now += seconds

    def arrivals(self, times: Mapping[int, Times]) -> list[tuple[float, int]]:
        """Return (time on this clock, client) of calls made now, in order of arrival; ties by client id."""
        return sorted((self.now + t.total, client) for client, t in times.items())

    def state(self) -> dict[str, float]:
        """Return the state for a checkpoint."""
        return {"now": self.now}

    def restore(self, state: Mapping[str, float]) -> None:
        """Restore a state; the records of phases are cleared.

        Raises:
            CheckpointError: the state is malformed.
        """
        now = state.get("now")
        if not isinstance(now, float):
            raise CheckpointError(f"malformed clock state {state!r}; restore an intact checkpoint")
        self.now = now
        self.phases.clear()
