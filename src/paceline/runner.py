"""Run the rounds of a prepared run: training, evaluation, records, checkpoints and early stopping."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from paceline.core.config import RunConfig
from paceline.core.engine import CallInfo
from paceline.core.errors import CohortError, MisbehaviourError, NonFiniteError, QuorumError, UnusableSumError, WorkerDiedError
from paceline.core.failures import reasons
from paceline.core.federation import Federation
from paceline.core.method import Method
from paceline.core.metrics import Primary, added, adjusted_rand, chosen, figures, told_figures
from paceline.core.params import Params
from paceline.core.population import MAX_ATTEMPTS
from paceline.core.process_state import process_state
from paceline.core.profiling import spent
from paceline.core.random import derive
from paceline.core.spread import spread_figures
from paceline.core.terms import main_of
from paceline.core.wording import setting
from paceline.engines.pool import StackingWarning
from paceline.results.model import FinalModel
from paceline.results.progress import Observer
from paceline.results.result import Result
from paceline.store import MemoryStore, RunFolder, save_checkpoint
from paceline.store.provenance import provenance
from paceline.tasks import Task
from paceline.tasks.scaling import measured_scaling

__all__ = ["Observer", "Result", "RoundWarning", "Run", "StackingWarning"]

MAX_WARNINGS = 100
"""Maximum number of distinct warnings of a run; losses in a round are also in its record."""


class RoundWarning(UserWarning):
    """The run continues, but some clients' replies failed, or a round was not evaluated."""


