"""Engine of a real federation: the interface of the local engine over the clients' gRPC streams.

The run executes in its own thread; all streams are served by one asyncio loop in another. Replies are decoded and
added in the run's thread, one by one, as they arrive.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from paceline.core.engine import Call, Engine, Receipt
from paceline.core.errors import CohortError, EngineError
from paceline.core.failures import class_in
from paceline.core.params import Params
from paceline.core.serialization import NETWORK
from paceline.core.services import Services
from paceline.core.tree import Tree
from paceline.network.channels import describe, intake
from paceline.network.event_loop import LoopThread
from paceline.network.frames import MessagePart
from paceline.network.interfaces import Recorder, ServerSide
from paceline.network.pending_call import Patience, PendingCall
from paceline.network.receipts import Receipts
from paceline.network.server_streams import Hub

__all__ = ["GrpcEngine", "Stopped"]


class Stopped(EngineError):
    """The server was requested to stop; the run resumes when it is started again."""


class GrpcEngine(Engine):
    """Runs client functions on the connected clients.

    Args:
        hub: the streams.
        loop: event loop thread that serves them.
        home: see `ServerSide`.
        num_clients: size of the population.
        patience: timeouts.
        measured: measure work and transfers in real time; otherwise clients report virtual times, as in a simulation.
        hidden: sums are secure: clients report no times, so arrivals are measured in any case.
        pack: compress messages with zstd.
        least: clients that must be ready before a round is repeated.
        record: see `Recorder`.
    """

    def __init__(
        self,
        hub: Hub,
        loop: LoopThread,
        home: ServerSide,
        num_clients: int,
        *,
        patience: Patience | None = None,
        measured: bool = False,
        hidden: bool = False,
        pack: bool = False,
        least: int = 1,
        record: Recorder | None = None,
    ) -> None:
        self.hub, self.loop, self.home, self.num_clients = hub, loop, home, num_clients
        self.patience, self.measured, self.pack = patience or Patience(), measured or hidden, pack
        self.least, self.record = least, record
        self._receipts = Receipts(replace(NETWORK, size=hub.settings.limit, header=hub.settings.limit), measured, hub.note, hidden)
        self.round = hub.progress.round
        self.stopping = False
        self._attempt = 0
        self._calls = hub.progress.incarnation << 32
        self._answered: set[int] = set()
        self._lost: dict[int, list[int]] = {}

    # -- calls ---------------------------------------------------------------------------------
    def run(self, call: Call) -> Iterator[Receipt | tuple[str, Any]]:
        """Run a call; yield receipts as they arrive, and one partial sum at the end.

        Raises:
            Stopped: the server was requested to stop.
            EngineError: the call's channel cannot be used over a network.
        """
        phase, taker = self._open(call), intake(call.channel)
        began, label = self._attempt, f"{phase.name}/{call.stream.rpartition('/')[2]}"
        if self.record is not None:
            self.record.phase(call.round, began, label, call.clients)
        receipts: list[Receipt] = []
        try:
            self.loop.call(self.hub.dispatcher.open, phase)
            waiting, deadline = set(call.clients), call.deadline if self.measured else None
            while waiting:
                arrival = phase.wait(deadline, self._stop_here)
                if arrival is None:
                    break
                waiting.discard(arrival.client)
                receipt = self._receipts.make(phase, arrival, taker)
                receipts.append(replace(receipt, value=None))
                phase.count(sum(1 for r in receipts if r.dropped is None))
                if not taker.sums:
                    yield receipt
                del receipt, arrival
            spent = time.monotonic() - phase.began if self.measured else 0.0
            for client in sorted(waiting):
                late = client in phase.sent
                receipts.append(Receipt(client, network=spent if late else 0.0, dropped="late" if late else "gone"))
                if not taker.sums:
                    yield receipts[-1]
        finally:
            self.loop.call(self.hub.dispatcher.shut)
        partial, lost = taker.finish()
        receipts = [replace(r, dropped=why, error=class_in(why)) if (why := lost.get(r.client)) else r for r in receipts]
        self._answered |= {r.client for r in receipts if r.dropped is None}
        if self.record is not None:
            self.record.answers(call.round, began, label, receipts)
        if taker.sums:
            yield from receipts
        if partial is not None:
            yield ("partial", partial)

    def _open(self, call: Call) -> PendingCall:
        self._stop_here()
        self.round = call.round
        self._calls += 1
        name = call.function if call.program == "method" else f"{call.program}.{call.function}"
        head = {
            "id": self._calls,
            "program": call.program,
            "function": call.function,
            "round": call.round,
            "take": self.hub.progress.take,
            "stream": call.stream,
            "deadline": None if self.measured else call.deadline,
            "channel": describe(call.channel),
            "cohort": len(call.clients),
            "operation": call.operation,
        }
        lost = {client: list(operations) for client, operations in self._lost.items()}
        return PendingCall(self._calls, call, name, head, MessagePart.of(call.message, self.pack), self.patience, lost=lost)

    # -- rounds --------------------------------------------------------------------------------
    def commit(self) -> dict[int, dict[str, Any]]:
        """Make the clients commit the memory changes of this round; return no memories, because they stay on the clients."""
        kept = {client: self._lost.get(client, []) for client in sorted(self._answered)}
        if self.record is not None:
            self.record.committed(self.round, self._attempt, kept)
        self._answered, self._lost, self._attempt = set(), {}, 0
        took, self._receipts.took = self._receipts.took, {}
        facts = {"round": self.round, "saved": self.hub.progress.saved}
        heads = lambda c: {**facts, "kept": c in kept, "lost": kept.get(c, []), "took": took.get(c, 0.0)}  # noqa: E731
        self.loop.call(self.hub.completed, self.round, kept, heads)
        if self.hub.shaper is not None:
            self.loop.call(self.hub.shaper.enter, "commit", self.round)
        return {}

    def rollback(self) -> None:
        """Make the clients discard memory changes since the last commit; wait until enough of them are ready."""
        self._answered.clear()
        self._lost.clear()
        self._receipts.took.clear()
        self._attempt += 1
        self.loop.call(self.hub.again)
        self.wait_ready(self.least, self.patience.reconnect * 2)

    def withdraw(self, operation: int, clients: Sequence[int]) -> None:
        """Make clients undo what they staged in an operation: with their next message in this round, or with its commit."""
        for client in clients:
            self._lost.setdefault(client, []).append(operation)

    def saved(self, round: int) -> None:
        """Record that a checkpoint of this round is safe; clients may then delete older memories."""
        self.loop.call(lambda: setattr(self.hub.progress, "saved", round))

    def restore(self, memories: Mapping[int, Mapping[str, Any]]) -> None:
        """Raise `EngineError` for any memories: in a real federation they are stored by the clients."""
        if memories:
            raise EngineError(
                "the checkpoint contains client memories, so it is from a simulation; a federation cannot resume it: start a new run"
            )

    # -- who is there --------------------------------------------------------------------------
    def present(self, client: int) -> bool:
        """Return whether a client is connected and ready."""
        return (session := self.hub.sessions.get(client)) is not None and session.ready

    def wait_ready(self, count: int, seconds: float = math.inf) -> bool:
        """Wait until `count` clients are ready; return False on timeout.

        Args:
            count: number of clients.
            seconds: timeout.

        Raises:
            CohortError: too many clients refuse to participate.
        """
        return self.wait_until(lambda: len(self.hub.ready()) >= count, count, seconds)

    def wait_until(self, there: Callable[[], bool], least: int, seconds: float = math.inf) -> bool:
        """Wait until `there` returns True; return False on timeout.

        Args:
            there: condition, polled every 20 ms.
            least: clients that must be willing to participate.
            seconds: timeout.

        Raises:
            CohortError: fewer than `least` clients are willing to participate.
            Stopped: the server was requested to stop.
        """
        end = time.monotonic() + seconds
        while not there():
            self._stop_here()
            refusals = self.hub.dispatcher.refusals
            if self.num_clients - len(refusals) < least:
                shown = "; ".join(f"client {c}: {why}" for c, why in list(refusals.items())[:3])
                raise CohortError(
                    f"{len(refusals)} of {self.num_clients} clients refuse to participate, and the minimum is {least}: {shown}"
                )
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        return True

    def _stop_here(self) -> None:
        if self.stopping:
            raise Stopped("the server was requested to stop; start it again to continue the run")

    # -- the server's own model ----------------------------------------------------------------
    @property
    def services(self) -> Services:
        """Services of the server's own worker."""
        return self.home.services

    def init_params(self) -> Params:
        """Return a copy of the initial model."""
        return self.home.initial.clone()

    def preview(self, function: str, message: Tree) -> Tree | None:
        """Return a reply of the shape that clients will send, computed by the server's own worker; None if unknown."""
        return self.home.preview(function, message)

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Evaluate a model on the central test set."""
        return self.home.evaluate(params)

    def close(self) -> None:
        """Do nothing: the streams are closed by the owner of the server."""
