"""Asynchronous work on the virtual clock: who is at work since when, and when the server fires.

A client begins on some version of the model and is done some seconds later, whatever the server does in between.
The `Queue` is the whole state of that: a small tree, which lies in the method's state and so in every
checkpoint. It holds no model: each client's reply is computed when it begins (the message, the random stream
and the memory are then the right ones by themselves) and lies in that client's own memory until it is handed over,
see `Federation.start`. Nothing has to be computed again after a resume, nor kept by version, and a reply
can leave its client through any channel, masked ones included.

Times are whole nanoseconds: sums of them are exact, so that events at the same moment are at the same moment.
They are seconds of work, 0 when the run begins. The run's clock shows these and, on top, what is spent in
between: on an evaluation by the clients, or the steps of secure aggregation. Meanwhile work is put off. So
each second is counted once, and who arrives in which order does not depend on how often is evaluated or on
what the cryptography takes. The price: where replies are hidden, times are upper bounds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from paceline.core.errors import CohortError, ConfigError
from paceline.core.federation import Federation
from paceline.core.tree import Tree, node

if TYPE_CHECKING:
    from paceline.core.client import Client

__all__ = ["ClientJob", "Firing", "Queue", "Rest", "Rule", "advance", "every", "first", "nanoseconds", "schedule"]

M = TypeVar("M")
SECOND = 1_000_000_000


def nanoseconds(seconds: float) -> int:
    """Return the nearest number of whole nanoseconds; raises `ConfigError` for no duration."""
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{seconds} seconds are no duration")
    return round(seconds * SECOND)


@node
class ClientJob:
    """One client at work.

    Args:
        client: who.
        version: number of firings before it began, which is the number of the model that it works on.
        start, finish: nanoseconds.
    """

    client: int
    version: int
    start: int
    finish: int

    @property
    def took(self) -> int:
        """Nanoseconds from start to finish."""
        return self.finish - self.start


@node
class Rest:
    """A client that begins nothing until a moment, in nanoseconds."""

    client: int
    until: int


@node
class Queue:
    """Clients at work, in order of arrival, and clients at rest.

    Args:
        now: nanoseconds of work since the run began.
        fired: how often the server has fired: the version of the model that is now current.
        since: when it fired last.
        jobs: clients at work, and those whose replies wait, by arrival; ties by client.
        rests: clients that pause.
    """

    now: int = 0
    fired: int = 0
    since: int = 0
    jobs: tuple[ClientJob, ...] = ()
    rests: tuple[Rest, ...] = ()

    @property
    def busy(self) -> set[int]:
        """Clients that cannot begin now."""
        return {job.client for job in self.jobs} | {rest.client for rest in self.rests}

    @property
    def wake(self) -> int | None:
        """When the next client's rest ends."""
        return min((rest.until for rest in self.rests), default=None)

    def begin(self, seconds: Mapping[int, float]) -> Queue:
        """Let clients begin now on the current version; each is done after its seconds.

        Raises `CohortError` for a client that is at work or at rest.
        """
        if twice := self.busy & seconds.keys():
            raise CohortError(f"clients {sorted(twice)} are busy; a client has one job at a time")
        new = [ClientJob(c, self.fired, self.now, self.now + max(nanoseconds(s), 1)) for c, s in seconds.items()]
        jobs = sorted((*self.jobs, *new), key=lambda job: (job.finish, job.client))
        return dataclasses.replace(self, jobs=tuple(jobs))

    def rest(self, seconds: Mapping[int, float]) -> Queue:
        """Let clients pause from now on, each for its seconds; 0 is no pause."""
        new = (Rest(c, self.now + nanoseconds(s)) for c, s in seconds.items())
        return dataclasses.replace(self, rests=(*self.rests, *(r for r in new if r.until > self.now)))

    def at(self, time: int) -> Queue:
        """Return the queue at a later moment; rests that are over are gone."""
        if time < self.now:
            raise ConfigError(f"time does not go back: from {self.now} ns to {time} ns")
        return dataclasses.replace(self, now=time, rests=tuple(r for r in self.rests if r.until > time))

    def arrived(self, time: int) -> tuple[ClientJob, ...]:
        """Return the jobs that are done at a moment, in order of arrival."""
        return tuple(job for job in self.jobs if job.finish <= time)

    def fire(self, firing: Firing) -> Queue:
        """Return the queue after a firing: its jobs are gone, and the next version is current."""
        gone = {job.client for job in firing.jobs}
        left = tuple(job for job in self.jobs if job.client not in gone)
        return dataclasses.replace(self.at(firing.at), fired=self.fired + 1, since=firing.at, jobs=left)


@node
class Firing:
    """When the server fires, and with whose replies."""

    at: int
    jobs: tuple[ClientJob, ...]


Rule = Callable[[Queue], Firing | None]
"""Says when the server fires next if no further client begins; None where that depends on one that does."""


def first(queue: Queue, count: int | None = None) -> Firing | None:
    """Fire when `count` replies are there (as many as are busy, where these are fewer), with these; None: all."""
    busy = len(queue.jobs) + len(queue.rests)
    count = busy if count is None else min(count, busy)
    if not queue.jobs or count > len(queue.jobs):
        return None
    return Firing(max(queue.jobs[count - 1].finish, queue.now), queue.jobs[:count])


def every(queue: Queue, period: int, least: int = 0) -> Firing | None:
    """Fire a period after the last firing with all that are there, or whole periods later, once `least` are."""
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
    """Let idle clients begin `fn` on the current version, until the rule fires; return queue and arrivals.

    At most as many clients as a cohort has are at work or at rest. Each arrival's reply waits for a function
    marked `held`. Raises `CohortError` where nobody is there to wait for.
    """
    while True:
        queue = _begin(fed, queue, fn, message)
        firing, wake = rule(queue), queue.wake
        if firing is not None and (wake is None or firing.at <= wake):
            break
        if wake is None:
            raise CohortError(f"round {fed.round}: nobody is at work, and nobody is there to begin")
        fed.wait((wake - queue.now) / SECOND)
        queue = queue.at(wake)
    fed.wait((firing.at - queue.now) / SECOND)
    return queue.fire(firing), firing.jobs


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
    """Yield (seconds, arrivals) of each firing up to a moment, where client i always takes ``seconds[i]``.

    Nothing is trained: this shows how often each client will take part, and on how old a model.
    """
    queue, idle = Queue(), tuple(range(len(seconds)))
    while True:
        queue = queue.begin({c: seconds[c] for c in idle})
        firing = rule(queue)
        if firing is None or firing.at > nanoseconds(until):
            return
        queue, idle = queue.fire(firing), tuple(job.client for job in firing.jobs)
        yield firing.at / SECOND, firing.jobs
