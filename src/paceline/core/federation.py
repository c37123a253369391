"""Server side of a federation: the operations of a method, each of which defines what the server sees.

With ``fed.sum`` and ``fed.mean`` the server sees only sums over a cohort; with ``fed.each`` every reply; with
``fed.arrivals`` every reply in order of arrival. ``fed.start`` shows nothing: clients start jobs and hold the results
until another operation collects them, in the same round or a later one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, overload

from paceline.core.deferred import Held
from paceline.core.engine import (
    Aggregation,
    Availability,
    Call,
    CallInfo,
    Channel,
    ClientFunction,
    Clock,
    Each,
    Engine,
    Receipt,
    SumRequest,
    declaration,
)
from paceline.core.errors import CohortError, MisbehaviourError, PlanError, QuorumError
from paceline.core.failures import DECLINED, client_error, kind_of
from paceline.core.placement import on_host
from paceline.core.population import Population
from paceline.core.statistics import RunningStatistics
from paceline.core.tree import Tree
from paceline.core.update import Update, rebuild

if TYPE_CHECKING:
    from paceline.core.client import Client

__all__ = ["Federation", "WithOwn"]

M = TypeVar("M")
"""Message of a client function."""

R = TypeVar("R")
"""Return value of a client function."""

K = TypeVar("K")
"""Key of a group of clients."""

E = TypeVar("E")
"""A client's own part of a message."""


class WithOwn(TypedDict, Generic[M, E]):
    """Message of a client function called with `each_message`.

    Args:
        all: the common message.
        own: this client's part of `each_message`.
    """

    all: M
    own: E


