"""Virtual time: work and transfers are converted to seconds; a synchronous call takes as long as its slowest client."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from paceline.core.errors import CheckpointError, ConfigError
from paceline.core.failures import DECLINED
from paceline.core.limits import WorkTime
from paceline.core.tree import node
from paceline.devices.profile import Profile

if TYPE_CHECKING:
    from paceline.devices.fleet import Fleet

__all__ = ["DRAWN", "Cost", "PhaseTimeline", "TimedPhase", "Times", "VirtualClock", "times", "work_time"]


DRAWN = 200
"""Largest number of clients of a call whose times are kept for a picture."""


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


class PhaseTimeline(NamedTuple):
    """What the clients of a synchronous call did.

    Args:
        name: name of the client function.
        start: time on the clock.
        seconds: duration.
        clients: times of each client that answered.
        out: clients that sat out.
    """

    name: str
    start: float
    seconds: float
    clients: Mapping[int, Times]
    out: Sequence[int]


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
        """Reason why there is no reply, or None; ``"late"`` has times, ``"declined"`` is not waited for, others never arrive."""


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


def work_time(fleet: Fleet, client: int, round: int, measured: bool) -> WorkTime:
    """Return how a client's work in a round becomes seconds.

    Args:
        fleet: device profiles.
        client, round: whose, and when.
        measured: convert seconds measured on this machine; otherwise FLOPs.
    """
    profile = fleet.profile(client, round)
    return WorkTime(measured, profile.measured_seconds if measured else profile.compute_seconds)


class VirtualClock:
    """Virtual seconds since the start of the run.

    `now` may be set. `phases` are the latest synchronous calls, oldest first; `timeline` has what their clients did, of the
    latest ones with up to `DRAWN` clients.

    Args:
        now: initial time in seconds.
        keep: maximum number of recorded phases.
    """

    def __init__(self, now: float = 0.0, keep: int = 1000) -> None:
        self.now = now
        self.phases: deque[TimedPhase] = deque(maxlen=keep)
        self.timeline: deque[PhaseTimeline] = deque(maxlen=64)

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
                missing |= receipt.dropped != DECLINED
                continue
            seconds = receipt.compute + receipt.network
            if slowest is None or seconds > longest or (seconds == longest and receipt.client < slowest.client):
                slowest, longest = receipt, seconds
        start = self.now
        took = Times(0.0, 0.0) if slowest is None else Times(slowest.compute, slowest.network)
        passed = self._pass(name, None if slowest is None else slowest.client, took, deadline, missing, up, down)
        if len(receipts) <= DRAWN:
            came: dict[int, Times] = {}
            for receipt in receipts:
                if receipt.dropped in (None, "late"):
                    if took != (receipt.compute, receipt.network):  # most take as long as the one before
                        took = Times(receipt.compute, receipt.network)
                    came[receipt.client] = took
            out = [r.client for r in receipts if r.dropped == DECLINED]
            self.timeline.append(PhaseTimeline(name, start, passed, came, out))
        return passed

    def since(self, start: float) -> list[dict[str, Any]]:
        """Return the timeline from a time on in plain types, with times relative to it; see `paceline.store.gantt`."""
        return [
            {
                "name": phase.name,
                "start": phase.start - start,
                "seconds": phase.seconds,
                "clients": {str(client): list(took) for client, took in phase.clients.items()},
                "out": list(phase.out),
            }
            for phase in self.timeline
            if phase.start >= start - 1e-9
        ]

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
        self.timeline.clear()
