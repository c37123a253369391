"""The server's side of a federation: a handful of verbs, each of which says what the server gets to see.

``fed.sum`` and ``fed.mean`` show it only sums over a cohort; ``fed.each`` shows it every reply;
``fed.arrivals`` shows them in the order in which they arrive. ``fed.start`` shows nothing: clients begin work
whose results they hold until one of the other verbs asks for them, in the same round or in a later one.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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
    Summed,
    SumRequest,
)
from paceline.core.errors import CohortError, MisbehaviourError, PlanError, QuorumError
from paceline.core.exclusions import Exclusions
from paceline.core.failures import account, client_error, kind_of
from paceline.core.generators import reseed_nested
from paceline.core.params import Params
from paceline.core.random import derive, numpy_rng
from paceline.core.tree import Tree
from paceline.core.update import Update, rebuild

__all__ = ["Aggregation", "Availability", "CallInfo", "Federation", "SumRequest", "Summed"]


class Federation:
    """A population of clients and the verbs to speak to them.

    Args:
        engine: where client functions run.
        aggregation: how sums are formed.
        fleet: which clients are there; decides availability.
        clock: virtual time.
        seed: of the run.
        cohort: default cohort size.
        quorum: least number of replies in a sum.
        least_group: least size of a group that `mean(groups=...)` may ask for.
        deadline: virtual seconds after which a reply to a sum is dropped, where the method sets none.
        on_error: ``"stop"`` raises a client's error, ``"drop"`` treats that client as dropped out.
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
        self.engine, self.aggregation, self.fleet, self.clock = engine, aggregation, fleet, clock
        self.seed, self.cohort_size, self.quorum = seed, cohort, quorum
        self.least_group, self.on_error, self.deadline = least_group, on_error, deadline
        self.round = 0
        self.attempt = 0
        self.incarnation = 0
        self._calls = self._verbs = 0
        self._streams: dict[str, int] = {}
        self.excluded = Exclusions()
        self.opened: set[int] = set()
        """Clients whose sum was opened in this round: another attempt asks others first, as no work is opened twice."""
        self.last = CallInfo()
        self.totals = CallInfo()
        self._open, self._asked = CallInfo(), 0
        self.lost: dict[int, str] = {}
        """Clients whose replies failed or were refused in this round, and why."""
        self._settled = self._handing = False
        self._waits = self._waited = 0.0

    # -- the population ------------------------------------------------------------------------
    @property
    def num_clients(self) -> int:
        """Number of clients in the population."""
        return self.engine.num_clients

    def init_params(self) -> Params:
        """Return the task's initial model."""
        return self.engine.init_params()

    def start_round(self, round: int, attempt: int = 0) -> None:
        """Begin round `round` (from 1); random streams and call numbers start anew."""
        again = round == self.round and attempt > self.attempt
        self._waits, self._waited = 0.0, max(self._waits, self._waited) if again else 0.0
        if not again:
            self.opened.clear()
        self.round, self.attempt, self._calls, self._verbs = round, attempt, 0, 0
        self.lost = self.lost if attempt else {}
        self._streams.clear()
        self._redraw()

    def sample(self, size: int | None = None, among: Sequence[int] | None = None) -> list[int]:
        """Draw a cohort without replacement from the clients that are available, sorted by id.

        Draws fewer where fewer are there. Raises `CohortError` when `size` exceeds the population or
        nobody is available.
        """
        size = self.cohort_size if size is None else size
        population = self.num_clients if among is None else len(among)
        if not 1 <= size <= population:
            raise CohortError(f"a cohort of {size} cannot be drawn from {population} clients; set --cohort to at most {population}")
        picked = self.available(size, among)
        if not picked:
            raise CohortError(f"no client is available in round {self.round}")
        return picked

    def available(self, most: int | None = None, among: Sequence[int] | None = None) -> list[int]:
        """Return the clients that can be asked in this round, sorted by id: all, or at most `most`, drawn without replacement.

        There may be none.
        """
        if self.attempt and self.opened and most is not None:
            fresh = [c for c in (range(self.num_clients) if among is None else among) if c not in self.opened]
            among = fresh if len(fresh) >= most else among
        population = self.num_clients if among is None else len(among)
        rng = numpy_rng(self.seed, "cohort", self.round, self.attempt, self._calls)
        if among is None and self.fleet.always and not self.excluded:
            return sorted(rng.permutation(population)[:most].tolist())
        picked: list[int] = []
        for place in rng.permutation(population):
            client = int(place if among is None else among[int(place)])
            if self.fleet.available(client, self.round) and not self.excluded.sits_out(client, self.round):
                picked.append(client)
                if len(picked) == most:
                    break
        return sorted(picked)

    def stream(self, function: str) -> str:
        """Return the name of the random streams of the next call of `function` in this round.

        Streams belong to the method's own calls: the messages of a protocol in between change nothing. Work that is
        handed over is the same in every attempt, and so is its stream: a client can tell that it is asked again.
        """
        attempt, number = self.place(function)
        return f"{attempt}/{function}/{number}"

    def place(self, function: str) -> tuple[int, int]:
        """Return what `stream` is made of: the attempt, and which call of `function` in this round the next one is."""
        number = self._streams[function] = self._streams.get(function, 0) + 1
        return 0 if self._handing else self.attempt, number

    @property
    def serial(self) -> int:
        """A number that grows with every call of a round; with attempts, and with starts of a server (`incarnation`)."""
        return self.incarnation * 10**9 + self.attempt * 100_000 + self._calls

    def _redraw(self) -> None:
        """Let what a method draws from global generators at the server depend on the round and its calls alone."""
        reseed_nested(derive(self.seed, "server", self.round, self.attempt, self._verbs))

    # -- the verbs -----------------------------------------------------------------------------
    def sum(self, fn: Callable[..., Any], message: Tree, over: Sequence[int], deadline: float | None = None) -> Any:
        """Return the sum over the cohort of what `fn` returns; the server sees nothing else."""
        return self._sum(fn, message, over, deadline)

    def mean(
        self,
        fn: Callable[..., Any],
        message: Tree,
        over: Sequence[int],
        deadline: float | None = None,
        groups: Mapping[Any, Sequence[int]] | None = None,
        group_message: Mapping[Any, Tree] | None = None,
    ) -> Any:
        """Return the weighted mean over the cohort of the `Update` that `fn` returns.

        With `groups` (key -> clients), return one mean for each group, asked for side by side; a group
        smaller than the site's least size raises `QuorumError`. Each group gets its own `group_message` where
        there is one.
        """
        if groups is None:
            result = self._sum(fn, message, over, deadline)
            if not isinstance(result, Update):
                raise PlanError([f"{fn.__name__} returns {type(result).__name__}; fed.mean needs an Update"])
            return result
        small = {k: len(c) for k, c in groups.items() if len(c) < max(self.least_group, 1)}
        if small:
            raise QuorumError(f"groups {small} are smaller than the least group of {self.least_group} clients")
        means, start, end, merged = {}, self.clock.now, self.clock.now, CallInfo()
        for key, clients in groups.items():
            self.clock.now = start
            means[key] = self._sum(fn, message if group_message is None else group_message[key], clients, deadline)
            end = max(end, self.clock.now)
            _merge(merged, self.last)
        self.clock.now = end
        merged.seconds = end - start
        self.last = merged
        return means

    def each(
        self,
        fn: Callable[..., Any],
        message: Tree,
        over: Sequence[int],
        deadline: float | None = None,
        each_message: Mapping[int, Tree] | None = None,
    ) -> dict[int, Any]:
        """Return every client's own reply, by client id; dropped clients are missing.

        Raises `QuorumError` where nobody replied.
        """
        self._may_see(fn)
        with self._settling(_declared(fn)) as settled:
            deadline = None if settled else deadline
            receipts = self._each(fn, message, over, deadline=deadline, each_message=each_message or {})
        return {r.client: r.value for r in receipts}

    def _each(self, fn: Callable[..., Any], message: Tree, over: Sequence[int], **options: Any) -> list[Receipt]:
        """Return the receipts of those who replied, of whom there are some."""
        self._open, self._asked, self._verbs = CallInfo(), len(over), self._verbs + 1
        receipts, _ = self.call(fn.__name__, message, over, Each(), **options)
        came = [r for r in receipts if r.dropped is None]
        if not came:
            raise self.too_few(f"round {self.round}: no reply to {fn.__name__!r} came")
        return came

    def arrivals(self, fn: Callable[..., Any], message: Tree, over: Sequence[int]) -> Iterator[tuple[float, int, Any]]:
        """Return an iterator of (virtual time, client, reply) in the order of arrival; the clock follows it.

        All replies belong to this call. Where clients go on working while the server does, see `start`.
        Raises `QuorumError` where nobody replied.
        """
        self._may_see(fn)
        receipts = self._each(fn, message, over, passes=False)
        return self._arrive(sorted(receipts, key=lambda r: (r.compute + r.network, r.client)))

    def _arrive(self, receipts: Sequence[Receipt]) -> Iterator[tuple[float, int, Any]]:
        start = self.clock.now
        for receipt in receipts:
            self.wait(start + receipt.compute + receipt.network - self.clock.now)
            yield self.clock.now, receipt.client, receipt.value

    def start(
        self, fn: Callable[..., Any], message: Tree, over: Sequence[int], each_message: Mapping[int, Tree] | None = None
    ) -> dict[int, float]:
        """Let clients begin `fn`; return the virtual seconds after which each of them will be done.

        The reply stays with its client, until a function that is marked ``@on_client(held=True)`` hands it over
        (`Client.take`), asked with any of the verbs above: so a buffered sum of arrivals is an ordinary sum.
        Message, random stream and memory are those of this moment, however late that is. The reply lies in the
        client's memory, which is committed with this round and comes back with a checkpoint; a client that is
        at work must not be started again before it handed over.

        The clock stays: what passes is told to `wait`. Where the server may see single replies, a reply goes up
        as soon as it is done: its upload is part of the seconds here, and handing over costs nothing. Where the
        aggregation hides them it waits for the sum that takes it up, and that sum's calls pass on the clock.
        Clients that were lost are missing.
        """
        if _declared(fn).tells is not None:
            raise PlanError([f"{fn.__name__} wants clients to tell each other records, which work that is only begun cannot"])
        self._verbs += 1
        channel = Held(goes_up=self.aggregation.sees_each)
        receipts, _ = self.call(fn.__name__, message, over, channel, each_message=each_message, passes=False)
        return {r.client: r.compute + r.network for r in receipts if r.dropped is None}

    def wait(self, seconds: float) -> None:
        """Let virtual seconds pass. What an earlier attempt at this round waited is not waited for again."""
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
        """Run one client function; account for time and bytes; return receipts by client, and partials.

        With `sink`, each receipt is handed over as it comes and its value is not kept.
        """
        if not clients:
            raise CohortError(f"round {self.round}: {function!r} was asked of an empty cohort")
        self._calls += 1
        stream = stream or self.stream(f"{program}.{function}")
        call = Call(
            function, message, tuple(clients), self.round, stream, channel, program, each_message or {}, deadline, peers or {}
        )
        receipts: list[Receipt] = []
        partials: list[Any] = []
        for item in self.engine.run(call):
            if isinstance(item, tuple):
                partials.append(item[1])
                continue
            if item.dropped is not None and item.dropped not in ("late", "gone") and self.on_error == "stop":
                raise client_error(item, function, self.round)
            if sink is not None:
                sink(item)
                item = dataclasses.replace(item, value=None)
            receipts.append(item)
        self._redraw()
        if self._settled:  # these replies went up, and were paid for, when they were done
            receipts = [dataclasses.replace(r, compute=0.0, network=0.0, bytes_up=0, bytes_down=0) for r in receipts]
        receipts.sort(key=lambda r: r.client)
        info = CallInfo(
            seconds=self.clock.advance(function, receipts, deadline) if passes else 0.0,
            bytes_up=sum(r.bytes_up for r in receipts),
            bytes_down=sum(r.bytes_down for r in receipts),
            arrived={r.client: r.compute + r.network for r in receipts if r.dropped is None},
            dropped={r.client: r.dropped for r in receipts if r.dropped is not None},
        )
        self.last = info
        self.lost |= {c: why for c, why in info.dropped.items() if kind_of(why) in ("refused", "failed")}
        _merge(self._open, info)
        self.totals.seconds += info.seconds
        self.totals.bytes_up += info.bytes_up
        self.totals.bytes_down += info.bytes_down
        return receipts, partials

    def _sum(self, fn: Callable[..., Any], message: Tree, over: Sequence[int], deadline: float | None) -> Any:
        declared = _declared(fn)
        if declared.each:
            raise PlanError([f"{fn.__name__} is an @on_client(each=True) function; ask it with fed.each"])
        self._open, self._asked, self._verbs = CallInfo(), len(over), self._verbs + 1
        with self._settling(declared) as settled:
            deadline = None if settled else self.deadline if deadline is None else deadline
            request = SumRequest(fn.__name__, message, tuple(over), declared, deadline)
            try:
                summed = self.aggregation.sum(self, request)
            except MisbehaviourError:
                raise
            except QuorumError as error:
                raise self.too_few(str(error)) from error
        if len(summed.survivors) < self.quorum:
            raise self.too_few(f"round {self.round}: {len(summed.survivors)} replies, but the quorum is {self.quorum}")
        came = set(summed.survivors)  # a client that was lost later may have answered the first phases
        arrived = {c: t for c, t in self._open.arrived.items() if c in came}
        self.last = dataclasses.replace(self._open, arrived=arrived, notes=summed.notes)
        return rebuild(summed.structure, summed.tensors, summed.scalars, summed.denominators)

    def too_few(self, what: str) -> QuorumError:
        """Return the error of the latest sum or call, where it lacks replies: `what`, and what became of them."""
        return QuorumError(f"{what}; {account(self._open.dropped, self._asked)}" if self._open.dropped else what)

    @contextlib.contextmanager
    def _settling(self, declared: ClientFunction) -> Iterator[bool]:
        """Let calls cost nothing where what they hand over went up before; see `start`."""
        self._handing = declared.held
        self._settled = declared.held and self.aggregation.sees_each
        try:
            yield self._settled
        finally:
            self._settled = self._handing = False

    def _may_see(self, fn: Callable[..., Any]) -> None:
        declared = _declared(fn)
        if not declared.each:
            raise PlanError(
                [f"{fn.__name__} returns what the server may see only summed; mark it @on_client(each=True) to ask for each"]
            )
        if not self.aggregation.sees_each:
            raise PlanError([f"{fn.__name__} needs every single reply, which {self.aggregation.name!r} aggregation hides"])


def _declared(fn: Callable[..., Any]) -> ClientFunction:
    declared = getattr(fn, "__client__", None)
    if not isinstance(declared, ClientFunction):
        raise PlanError([f"{getattr(fn, '__name__', fn)!r} is not a client function; mark it with @on_client"])
    return declared


def _merge(into: CallInfo, info: CallInfo) -> None:
    into.seconds += info.seconds
    into.bytes_up += info.bytes_up
    into.bytes_down += info.bytes_down
    for client, seconds in info.arrived.items():
        into.arrived[client] = max(into.arrived.get(client, 0.0), seconds)
    into.dropped.update(info.dropped)