class Federation(Population):
    """A population of clients and the operations on it.

    Args:
        engine: runs client functions.
        aggregation: computes sums.
        fleet: decides which clients are available.
        clock: virtual time.
        seed: seed of the run.
        cohort: default cohort size.
        quorum: minimum number of replies in a sum.
        least_group: minimum size of a group in `mean(groups=...)`.
        deadline: virtual seconds after which a reply to a sum is dropped, unless the method sets its own deadline.
        on_error: ``"stop"`` raises a client's error, ``"drop"`` counts the client as dropped out.

    Example:
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> class Patient(pl.methods.FedAvg):
        ...     def round(self, fed, state):
        ...         mean = fed.mean(self.train, state.params, over=fed.sample())
        ...         return pl.State(params=state.params + 0.5 * mean.delta)
        >>> pl.run(Patient(), blobs(), clients=4, rounds=2).rounds
        2
    """

    def __init__(
        self,
        engine: Engine,
        aggregation: Aggregation,
        fleet: Availability,
        clock: Clock,
        *,
        seed: int = 0,
        cohort: int = 10,
        quorum: int = 1,
        least_group: int = 1,
        on_error: str = "stop",
        deadline: float | None = None,
    ) -> None:
        super().__init__(engine, fleet, seed=seed, cohort=cohort)
        self.aggregation, self.clock, self.quorum = aggregation, clock, quorum
        self.least_group, self.on_error, self.deadline = least_group, on_error, deadline
        self.last = CallInfo()
        self.totals = CallInfo()
        self.statistics, self._settled = RunningStatistics(), False
        self._waits = self._waited = 0.0

    def start_round(self, round: int, attempt: int = 0) -> None:
        """Begin round `round` (from 1); reset random streams and call numbers."""
        again = round == self.round and attempt > self.attempt
        self._waits, self._waited = 0.0, max(self._waits, self._waited) if again else 0.0
        super().start_round(round, attempt)

    # -- operations of methods -----------------------------------------------------------------
    def sum(self, fn: Callable[[Client, M], R], message: M, over: Sequence[int], deadline: float | None = None) -> R:
        """Return the sum over the cohort of the results of `fn`; the server sees nothing else.

        Args:
            fn: client function, run on every client of the cohort.
            message: its message, the same for all clients.
            over: client ids of the cohort.
            deadline: virtual seconds after which a reply is dropped; None uses the federation's, infinity is none.

        Raises:
            QuorumError: if too few clients replied.
            PlanError: if `fn` is not a client function, or one whose replies are read individually.
        """
        summed: R = self._sum(fn, message, over, deadline)
        return summed

    @overload
    def mean(self, fn: Callable[[Client, M], Update], message: M, over: Sequence[int], deadline: float | None = None) -> Update: ...
    @overload
    def mean(
        self,
        fn: Callable[[Client, M], Update],
        message: M,
        over: Sequence[int],
        deadline: float | None = None,
        *,
        groups: Mapping[K, Sequence[int]],
    ) -> dict[K, Update]: ...
    @overload
    def mean(
        self,
        fn: Callable[[Client, M], Update],
        message: None,
        over: Sequence[int],
        deadline: float | None = None,
        *,
        groups: Mapping[K, Sequence[int]],
        group_message: Mapping[K, M],
    ) -> dict[K, Update]: ...
    def mean(
        self,
        fn: Callable[..., Update],
        message: Tree,
        over: Sequence[int],
        deadline: float | None = None,
        *,
        groups: Mapping[Any, Sequence[int]] | None = None,
        group_message: Mapping[Any, Tree] | None = None,
    ) -> Update | dict[Any, Update]:
        """Return the weighted mean over the cohort of the `Update` that `fn` returns, as an `Update`.

        The arguments are those of `sum`. With `groups` (key -> clients), return one mean per group; the groups run in
        parallel in virtual time. With `group_message`, each group receives its own message.

        Raises:
            QuorumError: if a group is smaller than `least_group`, or too few clients replied.
        """
        if groups is None:
            result = self._sum(fn, message, over, deadline)
            if not isinstance(result, Update):
                raise PlanError([f"{fn.__name__} returned {type(result).__name__}; for fed.mean it must return an Update"])
            return result
        small = {k: len(c) for k, c in groups.items() if len(c) < max(self.least_group, 1)}
        if small:
            raise QuorumError(f"groups {small} have fewer clients than least_group={self.least_group}; merge groups")
        means, start, end, merged = {}, self.clock.now, self.clock.now, CallInfo()
        for key, clients in groups.items():
            self.clock.now = start
            means[key] = self._sum(fn, message if group_message is None else group_message[key], clients, deadline)
            end = max(end, self.clock.now)
            merged.add(self.last)
        self.clock.now = end
        merged.seconds = end - start
        self.last = merged
        return means

    @overload
    def each(
        self, fn: Callable[[Client, M], R], message: M, over: Sequence[int], deadline: float | None = None
    ) -> dict[int, R]: ...
    @overload
    def each(
        self,
        fn: Callable[[Client, WithOwn[M, E]], R],
        message: M,
        over: Sequence[int],
        deadline: float | None = None,
        *,
        each_message: Mapping[int, E],
    ) -> dict[int, R]: ...
    def each(
        self,
        fn: Callable[..., R],
        message: Tree,
        over: Sequence[int],
        deadline: float | None = None,
        *,
        each_message: Mapping[int, Tree] | None = None,
    ) -> dict[int, R]:
        """Return every client's reply, by client id, without dropped clients.

        The arguments are those of `sum`. With `each_message`, which has an entry for each client, the function receives
        `WithOwn`: the message and its own entry.

        Raises:
            QuorumError: if no client replied.
        """
        self._may_see(fn)
        with self._settling(declaration(fn)) as settled:
            deadline = None if settled else deadline
            receipts = self._each(fn, message, over, deadline=deadline, each_message=each_message or {})
        return {r.client: r.value for r in receipts}

    def _each(self, fn: Callable[..., Any], message: Tree, over: Sequence[int], **options: Any) -> list[Receipt]:
        """Return the receipts of the clients that replied, at least one."""
        with self._operation(over) as counted:
            receipts, _ = self.call(fn.__name__, message, over, Each(), **options)
            came = [r for r in receipts if r.dropped is None]
            if not came:
                raise self.too_few(f"round {self.round}: no client replied to {fn.__name__!r}")
            counted.update(r.client for r in came)
        return came

    def arrivals(self, fn: Callable[[Client, M], R], message: M, over: Sequence[int]) -> Iterator[tuple[float, int, R]]:
        """Return an iterator of (virtual time, client, reply) in order of arrival; the clock advances with it.

        All replies belong to this call. For clients that continue to work while the server does, see `start`.

        Raises:
            QuorumError: if no client replied.
        """
        self._may_see(fn)
        receipts = self._each(fn, message, over, passes=False)
        return self._arrive(sorted(receipts, key=lambda r: (r.compute + r.network, r.client)))

    def _arrive(self, receipts: Sequence[Receipt]) -> Iterator[tuple[float, int, Any]]:
        start = self.clock.now
        for receipt in receipts:
            self.wait(start + receipt.compute + receipt.network - self.clock.now)
            yield self.clock.now, receipt.client, receipt.value

    @overload
    def start(self, fn: Callable[[Client, M], Tree], message: M, over: Sequence[int]) -> dict[int, float]: ...
    @overload
    def start(
        self, fn: Callable[[Client, WithOwn[M, E]], Tree], message: M, over: Sequence[int], each_message: Mapping[int, E]
    ) -> dict[int, float]: ...
    def start(
        self, fn: Callable[..., Tree], message: Tree, over: Sequence[int], each_message: Mapping[int, Tree] | None = None
    ) -> dict[int, float]:
        """Start `fn` on clients; return the virtual seconds until each of them is done, without lost clients.

        The reply remains on the client until a function marked ``@on_client(collects=True)``, called with any operation above,
        takes it (`Client.take`): so a buffered sum of arrivals is an ordinary sum. Message, random stream and memory are those
        of the start, however late the reply is taken. The reply is stored in the client's memory, which is committed with this
        round and restored from a checkpoint; a running client must not be started again before its reply is taken.

        The clock does not advance; use `wait`. If the server may see single replies, a reply is uploaded as soon as it is done:
        its upload is part of the seconds returned here, and taking it costs nothing. If the aggregation hides replies, the upload
        happens in the sum that takes it, and the calls of that sum advance the clock.
        """
        if declaration(fn).peer_record is not None:
            raise PlanError([f"{fn.__name__} exchanges records between clients; call it with fed.sum or fed.mean, not fed.start"])
        channel = Held(goes_up=self.aggregation.sees_each)
        with self._operation(over) as counted:
            receipts, _ = self.call(fn.__name__, message, over, channel, each_message=each_message, passes=False)
            begun = {r.client: r.compute + r.network for r in receipts if r.dropped is None}
            counted.update(begun)
        return begun

    def wait(self, seconds: float) -> None:
        """Advance the clock by virtual seconds, except for those already waited in an earlier attempt at this round."""
        before = max(self._waits, self._waited)
        self._waits += max(seconds, 0.0)
        left = max(self._waits - before, 0.0)
        self.clock.wait(left)
        self.totals.seconds += left

    # -- used by aggregations ------------------------------------------------------------------
    def call(
        self,
        function: str,
        message: Tree,
        clients: Sequence[int],
        channel: Channel,
        *,
        program: str = "method",
        deadline: float | None = None,
        each_message: Mapping[int, Tree] | None = None,
        peers: Mapping[int, Mapping[int, Tree]] | None = None,
        stream: str | None = None,
        passes: bool = True,
        sink: Callable[[Receipt], None] | None = None,
    ) -> tuple[list[Receipt], list[Any]]:
        """Run one client function; account for time and bytes; return receipts sorted by client, and partial results.

        With `sink`, each receipt is passed to it on arrival and its value is not stored.
        """
        if not clients:
            raise CohortError(f"round {self.round}: {function!r} was called on an empty cohort; sample at least one client")
        self._calls += 1
        stream = stream or self.stream(f"{program}.{function}")
        each, others = each_message or {}, peers or {}
        place = (function, message, tuple(clients), self.round, stream, channel, program)
        call = Call(*place, each_message=each, deadline=deadline, peers=others, operation=self._verbs)
        receipts: list[Receipt] = []
        partials: list[Any] = []
        for item in self.engine.run(call):
            if isinstance(item, tuple):
                partials.append(item[1])
                continue
            if item.dropped is not None and item.dropped not in ("late", "gone", DECLINED) and self.on_error == "stop":
                raise client_error(item, function, self.round)
            if sink is not None:
                sink(item)
                item = dataclasses.replace(item, value=None)
            receipts.append(item)
        self._redraw()
        if self._settled:  # these replies were uploaded, and accounted for, when they were done
            receipts = [dataclasses.replace(r, compute=0.0, network=0.0, bytes_up=0, bytes_down=0) for r in receipts]
        receipts.sort(key=operator.attrgetter("client"))
        info = CallInfo(seconds=self.clock.advance(function, receipts, deadline) if passes else 0.0)
        info.bytes_up, info.bytes_down = sum([r.bytes_up for r in receipts]), sum([r.bytes_down for r in receipts])
        info.arrived = {r.client: r.compute + r.network for r in receipts if r.dropped is None}
        if len(info.arrived) < len(receipts):
            info.dropped = {r.client: r.dropped for r in receipts if r.dropped is not None}
        self.last = info
        self.lost |= {c: why for c, why in info.dropped.items() if kind_of(why) in ("refused", "failed")}
        self._open.add(info)
        self.totals.seconds += info.seconds
        self.totals.bytes_up += info.bytes_up
        self.totals.bytes_down += info.bytes_down
        return receipts, partials

    def _sum(self, fn: Callable[..., Any], message: Tree, over: Sequence[int], deadline: float | None) -> Any:
        declared = declaration(fn).fitted(lambda: self.init_params().layout)
        if declared.each:
            raise PlanError([f"{fn.__name__} is an @on_client(each=True) function; call it with fed.each"])
        with self._operation(over) as counted, self._settling(declared) as settled:
            deadline = None if settled or deadline == math.inf else self.deadline if deadline is None else deadline
            request = SumRequest(fn.__name__, message, tuple(over), declared, deadline)
            try:
                summed = self.aggregation.sum(self, request)
            except MisbehaviourError:
                raise
            except QuorumError as error:
                raise self.too_few(str(error)) from error
            counted.update(summed.survivors)  # a client lost in a later phase may have answered earlier ones
            if len(counted) < self.quorum:
                raise self.too_few(f"round {self.round}: {len(counted)} clients replied, fewer than the quorum of {self.quorum}")
        arrived = self._open.arrived
        if not arrived.keys() <= counted:
            arrived = {c: t for c, t in arrived.items() if c in counted}
        self.last = dataclasses.replace(self._open, arrived=arrived, notes=summed.notes)
        total = on_host(rebuild(summed.structure, summed.tensors, summed.scalars, summed.denominators))
        self.statistics.see(message, total)
        return total

    @contextlib.contextmanager
    def _settling(self, declared: ClientFunction) -> Iterator[bool]:
        """Within this context, calls that collect replies uploaded earlier cost nothing; see `start`."""
        self._collecting = declared.collects
        self._settled = declared.collects and self.aggregation.sees_each
        try:
            yield self._settled
        finally:
            self._settled = self._collecting = False

    def _may_see(self, fn: Callable[..., Any]) -> None:
        declared = declaration(fn)
        if not declared.each:
            raise PlanError(
                [f"{fn.__name__} may be seen only summed; call it with fed.sum, or declare it with @on_client(each=True)"]
            )
        if not self.aggregation.sees_each:
            raise PlanError([f"{fn.__name__} needs single replies, which {self.aggregation.name!r} aggregation hides; use plain"])
