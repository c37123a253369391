"""Where a server's events go: the journal, the metrics, and the database, written by a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal

from paceline.call import Receipt
from paceline.deploy.journal import Journal
from paceline.failures import kind_of

if TYPE_CHECKING:
    from paceline.deploy.metrics import Metrics
    from paceline.deploy.state import ServerState

__all__ = ["Notes"]

Status = Literal["ok", "late", "gone", "refused", "failed"]

_BACKLOG = 10_000
_KEPT = ("lists", "certificate", "connected", "disconnected", "refused", "refused_by_client", "bad_reply")


class Notes:
    """Writes down what happens.

    Args:
        journal: lines for people and log collectors.
        metrics: figures for Prometheus, or None.
        state: the database, or None.
    """

    def __init__(self, journal: Journal, metrics: Metrics | None = None, state: ServerState | None = None) -> None:
        self.journal, self.metrics, self.state = journal, metrics, state
        self.run, self._start = "", 0
        self.refused: dict[str, int] = {}
        self._began = 0.0
        self._at = (0, 0)
        self._queue: queue.Queue[tuple[Callable[..., Any], tuple[Any, ...], Future[Any] | None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._write, name="notes", daemon=True)
        if state is not None:
            self._thread.start()

    def __call__(self, event: str, **facts: Any) -> None:
        """Write an event of the server itself."""
        self.journal(event, **facts)

    def event(self, event: str, client: int | None, facts: dict[str, Any]) -> None:
        """Write an event of a stream; called on the streams' loop, so it never waits."""
        self.journal(event, client=client, **facts)
        if event == "refused":
            reason = str(facts["reason"])
            self.refused[reason] = self.refused.get(reason, 0) + 1
        if self.metrics is not None:
            self.metrics.events.labels(event, str(facts.get("reason", ""))).inc()
        if self.state is not None and event in _KEPT and self._queue.qsize() < _BACKLOG:
            self._put(self.state.event, event, self.run or None, client, facts)

    def ready(self, clients: Callable[[], Sequence[int]], least: int) -> None:
        """Say how to find out who is there."""
        if self.metrics is not None:
            self.metrics.clients.set_function(lambda: float(len(clients())))
            self.metrics.ready = lambda: len(clients()) >= least

    # -- a run's course ------------------------------------------------------------------------
    def begin(self, run: str, plan: dict[str, Any], folder: str, start: int = 1) -> None:
        """A run begins, or goes on: with the server's start number `start`."""
        self.run, self._start = run, start
        if self.state is not None:
            self._sure(self.state.begin_run, run, plan, folder)

    def ended(self, status: str, detail: str = "") -> None:
        """The run is done, failed or stopped."""
        if self.state is not None and self.run:
            self._sure(self.state.end_run, self.run, status, detail)

    def phase(self, round: int, attempt: int, name: str, asked: Sequence[int]) -> None:
        """A phase begins."""
        self._began = time.perf_counter()
        if self.state is not None:
            if self._at != (round, attempt):
                self._put(self.state.begin_round, self.run, round, attempt)
            self._put(self.state.begin_phase, self.run, round, attempt, name, list(asked))
        self._at = (round, attempt)

    def answers(self, round: int, attempt: int, name: str, receipts: Sequence[Receipt]) -> None:
        """A phase has ended; these came of it."""
        spent = time.perf_counter() - self._began
        statuses = {r.client: _status(r) for r in receipts}
        lost = {r.client: r.dropped for r in receipts if r.dropped is not None}
        self.journal("phase", round=round, attempt=attempt, phase=name, seconds=round_off(spent), answered=len(receipts) - len(lost))
        if lost:
            self.journal("lost", round=round, phase=name, clients=lost)
        if self.metrics is not None:
            self.metrics.phases.labels(name).observe(spent)
            for receipt in receipts:
                self.metrics.answers.labels(name, statuses[receipt.client]).inc()
                self.metrics.bytes.labels("up").inc(receipt.bytes_up)
                self.metrics.bytes.labels("down").inc(receipt.bytes_down)
        if self.state is not None:
            self._put(self._answers, self.run, round, attempt, name, list(receipts), statuses)

    def committed(self, round: int, attempt: int, kept: Sequence[int]) -> None:
        """A round's work is in its result; written down before any client is told."""
        if self.state is not None:
            self._sure(self._done, self.run, round, attempt, {"kept": list(kept), "start": self._start})

    def kept(self, round: int) -> list[int]:
        """Return whose work is in the result of a round, as `committed` noted it last."""
        if self.state is None or round == 0:
            return []
        rows = [r for r in self.state.rounds(self.run) if r.round == round and r.status == "done" and r.record]
        last = max(rows, key=lambda r: (r.record or {}).get("start", 0), default=None)  # not by time: clocks can go back
        return [] if last is None or last.record is None else [int(c) for c in last.record["kept"]]

    def round(self, record: dict[str, Any]) -> None:
        """A round is over and saved."""
        told = {k: round_off(v) for k, v in record.items() if k in ("round", "wall_seconds", "accuracy", "loss", "dropped", "attempts")}
        self.journal("round", **told)
        if self.metrics is not None:
            self.metrics.round.set(record["round"])
            self.metrics.rounds.observe(record["wall_seconds"])
            if "accuracy" in record:
                self.metrics.accuracy.set(record["accuracy"])

    # -- the database --------------------------------------------------------------------------
    def _answers(self, run: str, round: int, attempt: int, name: str, receipts: list[Receipt], statuses: dict[int, Status]) -> None:
        from paceline.deploy.state import Answer

        assert self.state is not None
        rows = [Answer(r.client, statuses[r.client], r.compute + r.network, r.bytes_up, r.bytes_down, r.dropped) for r in receipts]
        self.state.answer(run, round, attempt, name, *rows)
        self.state.end_phase(run, round, attempt, name)

    def _done(self, run: str, round: int, attempt: int, record: dict[str, Any]) -> None:
        assert self.state is not None
        self.state.begin_round(run, round, attempt)  # once more: a full disk may have kept the first from being written
        self.state.end_round(run, round, attempt, "done", record)

    def _put(self, function: Callable[..., Any], *values: Any) -> None:
        self._queue.put((function, values, None))

    def _sure(self, function: Callable[..., Any], *values: Any) -> None:
        done: Future[Any] = Future()
        self._queue.put((function, values, done))
        done.result()

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            function, values, done = item
            try:
                function(*values)
            except Exception as error:  # told to who waits for it, else to the journal: the run goes on without a row
                if done is not None:
                    done.set_exception(error)
                else:
                    self.journal("error", why=f"the database: {error}")
            else:
                if done is not None:
                    done.set_result(None)

    def close(self) -> None:
        """Write what is left."""
        if self.state is not None and self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(10.0)


def _status(receipt: Receipt) -> Status:
    return "ok" if receipt.dropped is None else kind_of(receipt.dropped)


def round_off(value: Any) -> Any:
    """Return a float with six digits, anything else as it is."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