@dataclass
class Run:
    """A prepared run: all parts are built and checked."""

    config: RunConfig
    method: Method[Any]
    task: Task
    fed: Federation
    groups: tuple[int, ...] = ()
    folder: RunFolder | None = None
    state: Any = None
    round: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    store: MemoryStore = field(default_factory=MemoryStore)
    observer: Observer | None = None
    scratch: Any = None
    path: str = ""
    """Why clients train stacked or one at a time."""
    code: dict[str, str] = field(default_factory=dict)
    """See `paceline.store.provenance.sources`."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds of this process by section; see `Spent`."""
    evaluated: Params | None = None
    """The last evaluated model, if its statistics were computed only for the evaluation (``buffers="recompute"``)."""
    _warned: set[str] = field(default_factory=set)
    _unevaluated: dict[str, Any] | None = None
    """Clock, bytes and record of the last round, if it was evaluated only because it is the last: a longer run does not do that."""

    @cached_property
    def main(self) -> Primary:
        """The primary figure: target, patience, tables and plots use it."""
        return main_of(self.task, self.task.train.y)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Provenance data of this run, stored in checkpoints."""
        return provenance(self.task, self.fed.init_params().layout.digest, self.code)

    def go(self) -> Result:
        """Run the remaining rounds and return the summary; the run's folder is locked until then."""
        if self.folder is None:
            return self._go()
        try:
            self.folder.hold()
            return self._go()
        finally:
            self.folder.release()

    def _go(self) -> Result:
        try:
            with self._working():
                while self._step():
                    pass
        finally:
            self.fed.engine.close()
        return self.result()

    def step(self) -> dict[str, Any] | None:
        """Run one round and return its record; None if the run has ended. Call `result` and `close` at the end.

        Example:
            >>> from paceline.run import RunConfig, prepare
            >>> from paceline.tasks import blobs
            >>> run = prepare(RunConfig(clients=4, cohort=4, rounds=2), task=blobs())
            >>> while record := run.step():
            ...     print(record["round"])
            1
            2
            >>> run.close(); run.result().rounds
            2
        """
        if self.folder is not None:
            self.folder.hold()
        with self._working():
            return self.history[-1] if self._step() else None

    def close(self) -> None:
        """Release the workers and the run's folder."""
        self.fed.engine.close()
        if self.folder is not None:
            self.folder.release()

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Set the process state for rounds, and restore it afterwards."""
        spent.take()
        try:
            with (
                process_state(derive(self.config.seed, "server"), self.config.threads, self.config.precision),
                spent.on("bookkeeping"),
            ):
                yield
        finally:
            for name, seconds in spent.take().items():
                self.spent[name] = self.spent.get(name, 0.0) + seconds

    def _step(self) -> bool:
        """Run a round unless the run has ended; return whether one was run."""
        if self.state is None:
            if self.config.start_from is None:  # otherwise the scaling is part of the weights
                self.fed.scaled = measured_scaling(self.fed, self.method, self.task)
            self.state = self.method.init(self.fed)
        if self._stop_reason() is not None:
            return False
        self._round()
        return True

    def _round(self) -> None:
        """Run a round; repeat it if a worker died in training, evaluation or commit."""
        started = time.perf_counter()
        clock, totals = self.fed.clock, self.fed.totals
        before = (clock.now, totals.bytes_up, totals.bytes_down)
        for tries_left in reversed(range(MAX_ATTEMPTS)):
            try:
                state, record = self._attempt(self.round + 1)
                self.fed.engine.commit()
                break
            except WorkerDiedError as error:
                self.fed.engine.rollback()
                clock.now, totals.bytes_up, totals.bytes_down = before
                if not tries_left:
                    raise
                self._warn(f"round {self.round + 1} is repeated: {error}", RoundWarning)
        record["wall_seconds"] = time.perf_counter() - started
        self.state, self.round = state, self.round + 1
        self.history.append(record)
        if self.folder is not None:
            self.folder.append_metrics(record)
            self._save()
        for name, reason in self.fed.engine.notes.items():
            advice = f"change it, or set {setting('vectorize', 'off')} to do so without this warning"
            what = reason if reason.startswith("train ") else f"train one at a time: {reason}; {advice}"
            self._warn(f"clients that use {name} {what}", StackingWarning, name)
        if self.observer is not None:
            self.observer(record, self.config.rounds)

    def _attempt(self, number: int) -> tuple[Any, dict[str, Any]]:
        """Train and evaluate; return the new state and the record of the round."""
        clock, totals = self.fed.clock, self.fed.totals
        before = (clock.now, totals.bytes_up, totals.bytes_down)
        attempt, lost, skipped = 0, 0, False
        clock.phases.clear()
        while True:
            self.fed.start_round(number, attempt)
            self.fed.statistics.begin(self.method.model(self.state))
            try:
                state = self.method.round(self.fed, self.state)
                break
            except (CohortError, QuorumError) as error:
                self.fed.engine.rollback()
                if self._too_few():
                    state, self.fed.last, skipped = self.state, CallInfo(), True
                    self._warn(f"round {number} is skipped (reported once): {error}", RoundWarning, "skipped")
                    break
                attempt += 1
                if isinstance(error, CohortError):
                    raise
                named = isinstance(error, MisbehaviourError) and bool(error.clients)
                lost += not named  # an attempt that identified a misbehaving client does not count: it is excluded now
                if lost == MAX_ATTEMPTS or attempt > self.config.clients + MAX_ATTEMPTS:
                    raise QuorumError(f"{error}; the round failed {attempt} times") from error
                self._warn(f"round {number} is repeated (reported once): {error}", RoundWarning, "again")
        params = self.method.model(state)
        self.fed.statistics.settle(params)
        if not params.finite:
            raise NonFiniteError(f"round {number}: the aggregated model is not finite; lower the learning rates")
        last = self.fed.last
        record: dict[str, Any] = {
            "round": number,
            "virtual_seconds": clock.now,
            "round_seconds": clock.now - before[0],
            "bytes_up": totals.bytes_up - before[1],
            "bytes_down": totals.bytes_down - before[2],
            "compute_seconds": sum(p.compute for p in clock.phases),
            "network_seconds": sum(p.network for p in clock.phases),
            "dropped": len(last.dropped),
            "attempts": attempt + 1,
            **{f"note_{k}": v for k, v in last.notes.items()},
        }
        if skipped:
            record["skipped"] = 1
        if blamed := self.fed.excluded.of(number):
            record["excluded"] = {str(client): why for client, why in blamed.items()}
        found = self.method.clustering(state)
        if found is not None and self.groups:
            record["adjusted_rand"] = adjusted_rand(found, self.groups)
        if number % self.config.eval_every == 0 or number == self.config.rounds:
            plain = {"clock": clock.now, "bytes": [totals.bytes_up, totals.bytes_down], "record": dict(record)}
            self._unevaluated = plain if number % self.config.eval_every else None
            try:
                with self.fed.judging():
                    record |= self._evaluate(params, state)
            except (QuorumError, UnusableSumError) as error:  # keep the round's model although its evaluation failed
                record["unevaluated"] = 1
                self._warn(f"round {number} was not evaluated: {error}", RoundWarning)
            record |= {"bytes_up": totals.bytes_up - before[1], "bytes_down": totals.bytes_down - before[2]}
            if clock.now > record["virtual_seconds"]:  # by the clients
                record |= {"evaluation_seconds": clock.now - record["virtual_seconds"], "virtual_seconds": clock.now}
        if self.fed.lost:
            record["lost"] = reasons(self.fed.lost)
            for client, why in self.fed.lost.items():
                self._warn(f"round {number}: client {client} gave no reply: {why}", RoundWarning, why)
        return state, record

    def _warn(self, text: str, kind: type[UserWarning], name: str = "") -> None:
        """Warn, once per `name`."""
        if (name or text) not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(name or text)
            warnings.warn(text, kind, stacklevel=3)

    def _too_few(self) -> bool:
        """Return whether too few clients are available in this round to form a sum, under a participation process.

        Such a round is skipped: the state is unchanged, and the clients' changes are rolled back.
        """
        least = max(self.config.quorum, 1 if self.fed.aggregation.sees_each else 3)
        return self.config.participation != "always" and len(self.fed.available(least)) < least

    def _evaluate(self, params: Params, state: Any) -> dict[str, Any]:
        kind = self.config.evaluation
        if kind.startswith("clients") or (kind == "auto" and not self.method.has_model):
            return self._evaluate_clients(state, kind == "clients-central")
        if self.task.buffers == "recompute" and params.layout.num_params < params.layout.size:
            if self._too_few():  # too few clients to recompute the statistics
                return {}
            fresh = self.fed.mean(self.method.recompute, params, over=self.fed.sample()).statistics
            params = params.clone()
            params.vector[params.layout.num_params :] = fresh
            self.evaluated = params
        if kind in ("auto", "central"):
            sums = self.fed.engine.evaluate(params)
        else:
            if not self.config.client_test:
                told = "evaluation='federated' judges by training samples where clients hold none out; set client_test, as in 0.2"
                self._warn(told, RoundWarning)
            each = [self.fed.sum(self.method.evaluate, params, over=members) for members in self._members()]
            return self._figures(added(each), told_figures) | self._of_groups(each)
        return self._figures(sums)

    def _members(self) -> list[list[int]]:
        """Return the clients that are summed together: those of each group, or all."""
        everyone = range(self.fed.num_clients)
        if not self.config.by_group:
            return [list(everyone)]
        return [[c for c in everyone if self.groups[c] == group] for group in sorted(set(self.groups))]

    def _of_groups(self, sums: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the primary figure of each group, if groups are evaluated."""
        name, values = self.main.name, [told_figures(s, chosen(self.task)[:1]) for s in sums]
        return {f"group_{i}_{name}": found[name] for i, found in enumerate(values) if self.config.by_group and name in found}

    def _figures(self, sums: dict[str, Any], read: Callable[..., dict[str, Any]] = figures) -> dict[str, Any]:
        """Return the figures of an evaluation, and the name of the primary one where it is not accuracy."""
        found, when = read(sums, chosen(self.task)), f"in round {self.round + 1}"
        if math.isnan(found.get(self.main.name, 0.0)):
            self._warn(f"{self.main.name} is nan {when}: targets and patience pass over such rounds", RoundWarning, self.main.name)
        if not math.isfinite(found.get("loss", 0.0)):
            self._warn(f"the evaluated loss is {found['loss']} {when}: training may have diverged; lower lr", RoundWarning, "loss")
        return found if self.main.name == "accuracy" else found | {"metric": self.main.name}

    def _evaluate_clients(self, state: Any, everything: bool) -> dict[str, Any]:
        """Evaluate every client's own model on its client; the server receives only sums and a histogram of the primary figure."""
        parts = self.method.personal(state, range(self.fed.num_clients))
        groups = []
        for members in self._members():
            shared = [(m, [c for c in clients if c in set(members)]) for m, clients in parts]
            sums = [self.fed.sum(self.method.evaluate_clients, (everything, m), over=clients) for m, clients in shared if clients]
            groups.append(added(sums))
        total = added(groups)
        found = self._figures(total, told_figures)
        return found | spread_figures(total, self.main) | self._of_groups(groups) if self.main.name in found else found

    def _stop_reason(self) -> str | None:
        main, config = self.main, self.config
        scores = [r[main.name] for r in self._judged(main.name)]
        if config.stop_at_target and config.goal is not None and scores and main.reached(scores[-1], config.goal):
            return f"target {main.name} reached"
        last = config.patience or 0
        if last and len(scores) > last and not main.better(main.best(scores[-last:]), main.best(scores[:-last])):
            return f"{main.name} did not improve in {last} evaluations"
        return "all rounds" if self.round >= config.rounds else None

    def _judged(self, name: str) -> list[dict[str, Any]]:
        """Return the records that have a figure."""
        return [r for r in self.history if not math.isnan(r.get(name, math.nan))]

    def _save(self) -> None:
        assert self.folder is not None
        if self.round % self.config.checkpoint_every and self._stop_reason() is None:
            return
        tree = {
            "config": self.config.model_dump_json(),
            "round": self.round,
            "state": self.state,
            "clock": self.fed.clock.now,
            "bytes": [self.fed.totals.bytes_up, self.fed.totals.bytes_down],
            "memory": self.store.commit(self.round),
            "provenance": self.provenance,
        }
        if self._unevaluated is not None:
            tree["unevaluated"] = self._unevaluated
        save_checkpoint(self.folder.checkpoint, tree)

    def _timeline(self) -> list[dict[str, Any]]:
        """Return what each client did in the last round of this process."""
        if not self.history:
            return []
        last = self.history[-1]
        return self.fed.clock.since(last["virtual_seconds"] - last.get("evaluation_seconds", 0.0) - last["round_seconds"])

    def result(self) -> Result:
        """Return the outcome of the rounds so far; if the run has a folder, save the outcome and the model."""
        main, target = self.main, self.config.goal
        last = {
            name: next((r[name] for r in reversed(self.history) if name in r), math.nan) for name in ("accuracy", "loss", main.name)
        }
        judged = self._judged(main.name)
        hit = next((r["virtual_seconds"] for r in judged if target is not None and main.reached(r[main.name], target)), None)
        params = self.method.model(self.state)
        outcome = Result(
            run=str(self.folder.path) if self.folder else "",
            method=self.config.method,
            task=self.config.task,
            rounds=self.round,
            seed=self.config.seed,
            accuracy=last["accuracy"],
            loss=last["loss"],
            round_seconds=sum(r["round_seconds"] for r in self.history) / max(len(self.history), 1),
            total_seconds=self.fed.clock.now,
            wall_seconds=sum(r["wall_seconds"] for r in self.history),
            bytes_up=self.fed.totals.bytes_up,
            bytes_down=self.fed.totals.bytes_down,
            model_sha256=params.sha256(),
            target_seconds=hit,
            metric=main.name,
            score=last[main.name],
            higher_is_better=main.higher_is_better,
            in_percent=main.in_percent,
            stopped=self._stop_reason() or "before its end",
            chunk=self.config.chunk or 1,
            path=self.path,
            spent={"here": self.spent, "workers": dict(self.fed.engine.seconds)},
            history=self.history,
            config=self.config,
            final=FinalModel.of(self),
        )
        if self.folder is not None:
            self.folder.write_table()
            self.folder.write_summary(outcome.as_dict())
            self.folder.write_timeline(self._timeline())
            if self.evaluated is not None or self.task.buffers != "recompute" or not self.folder.model.exists():
                FinalModel.of(self).save(self.folder)
        return outcome
