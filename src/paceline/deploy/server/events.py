"""Event sink of a server: log, metrics, and the database, which a separate thread writes.

The clients whose work is in a round's result must be recorded on disk before any client receives the commit. While the
database is unavailable, the record is a file in the run's folder, `kept.json`, which the next start transfers into the
database.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paceline.core.engine import Receipt
from paceline.core.errors import StoreError
from paceline.core.failures import kind_of
from paceline.deploy.logs import Journal
from paceline.deploy.server.write_queue import PATIENCE, ROOM, Backlog
from paceline.store import atomic_write

if TYPE_CHECKING:
    from paceline.deploy.metrics import Metrics
    from paceline.deploy.server.database import AnswerRow, ServerState

__all__ = ["Notes"]

Status = Literal["ok", "late", "gone", "declined", "refused", "failed"]

_SPARE = "kept.json"
_KEPT = ("lists", "certificate", "connected", "disconnected", "refused", "refused_by_client", "bad_reply")


class Notes:
    """Records events.

    Args:
        journal: structured log.
        metrics: Prometheus metrics, or None.
        state: the database, or None.
        room: maximum number of queued rows while the database is unavailable.
    """

    def __init__(
        self, journal: Journal, metrics: Metrics | None = None, state: ServerState | None = None, room: int = ROOM
    ) -> None:
        self.journal, self.metrics, self.state = journal, metrics, state
        self.run, self._start = "", 0
        self.refused: dict[str, int] = {}
        self._began = 0.0
        self._at = (0, 0)
        self._spare: dict[str, dict[str, Any]] = {}
        self._folder: Path | None = None
        self._name, self._count = secrets.token_hex(8), itertools.count()
        self.backlog: Backlog | None = None
        if state is not None:
            self.backlog = Backlog(state.where, journal, room, PATIENCE if state.remote else math.inf)

    def __call__(self, event: str, **facts: Any) -> None:
        """Record an event of the server itself."""
        self.journal(event, **facts)

    def event(self, event: str, client: int | None, facts: dict[str, Any]) -> None:
        """Record an event of a stream. Called on the streams' event loop, so it never blocks."""
        self.journal(event, client=client, **facts)
        if event == "refused":
            reason = str(facts["reason"])
            self.refused[reason] = self.refused.get(reason, 0) + 1
        if self.metrics is not None:
            self.metrics.events.labels(event, str(facts.get("reason", ""))).inc()
        if self.state is not None and self.backlog is not None and event in _KEPT:
            key = f"{self._name}-{next(self._count)}"  # deduplicates a commit whose confirmation was lost
            self.backlog.stream(self.state.event, event, self.run or None, client, facts, key, at=self.state.now())

    def ready(self, clients: Callable[[], Sequence[int]], least: int) -> None:
        """Set the source of the number of connected clients, for metrics and readiness."""
        if self.metrics is not None:
            self.metrics.clients.set_function(lambda: float(len(clients())))
            self.metrics.ready = lambda: len(clients()) >= least

    # -- a run's course ------------------------------------------------------------------------
    def begin(self, run: str, plan: dict[str, Any], folder: str, start: int = 1) -> None:
        """Record that a run begins or resumes.

        Args:
            run: id of the run.
            plan: the plan as a tree.
            folder: folder of the run.
            start: number of this start of the server.

        Raises:
            StoreError: the database cannot be written.
        """
        self.run, self._start = run, start
        self._folder = Path(folder) if folder else None
        if self.state is not None and self.backlog is not None:
            self.backlog.sure(self.state.begin_run, run, plan, folder, at=self.state.now())
            self._bring_in()

    def ended(self, status: str, detail: str = "") -> None:
        """Record that the run is done, failed or stopped.

        Raises:
            StoreError: the run is done, and that cannot be written.
        """
        if self.state is not None and self.backlog is not None and self.run:
            if status == "done":
                self.backlog.sure(self.state.end_run, self.run, status, detail, at=self.state.now())
                self._put_by({})
            else:  # the original error is reported
                self.backlog.last(self.state.end_run, self.run, status, detail, at=self.state.now())

    def phase(self, round: int, attempt: int, name: str, asked: Sequence[int]) -> None:
        """Record the start of a phase.

        Raises:
            StoreError: too many rows wait for the database.
        """
        self._began = time.perf_counter()
        if self.state is not None and self.backlog is not None:
            now = self.state.now()
            if self._at != (round, attempt):
                self.backlog.put(self.state.begin_round, self.run, round, attempt, at=now)
            self.backlog.put(self.state.begin_phase, self.run, round, attempt, name, list(asked), at=now)
        self._at = (round, attempt)

    def answers(self, round: int, attempt: int, name: str, receipts: Sequence[Receipt]) -> None:
        """Record the end of a phase and its receipts."""
        spent = time.perf_counter() - self._began
        statuses = {r.client: _status(r) for r in receipts}
        lost = {r.client: r.dropped for r in receipts if r.dropped is not None}
        self.journal(
            "phase", round=round, attempt=attempt, phase=name, seconds=round_off(spent), answered=len(receipts) - len(lost)
        )
        if lost:
            self.journal("lost", round=round, phase=name, clients=lost)
        if self.metrics is not None:
            self.metrics.phases.labels(name).observe(spent)
            for receipt in receipts:
                self.metrics.answers.labels(name, statuses[receipt.client]).inc()
                self.metrics.bytes.labels("up").inc(receipt.bytes_up)
                self.metrics.bytes.labels("down").inc(receipt.bytes_down)
        if self.state is not None and self.backlog is not None:
            from paceline.deploy.server.database import AnswerRow

            rows = [
                AnswerRow(r.client, statuses[r.client], r.compute + r.network, r.bytes_up, r.bytes_down, r.dropped)
                for r in receipts
            ]
            self.backlog.put(self._answers, self.run, round, attempt, name, rows, rows=1 + len(rows), at=self.state.now())

    def committed(self, round: int, attempt: int, kept: Mapping[int, Sequence[int]]) -> None:
        """Record the clients whose work is in a round's result, before any client receives the commit.

        Args:
            round: the round.
            attempt: the attempt at it.
            kept: these clients, each with the operations of the round that do not count it.
        """
        if self.state is None or self.backlog is None:
            return
        lost = {str(client): list(operations) for client, operations in kept.items() if operations}
        record = {"kept": list(kept), "lost": lost, "start": self._start}
        if self.backlog.soon(self._done, self.run, round, attempt, record, at=self.state.now()):
            self._put_by({})
        else:
            self._put_by({**self._spare, str(round): {"attempt": attempt, "record": record}})

    def counted(self, until: int) -> dict[int, tuple[int, tuple[int, ...]]]:
        """Return each client's last round, up to `until`, whose result includes its work, and the operations that do not count it.

        Where a round was recorded more than once, the last start of the server counts.
        """
        if self.state is None or until == 0:
            return {}
        last: dict[int, dict[str, Any]] = {}
        for row in self.state.rounds(self.run):
            record = row.record if row.round <= until and row.status == "done" else None
            if record and record.get("start", 0) >= last.get(row.round, {}).get("start", 0):  # not by time: clocks can be set back
                last[row.round] = record
        found: dict[int, tuple[int, tuple[int, ...]]] = {}
        for round in sorted(last):
            lost = last[round].get("lost", {})
            found |= {int(c): (round, tuple(lost.get(str(c), ()))) for c in last[round]["kept"]}
        return found

    def round(self, record: dict[str, Any]) -> None:
        """Record that a round is complete and saved."""
        main = record.get("metric", "accuracy")
        shown = ("round", "wall_seconds", "accuracy", "loss", main, "metric", "dropped", "attempts", "excluded")
        figures = {k: round_off(v) for k, v in record.items() if k in shown}
        self.journal("round", **figures)
        if self.metrics is not None:
            self.metrics.round.set(record["round"])
            self.metrics.rounds.observe(record["wall_seconds"])
            if "accuracy" in record:
                self.metrics.accuracy.set(record["accuracy"])
            if main in record:
                self.metrics.score.labels(main).set(record[main])

    # -- the database --------------------------------------------------------------------------
    def _answers(self, run: str, round: int, attempt: int, name: str, rows: list[AnswerRow], at: float) -> None:
        assert self.state is not None
        self.state.answer(run, round, attempt, name, *rows)
        self.state.end_phase(run, round, attempt, name, at=at)

    def _done(self, run: str, round: int, attempt: int, record: dict[str, Any], at: float) -> None:
        assert self.state is not None
        self.state.begin_round(run, round, attempt, at=at)  # repeated: a full disk may have prevented the first write
        self.state.end_round(run, round, attempt, "done", record, at=at)

    def _put_by(self, spare: dict[str, dict[str, Any]]) -> None:
        """Save to disk what the database lacks: attempt and record by round."""
        if self._folder is not None and spare:
            atomic_write(self._folder / _SPARE, json.dumps({"run": self.run, "rounds": spare}).encode())
        elif self._folder is not None and self._spare:
            (self._folder / _SPARE).unlink(missing_ok=True)
        self._spare = spare

    def _bring_in(self) -> None:
        """Transfer what an earlier start saved to disk into the database."""
        assert self.state is not None
        assert self.backlog is not None
        path = None if self._folder is None else self._folder / _SPARE
        if path is None or not path.exists():
            return
        try:
            figures = json.loads(path.read_bytes())
            if figures["run"] != self.run:
                raise ValueError(f"it belongs to run {figures['run']}")
            rounds = [
                (
                    int(number),
                    int(row["attempt"]),
                    {
                        "kept": [int(c) for c in row["record"]["kept"]],
                        "lost": {str(int(c)): [int(n) for n in lost] for c, lost in row["record"].get("lost", {}).items()},
                        "start": int(row["record"]["start"]),
                    },
                )
                for number, row in figures["rounds"].items()
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path} is damaged ({error}); restore it from a backup") from None
        for number, attempt, record in rounds:
            self.backlog.sure(self._done, self.run, number, attempt, record, at=self.state.now())
        with contextlib.suppress(OSError):
            path.unlink()

    def close(self) -> None:
        """Write the remaining rows; see `Backlog.close`."""
        if self.backlog is not None:
            self.backlog.close()


def _status(receipt: Receipt) -> Status:
    return "ok" if receipt.dropped is None else kind_of(receipt.dropped)


def round_off(value: Any) -> Any:
    """Return a float rounded to six digits, anything else unchanged."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
