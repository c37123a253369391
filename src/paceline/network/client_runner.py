"""Execution of calls on a client: worker, persistent memory, replay guard and policy. Independent of streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paceline.core.columns import select
from paceline.core.engine import Call, Receipt, delivered
from paceline.core.errors import CheckpointError, PacelineError, ProtocolError, StoreError
from paceline.core.fingerprint import digest
from paceline.core.importing import imports_from
from paceline.core.tree import Tree
from paceline.engines.worker import Worker
from paceline.network import protocol as p
from paceline.network.channels import client_channel
from paceline.network.client_memory import ClientMemory
from paceline.network.handshake import MALFORMED, Answer, Rules, Welcome, reason_of
from paceline.network.replay_guard import Guard

__all__ = ["Runner"]

Work = Callable[[Welcome], Worker]
Learn = Callable[[bytes], Any]


class Runner:
    """Executes calls sequentially.

    Args:
        number: this client's id; a welcome for another id is refused.
        folder: folder of memory and guard, by run.
        work: builds the worker of a run: data, model, installed functions.
        rules: policy of the client; None for no restrictions.
        durable: sync the files.
        learn: accepts a newer directory of identity keys, or raises `IdentityError`.
        modules: the only modules that names such as ``package.module:Name`` may be imported from; None allows all.
    """

    def __init__(
        self,
        number: int,
        folder: Path,
        work: Work,
        rules: Rules | None = None,
        durable: bool = True,
        learn: Learn = bytes,
        modules: Collection[str] | None = None,
    ) -> None:
        self.modules = modules
        self.number, self.folder, self.rules, self.durable = number, folder, rules, durable
        self._work, self.learn = work, learn
        self.worker: Worker | None = None
        self.at: Welcome | None = None
        self.member = False
        """Whether this client has joined the run of the last welcome; it answers no call otherwise."""
        self._round = 0
        self._overlay: tuple[int, int] | None = None
        self._pending: dict[str, int] = {}
        self._elsewhere = False
        """Whether the present attempt's changes were written by another process of this client, and are on disk alone."""
        self._trained = self._received = self._moved = 0.0
        self._training: int | None = None
        """The call in which this client trained last."""

    # -- a run ---------------------------------------------------------------------------------
    def join(self, welcome: Welcome) -> None:
        """Join or resume a run and synchronise with the server.

        Raises:
            ProtocolError: the welcome is for another client, or the server went back behind a safe round.
            PolicyError: the client's policy excludes this run.
            CheckpointError: the stored memory belongs to other data.
        """
        if welcome.number != self.number:
            raise ProtocolError(f"the server addresses this client as number {welcome.number}, but it is {self.number}")
        self.member, before = False, self.at
        if welcome.directory:
            self.learn(welcome.directory)
        if self.rules is not None:
            self.rules.admit(welcome)
        if self.worker is None or before is None or before.run != welcome.run:
            self._begin(welcome)
            before = None
        elif self.rules is not None:
            self.rules.join(welcome)
        self.guard.join(welcome.incarnation, welcome.round)
        if anew := before is None or before.incarnation != welcome.incarnation:
            self._go_to(welcome)
        self.at = welcome  # only now: if that failed, the next welcome tries it again
        if not anew and self._overlay is not None:
            round, take = self._overlay
            if round <= welcome.round:
                kept = round == welcome.kept
                facts = {"round": round if kept else welcome.round, "saved": welcome.saved, "kept": kept, "took": 0.0}
                self.commit({**facts, "lost": list(welcome.lost)})
            elif take != welcome.take:
                self.rollback()
        self._round = max(self._round, welcome.round)
        self.member = True

    def _begin(self, welcome: Welcome) -> None:
        """Replace worker, memory, guard and rules by those of another run; all of them, or none if one cannot be made."""
        worker, where = self._work(welcome), self.folder / welcome.run
        memory = ClientMemory(where / "memory", self.durable)
        new = memory.belong(digest([select((worker.x, worker.y), rows) for rows in worker.setup.split(self.number)]))
        if new and welcome.kept and worker.setup.programs["method"].client_state != "nothing":
            raise CheckpointError(
                f"client {self.number} took part in this run up to round {welcome.kept}, but its memory of it is not in "
                f"{memory.folder}: put it back, or start the run anew"
            )
        guard = Guard(where / "guard", worker.functions, self.durable)
        if self.rules is not None:
            self.rules.join(welcome)
        self.worker, self.memory, self.guard, self.at = worker, memory, guard, None

    def closed(self) -> list[str]:
        """Return the reasons why this client does not participate at present; empty if it does."""
        return [] if self.rules is None else self.rules.closed()

    def _go_to(self, welcome: Welcome) -> None:
        """Restore the memory as of the server's last completed round."""
        assert self.worker is not None
        self.worker.rollback()
        attempt = (welcome.incarnation, welcome.take)
        stored = self.memory.restore(welcome.round, welcome.kept, welcome.saved, welcome.lost, attempt)
        self.worker.restore({self.number: stored})
        self._forget_overlay()
        self._round = welcome.round
        if self.memory.waits:  # of the present attempt: restoring has settled all other
            self._overlay, self._elsewhere = (welcome.round + 1, welcome.take), True

    # -- calls ---------------------------------------------------------------------------------
    def call(self, head: Mapping[str, Any], message: Tree, rest: Tree) -> Answer:
        """Execute one call. Any failure becomes a reason in the answer, which is sent to the server unless sums are secure.

        Args:
            head: head of the call.
            message: message common to all clients.
            rest: message for this client alone, or None.
        """
        number, hidden = p.field(head, "id", int), self.hidden
        try:
            worker, call = self._checked(head, message, rest)
            began, before = time.perf_counter(), self._seen(worker)
            receipt = self._run(worker, call)
            spent = time.perf_counter() - began
            trained = self._seen(worker) != before
            if trained:
                session = worker.sessions.get(self.number)
                wasted = 0.0 if session is None else session.wasted  # else the next tier would tell that a training failed
                self._trained, self._moved, self._training = spent - wasted, self._received, number
            self._keep(call.round, p.field(head, "take", int))
            if self.rules is not None:
                self.rules.done(head, receipt.bytes_up, spent)
        except (PacelineError, *MALFORMED) as error:
            return self.refused(number, error)
        answer = Answer.of(number, receipt, spent, trained, spent, hidden)
        session = worker.sessions.get(self.number)
        if session is None or not session.failed:
            return answer
        failed, session.failed, session.wasted = session.failed, "", 0.0
        return replace(answer, why=f"contributed zeros to the sum: {failed}")

    def refused(self, number: int, error: Exception, told: bool = False) -> Answer:
        """Return the answer to a call that is not executed.

        Args:
            number: id of the call.
            error: the reason.
            told: send the reason to the server also if sums are secure, because it does not depend on this client's data.
        """
        return Answer.of(number, Receipt(self.number, dropped=reason_of(error)), hidden=self.hidden and not told)

    def moved(self, run: str, size: int) -> None:
        """Count a call that has arrived, before it is judged, or a reply that is sent again.

        Raises:
            StoreError: the count cannot be written.
        """
        if self.rules is not None:
            self.rules.moved(run, size)

    @property
    def waiting(self) -> bool:
        """Whether there is work for `idle`."""
        return (
            self.worker is not None and (session := self.worker.sessions.get(self.number)) is not None and session.later is not None
        )

    def idle(self) -> None:
        """Do the work that a protocol has left for the time after a reply; it knows how long the last training took."""
        if self.worker is not None and (session := self.worker.sessions.get(self.number)) is not None:
            memory = self.worker.memories.get(self.number)
            if self.hidden and self.worker.setup.measured and memory is not None and "_times" in memory.changes:
                memory["_times"] = [self._trained, self._moved]
            session.idle()

    @property
    def hidden(self) -> bool:
        """Whether the server may receive only sums, so that no reason, time or size that depends on data is sent."""
        return self.worker is None or "secagg" in self.worker.functions

    def received(self, seconds: float) -> None:
        """Note how long the next call's message took to arrive, from its first frame."""
        self._received = seconds

    def sent(self, number: int, seconds: float) -> None:
        """Note how long the reply to a call took to send."""
        if number == self._training:
            self._moved += seconds

    def slowed(self, answer: Answer, seconds: float) -> None:
        """Add `seconds` to the reported work time: an injected slow device."""
        if answer.trained:
            self._trained += seconds
        if answer.head["seconds"]:
            answer.head["seconds"] += seconds

    def _checked(self, head: Mapping[str, Any], message: Tree, rest: Tree) -> tuple[Worker, Call]:
        if self.worker is None:
            raise ProtocolError("a call arrived before a welcome")
        if not self.member:
            raise ProtocolError("a call arrived for a run that this client has not joined")
        rest = rest if isinstance(rest, dict) else {}
        own, peers = rest.get("own"), rest.get("peers")
        self.guard.call(head, self._round)
        if self.rules is not None:
            self.rules.call(head, delivered(message, own))
        round, take = p.field(head, "round", int), p.field(head, "take", int)
        if self._overlay is not None and (self._elsewhere or self._overlay != (round, take)):
            # a commit or rollback was lost with a broken stream, or a call is asked again whose reply did not arrive
            self.rollback()
        deadline = None if self.hidden else head.get("deadline")  # whether a client is late would reveal the amount of its data
        for operation in p.operations(rest):
            self.worker.withdraw(operation, [self.number])
        return self.worker, Call(
            p.field(head, "function", str),
            message,
            (self.number,),
            round,
            p.field(head, "stream", str),
            client_channel(p.field(head, "channel", dict)),
            p.field(head, "program", str),
            {} if own is None else {self.number: own},
            None if deadline is None else p.seconds(head, "deadline"),
            {self.number: peers} if isinstance(peers, dict) else {},
            operation=p.field(head, "operation", int),
        )

    def _run(self, worker: Worker, call: Call) -> Receipt:
        with imports_from(self.modules):
            for item in worker.run(call):
                if isinstance(item, Receipt):
                    return item
        raise ProtocolError(f"{call.function!r} returned no reply")

    # -- memory --------------------------------------------------------------------------------
    def _seen(self, worker: Worker) -> int:
        memory = worker.memories.get(self.number)
        return id(memory.changes.get("_times")) if memory is not None else 0

    def _keep(self, round: int, take: int) -> None:
        """Write this round's memory changes to disk before the reply is sent."""
        assert self.worker is not None
        memory = self.worker.memories.get(self.number)
        if memory is None or not memory.changes:
            return
        self._overlay = (round, take)
        changes = {key: id(value) for key, value in memory.changes.items()}
        if changes != self._pending:
            self.memory.write_pending(round, memory, memory.priors(), (self.guard.incarnation, take))
            self._pending = changes

    def commit(self, head: Mapping[str, Any]) -> None:
        """Complete a round: make its memory changes permanent, or discard them if the result lacks this client's work."""
        assert self.worker is not None
        assert self.at is not None
        round, saved = p.field(head, "round", int), p.field(head, "saved", int)
        overlay, took, lost = self._overlay, p.seconds(head, "took"), p.operations(head)
        kept = p.field(head, "kept", bool)
        if not kept or (overlay is not None and overlay[0] != round):
            self.rollback()
        elif overlay is not None and not self._elsewhere:
            if self.hidden and self.worker.setup.measured:  # under masks nothing that the server says shapes an answer
                self._measure(round, self._moved)
            elif took and not self.hidden:
                self._measure(round, max(took - self._trained, 0.0))
            for operation in lost:
                self.worker.withdraw(operation, [self.number])
            self.worker.commit()
            self._forget_overlay()
        self._round = max(self._round, round)
        self.at = replace(self.at, round=self._round)
        if self.memory.commit(round, saved, lost) and self._elsewhere:
            self.worker.restore({self.number: self.memory.latest()})
            self._forget_overlay()
        self.guard.safe(saved)

    def _measure(self, round: int, moved: float) -> None:
        """Replace the simulated seconds by measured ones: of work, and of both transfers."""
        assert self.worker is not None
        memory = self.worker.memories[self.number]
        if (before := memory.changes.get("_times")) is not None:
            memory["_times"] = [self._trained, moved]
            try:
                self.memory.write_pending(round, memory, memory.priors())  # committed at once
            except StoreError:  # losing the times is better than losing the stored work
                memory["_times"] = before

    def rollback(self) -> None:
        """Discard memory changes since the last commit, and unfinished protocol sessions."""
        if self.worker is not None:
            self.worker.rollback()
            self.memory.rollback()
        self._forget_overlay()

    def _forget_overlay(self) -> None:
        self._overlay, self._pending, self._elsewhere = None, {}, False
