"""A client's own part: its worker, its memory on disk, its guard and its policy. Knows nothing of streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paceline.core.engine import Call, Receipt
from paceline.core.errors import PacelineError, ProtocolError, StoreError
from paceline.core.fingerprint import digest
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
    """Answers calls, one after another.

    Args:
        number: this client's number; a welcome for another one is refused.
        folder: where memory and guard are kept, by run.
        work: builds the worker for a run: its data, its model, its installed functions.
        rules: see there; None asks for nothing.
        learn: takes a newer directory of identity keys, or raises `IdentityError`.
        durable: sync what is kept.
    """

    def __init__(
        self, number: int, folder: Path, work: Work, rules: Rules | None = None, durable: bool = True, learn: Learn = bytes
    ) -> None:
        self.number, self.folder, self.rules, self.durable = number, folder, rules, durable
        self._work, self.learn = work, learn
        self.worker: Worker | None = None
        self.at: Welcome | None = None
        self._round = 0
        self._overlay: tuple[int, int] | None = None
        self._pending: dict[str, int] = {}
        self._trained = 0.0

    # -- a run ---------------------------------------------------------------------------------
    def join(self, welcome: Welcome) -> None:
        """Begin or go on with a run, in step with the server. Raises what forbids it."""
        if welcome.number != self.number:
            raise ProtocolError(f"the server takes this client for number {welcome.number}; it is {self.number}")
        before = self.at
        if welcome.directory:
            self.learn(welcome.directory)
        if self.rules is not None:
            self.rules.join(welcome)
        if self.worker is None or before is None or before.run != welcome.run:
            worker, before = self._work(welcome), None
            where = self.folder / welcome.run
            self.memory = ClientMemory(where / "memory", self.durable)
            self.memory.belong(digest([(worker.x[rows], worker.y[rows]) for rows in worker.setup.split(self.number)]))
            self.worker = worker
            self.guard = Guard(where / "guard", self.worker.functions, self.durable)
        self.guard.join(welcome.incarnation, welcome.round)
        self.at = welcome
        if before is None or before.incarnation != welcome.incarnation:
            self._go_to(welcome)
        elif self._overlay is not None:
            round, take = self._overlay
            if round <= welcome.round:
                self.commit({"round": welcome.round, "saved": welcome.saved, "kept": welcome.kept, "took": 0.0})
            elif take != welcome.take:
                self.rollback()
        self._round = max(self._round, welcome.round)

    def closed(self) -> list[str]:
        """Return why this client takes no part just now; nothing where it does."""
        return [] if self.rules is None else self.rules.closed()

    def _go_to(self, welcome: Welcome) -> None:
        """Restore the memory that fits the server's last completed round."""
        assert self.worker is not None
        self.worker.rollback()
        stored = self.memory.restore(welcome.round, welcome.kept, welcome.saved)
        self.worker.restore({self.number: stored})
        self._forget_overlay()
        self._round = welcome.round

    # -- calls ---------------------------------------------------------------------------------
    def call(self, head: Mapping[str, Any], message: Tree, rest: Tree) -> Answer:
        """Answer one call; whatever goes wrong becomes a reason, which the server is told unless sums are secure."""
        number, hidden = p.field(head, "id", int), self.hidden
        try:
            worker, call = self._checked(head, message, rest)
            began = time.perf_counter()
            before = self._seen(worker)
            receipt = self._run(worker, call)
            spent = time.perf_counter() - began
            trained = self._seen(worker) != before
            if trained:
                self._trained = spent
            self._keep(call.round, p.field(head, "take", int))
            if self.rules is not None:
                self.rules.done(head, receipt.bytes_up, spent)
        except (PacelineError, *MALFORMED) as error:
            return Answer.of(number, Receipt(self.number, dropped=reason_of(error)), hidden=hidden)
        answer = Answer.of(number, receipt, spent, trained, spent, hidden)
        session = worker.sessions.get(self.number)
        if session is None or not session.failed:
            return answer
        failed, session.failed = session.failed, ""
        return replace(answer, why=f"gave nothing to the sum: {failed}")

    @property
    def hidden(self) -> bool:
        """Whether the server may learn nothing but sums, so that no reason, time or size that depends on data leaves."""
        return self.worker is None or "secagg" in self.worker.functions

    def slowed(self, answer: Answer, seconds: float) -> None:
        """Let work have taken longer: a slow device, on purpose."""
        if answer.trained:
            self._trained += seconds
        if answer.head["seconds"]:
            answer.head["seconds"] += seconds

    def _checked(self, head: Mapping[str, Any], message: Tree, rest: Tree) -> tuple[Worker, Call]:
        if self.worker is None:
            raise ProtocolError("a call came before a welcome")
        rest = rest if isinstance(rest, dict) else {}
        self.guard.call(head, self._round)
        if self.rules is not None:
            self.rules.call(head, message)
        round, take = p.field(head, "round", int), p.field(head, "take", int)
        if self._overlay is not None and self._overlay != (round, take):
            self.rollback()  # a commit or a rollback was lost with a stream
        deadline = None if self.hidden else head.get("deadline")  # to be late or not would tell how much data there is
        own, peers = rest.get("own"), rest.get("peers")
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
        )

    def _run(self, worker: Worker, call: Call) -> Receipt:
        for item in worker.run(call):
            if isinstance(item, Receipt):
                return item
        raise ProtocolError(f"{call.function!r} gave no answer")

    # -- memory --------------------------------------------------------------------------------
    def _seen(self, worker: Worker) -> int:
        memory = worker.memories.get(self.number)
        return id(memory.changes.get("_times")) if memory is not None else 0

    def _keep(self, round: int, take: int) -> None:
        """Write what was noted in this round before the answer goes out."""
        assert self.worker is not None
        memory = self.worker.memories.get(self.number)
        if memory is None or not memory.changes:
            return
        self._overlay = (round, take)
        changes = {key: id(value) for key, value in memory.changes.items()}
        if changes != self._pending:
            self.memory.write_pending(round, memory)
            self._pending = changes

    def commit(self, head: Mapping[str, Any]) -> None:
        """The server has completed a round: make this round's changes permanent, or forget them if it lacks them."""
        assert self.worker is not None
        assert self.at is not None
        round, saved = p.field(head, "round", int), p.field(head, "saved", int)
        overlay, took = self._overlay, p.seconds(head, "took")
        if overlay is not None and not (overlay[0] == round and p.field(head, "kept", bool)):
            self.rollback()
        elif overlay is not None:
            if took:
                self._measure(round, took)
            self.worker.commit()
            self._forget_overlay()
        self._round = max(self._round, round)
        self.at = replace(self.at, round=self._round)
        self.memory.commit(round, saved)
        self.guard.safe(saved)

    def _measure(self, round: int, took: float) -> None:
        """Put measured seconds in the place of those that a simulation would have; what was no work was transfer."""
        assert self.worker is not None
        memory = self.worker.memories[self.number]
        if (before := memory.changes.get("_times")) is not None:
            memory["_times"] = [self._trained, max(took - self._trained, 0.0)]
            try:
                self.memory.write_pending(round, memory)
            except StoreError:  # the times are worth less than the work that is on the disk
                memory["_times"] = before

    def rollback(self) -> None:
        """Forget what was noted since the last commit, and half-finished protocol sessions."""
        if self.worker is not None:
            self.worker.rollback()
            self.memory.rollback()
        self._forget_overlay()

    def _forget_overlay(self) -> None:
        self._overlay, self._pending = None, {}
