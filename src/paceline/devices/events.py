"""Asynchronous work on the virtual clock: running jobs of clients, and the times at which the server aggregates (fires).

A client starts from some version of the model and finishes some seconds later, whatever the server does meanwhile. The
`Queue` is the complete state: a small tree, which is part of the method's state and thus of every checkpoint. It
contains no model: each client's reply is computed when the client starts (so message, random stream and memory are the
correct ones) and stored in that client's own memory until it is collected, see `Federation.start`. Nothing has to be
recomputed after a resume or stored by version, and a reply can leave its client through any channel, including masked
ones.

Times are integer nanoseconds: sums are exact, so simultaneous events compare equal. They are seconds of work, from 0 at
the start of the run. The run's clock shows these and, in addition, the time of evaluations by the clients and of the
steps of secure aggregation, during which work is suspended. Each second is therefore counted once, and the order of
arrivals depends neither on the frequency of evaluations nor on the cost of the cryptography. As a consequence, times are upper
bounds if replies are hidden.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from paceline.core.errors import CohortError, ConfigError, MisbehaviourError, QuorumError, ZeroCostError
from paceline.core.federation import Federation
from paceline.core.tree import Tree, node

if TYPE_CHECKING:
    from paceline.core.client import Client

__all__ = ["ClientJob", "Firing", "Queue", "Rest", "Rule", "advance", "collected", "every", "first", "nanoseconds", "schedule"]

M = TypeVar("M")
R = TypeVar("R")
SECOND = 1_000_000_000


def nanoseconds(seconds: float) -> int:
    """Convert seconds to integer nanoseconds.

    Raises:
        ConfigError: negative or infinite duration.
    """
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"duration {seconds} must be finite and at least 0 seconds")
    return round(seconds * SECOND)


@node
class ClientJob:
    """One running job.

    Args:
        client: id of the client.
        version: number of firings before its start, which is the version of the model it works on.
        start, finish: nanoseconds.
    """

    client: int
    version: int
    start: int
    finish: int

    @property
    def took(self) -> int:
        """Duration in nanoseconds."""
        return self.finish - self.start


@node
class Rest:
    """A client that does not start before a time in nanoseconds."""

    client: int
    until: int


@node
class Queue:
    """Running jobs in order of arrival, and paused clients.

    Args:
        now: nanoseconds of work since the start of the run.
        fired: number of firings so far: the current version of the model.
        since: time of the last firing.
        jobs: running jobs, and those whose replies wait, by arrival; ties by client.
        rests: paused clients.

    Example:
        >>> queue = Queue().begin({0: 2.0, 1: 1.0})
        >>> [job.client for job in first(queue, 1).jobs]
        [1]
    """

    now: int = 0
    fired: int = 0
    since: int = 0
    jobs: tuple[ClientJob, ...] = ()
    rests: tuple[Rest, ...] = ()

    @property
    def busy(self) -> set[int]:
        """Clients that cannot start now."""
        return {job.client for job in self.jobs} | {rest.client for rest in self.rests}

    @property
    def wake(self) -> int | None:
        """Time at which the next pause ends; None without pauses."""
        return min((rest.until for rest in self.rests), default=None)

    def begin(self, seconds: Mapping[int, float]) -> Queue:
        """Return the queue after clients start on the current version of the model.

        Args:
            seconds: duration of each client's job.

        Raises:
            CohortError: a client is busy or paused.
            ZeroCostError: a job takes less than a nanosecond, so its client would return without end.
        """
        if twice := self.busy & seconds.keys():
            raise CohortError(f"clients {sorted(twice)} are busy; a client runs one job at a time")
        if idle := sorted(c for c, s in seconds.items() if not nanoseconds(s)):
            raise ZeroCostError(
                f"the jobs of clients {idle} take no time, so they would return without end; give every client samples "
                "(a partition without empty clients) and the fleet's devices a finite speed or a latency"
            )
        new = [ClientJob(c, self.fired, self.now, self.now + nanoseconds(s)) for c, s in seconds.items()]
        jobs = sorted((*self.jobs, *new), key=lambda job: (job.finish, job.client))
        return dataclasses.replace(self, jobs=tuple(jobs))

    def rest(self, seconds: Mapping[int, float]) -> Queue:
        """Return the queue with clients paused from now on for their seconds; 0 is no pause."""
        new = (Rest(c, self.now + nanoseconds(s)) for c, s in seconds.items())
        return dataclasses.replace(self, rests=(*self.rests, *(r for r in new if r.until > self.now)))

    def at(self, time: int) -> Queue:
        """Return the queue at a later time, without pauses that are over.

        Args:
            time: absolute time in nanoseconds.

        Raises:
            ConfigError: the time is in the past.
        """
        if time < self.now:
            raise ConfigError(f"the queue cannot go back in time from {self.now} ns to {time} ns")
        return dataclasses.replace(self, now=time, rests=tuple(r for r in self.rests if r.until > time))

    def arrived(self, time: int) -> tuple[ClientJob, ...]:
        """Return the jobs finished by a time, in order of arrival."""
        return tuple(job for job in self.jobs if job.finish <= time)

    def fire(self, firing: Firing) -> Queue:
        """Return the queue after a firing, without its jobs and with the next version current."""
        gone = {job.client for job in firing.jobs}
        left = tuple(job for job in self.jobs if job.client not in gone)
        return dataclasses.replace(self.at(firing.at), fired=self.fired + 1, since=firing.at, jobs=left)


@node
class Firing:
    """Time of a firing, and the jobs whose replies it uses."""

    at: int
    jobs: tuple[ClientJob, ...]


Rule = Callable[[Queue], Firing | None]
"""Returns the next firing if no further client starts; None if that depends on a client that starts."""


def first(queue: Queue, count: int | None = None) -> Firing | None:
    """Rule: fire when `count` replies have arrived (or all busy clients, if fewer), with these replies.

    Args:
        queue: the current state.
        count: number of replies; None waits for all.
    """
    busy = len(queue.jobs) + len(queue.rests)
    count = busy if count is None else min(count, busy)
    if not queue.jobs or count > len(queue.jobs):
        return None
    return Firing(max(queue.jobs[count - 1].finish, queue.now), queue.jobs[:count])


def every(queue: Queue, period: int, least: int = 0) -> Firing | None:
    """Rule: fire one period after the last firing with all arrived replies, or whole periods later, once `least` arrived.

    Args:
        queue: the current state.
        period: nanoseconds.
        least: minimum number of replies.
    """
    least = min(least, len(queue.jobs) + len(queue.rests))
    if least > len(queue.jobs):
        return None
    due = queue.since + period
    late = max(queue.jobs[least - 1].finish if least else 0, queue.now) - due
    due += max(-(-late // period), 0) * period
    return Firing(due, queue.arrived(due))


def advance(
    fed: Federation, queue: Queue, fn: Callable[[Client, M], Tree], message: M, rule: Rule
) -> tuple[Queue, tuple[ClientJob, ...]]:
    """Start idle clients on the current version until the rule fires; return the queue and the arrivals.

    At most as many clients as in a cohort are busy or paused. The reply of each arrival must be collected by a function
    marked `held`.

    Args:
        fed: the running federation.
        queue: the current state.
        fn: client function to start.
        message: message of the call.
        rule: when to fire.

    Raises:
        CohortError: no client is busy, and none is available to start.
    """
    while True:
        queue = _begin(fed, queue, fn, message)
        firing, wake = rule(queue), queue.wake
        if firing is not None and (wake is None or firing.at <= wake):
            break
        if wake is None:
            raise CohortError(f"round {fed.round}: no client is busy, and none is available to start")
        fed.wait((wake - queue.now) / SECOND)
        queue = queue.at(wake)
    fed.wait((firing.at - queue.now) / SECOND)
    return queue.fire(firing), firing.jobs


def collected(fed: Federation, collect: Callable[[], R]) -> R | None:
    """Return what `collect` returns; None if it fails and the round is not repeated any more.

    A client may disappear between the end of its job and its upload. The round is then repeated, because a client that comes
    back still stores its reply. In the last attempt the jobs count as lost, so that their clients do not end the run.

    Args:
        fed: the running federation.
        collect: operation on all arrivals.
    """
    try:
        return collect()
    except MisbehaviourError:  # it is repeated without these clients
        raise
    except QuorumError:
        if not fed.last_attempt:
            raise
        return None


def _begin(fed: Federation, queue: Queue, fn: Callable[[Client, M], Tree], message: M) -> Queue:
    """Start as many idle clients as there is room for."""
    busy = queue.busy
    room = fed.cohort_size - len(busy)
    if room < 1:
        return queue
    idle = [c for c in range(fed.num_clients) if c not in busy]
    if not any(fed.fleet.available(c, fed.round) for c in idle):
        return queue
    return queue.begin(fed.start(fn, message, over=fed.sample(min(room, len(idle)), among=idle)))


def schedule(seconds: Sequence[float], rule: Rule, until: float) -> Iterator[tuple[float, tuple[ClientJob, ...]]]:
    """Yield (seconds, arrivals) of each firing up to a time, if client i always takes ``seconds[i]``.

    Nothing is trained: the schedule shows how often each client participates, and how stale its model is.

    Args:
        seconds: duration of each client.
        rule: when to fire.
        until: end in seconds.
    """
    queue, idle = Queue(), tuple(range(len(seconds)))
    while True:
        queue = queue.begin({c: seconds[c] for c in idle})
        firing = rule(queue)
        if firing is None or firing.at > nanoseconds(until):
            return
        queue, idle = queue.fire(firing), tuple(job.client for job in firing.jobs)
        yield firing.at / SECOND, firing.jobs
