"""A run is one function: check the plan, then rounds with evaluation, records and checkpoints.

A run can be killed at any moment and resumed: state, clock and client memories are in the checkpoint,
and every random stream is derived from (seed, client, round), so the end has the same bits.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from paceline.adversaries import load_adversary, members
from paceline.aggregation import load_aggregation
from paceline.architectures import architectures_service
from paceline.call import Engine
from paceline.config import RunConfig
from paceline.data import Partition, partition_task
from paceline.devices import VirtualClock, load_fleet
from paceline.engines import Choice, LocalEngine, Setup, load_engine
from paceline.engines.hostile import Hostile, poisoned
from paceline.errors import (
    CheckpointError,
    NonFiniteError,
    PlanError,
    QuorumError,
    WorkerDiedError,
)
from paceline.federation import Aggregation, Federation
from paceline.figures import adjusted_rand, figures, spread_figures
from paceline.method import Method, client_functions, find_method
from paceline.params import Params
from paceline.spent import spent
from paceline.store import MemoryStore, RunFolder, load_checkpoint, save_checkpoint
from paceline.submodels.flops import flops
from paceline.submodels.service import submodel_service
from paceline.tasks import Task, load_task

__all__ = ["Observer", "Run", "RunConfig", "StackingWarning", "Summary", "prepare", "reopen", "resume", "run"]

MAX_ATTEMPTS = 3
"""How often a round whose quorum was lost is tried, each time with a fresh cohort and fresh keys."""


class StackingWarning(UserWarning):
    """Something kept clients from training as one stacked computation; they train one at a time."""


class Observer(Protocol):
    """Watches a run: progress bars, trackers, tests."""

    def __call__(self, record: dict[str, Any], total_rounds: int) -> None:
        """Take one round's record."""


@dataclass
class Summary:
    """The outcome of a run; `as_dict` is what ``--json`` prints."""

    run: str
    method: str
    task: str
    rounds: int
    seed: int
    accuracy: float
    loss: float
    round_seconds: float
    total_seconds: float
    wall_seconds: float
    bytes_up: int
    bytes_down: int
    model_sha256: str
    target_seconds: float | None = None
    stopped: str = "all rounds"
    chunk: int = 1
    path: str = ""
    spent: dict[str, dict[str, float]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return all figures, without the history."""
        return {k: v for k, v in self.__dict__.items() if k != "history"}


@dataclass
class Run:
    """A prepared run: all parts built and checked."""

    config: RunConfig
    method: Method
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
    """Why clients train stacked, or one after another."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds of this process by what they went into; see `Spent`."""
    _told: set[str] = field(default_factory=set)

    def go(self) -> Summary:
        """Run the rounds that are left and return the summary."""
        torch.set_num_threads(self.config.threads)
        stopped = self._stop_reason()
        spent.take()
        with spent.on("bookkeeping"):
            stopped = self._rounds(stopped)
        self.spent = spent.take()
        return self._finish(stopped)

    def _rounds(self, stopped: str | None) -> str | None:
        try:
            if self.state is None:
                self.state = self.method.init(self.fed)
            while stopped is None:
                self._round()
                stopped = self._stop_reason()
        finally:
            self.fed.engine.close()
        return stopped

    def _round(self) -> None:
        started = time.perf_counter()
        number = self.round + 1
        clock, totals = self.fed.clock, self.fed.totals
        before = (clock.now, totals.bytes_up, totals.bytes_down)
        deaths = attempt = 0
        clock.phases.clear()
        while True:
            self.fed.start_round(number, attempt)
            try:
                state = self.method.round(self.fed, self.state)
                break
            except QuorumError:
                attempt += 1
                self.fed.engine.rollback()
                if attempt == MAX_ATTEMPTS:
                    raise
            except WorkerDiedError:
                deaths += 1
                self.fed.engine.rollback()
                clock.now, totals.bytes_up, totals.bytes_down = before
                if deaths == MAX_ATTEMPTS:
                    raise
        params = self.method.model(state)
        if not bool(torch.isfinite(params.vector).all()):
            raise NonFiniteError(
                f"round {number}: the aggregated model is not finite; lower the learning rates"
            )
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
        found = self.method.clustering(state)
        if found is not None and self.groups:
            record["adjusted_rand"] = adjusted_rand(found, self.groups)
        if number % self.config.eval_every == 0 or number == self.config.rounds:
            record |= self._evaluate(params, state)
        record["wall_seconds"] = time.perf_counter() - started
        self.state, self.round = state, number
        self.history.append(record)
        self.fed.engine.commit()
        if self.folder is not None:
            self.folder.append_metrics(record)
            self._save()
        for name, reason in getattr(self.fed.engine, "notes", {}).items():
            if name not in self._told:
                self._told.add(name)
                warnings.warn(
                    f"clients train one at a time where {name} is used: {reason}",
                    StackingWarning,
                    stacklevel=2,
                )
        if self.observer is not None:
            self.observer(record, self.config.rounds)

    def _evaluate(self, params: Params, state: Any) -> dict[str, Any]:
        kind = self.config.evaluation
        if kind.startswith("clients") or (kind == "auto" and not self.method.has_model):
            return self._evaluate_clients(state, kind == "clients-central")
        if self.task.buffers == "recompute" and params.layout.num_params < params.layout.size:
            fresh = self.fed.mean(self.method.recompute, params, over=self.fed.sample()).statistics
            params = params.clone()
            params.vector[params.layout.num_params :] = fresh
        if kind in ("auto", "central"):
            sums = self.fed.engine.evaluate(params)
        else:
            sums = self.fed.sum(self.method.evaluate, params, over=range(self.fed.num_clients))
        return figures(sums)

    def _evaluate_clients(self, state: Any, everything: bool) -> dict[str, Any]:
        """Let every client judge its own model; only sums and a histogram of accuracies come back."""
        parts = self.method.personal(state, range(self.fed.num_clients))
        sums = [
            self.fed.sum(self.method.evaluate_clients, (everything, m), over=clients) for m, clients in parts
        ]
        total = {key: sum(part[key] for part in sums) for key in sums[0]}
        return figures(total) | spread_figures(total)

    def _stop_reason(self) -> str | None:
        scores = [r["accuracy"] for r in self.history if "accuracy" in r]
        config = self.config
        if (
            config.stop_at_target
            and config.target_accuracy
            and scores
            and scores[-1] >= config.target_accuracy
        ):
            return "target accuracy reached"
        if (
            config.patience
            and len(scores) > config.patience
            and max(scores[-config.patience :]) <= max(scores[: -config.patience])
        ):
            return f"no better accuracy in {config.patience} evaluations"
        return "all rounds" if self.round >= config.rounds else None

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
        }
        save_checkpoint(self.folder.checkpoint, tree)

    def _finish(self, stopped: str | None) -> Summary:
        scored = [r for r in self.history if "accuracy" in r]
        target = self.config.target_accuracy
        hit = next((r["virtual_seconds"] for r in scored if target and r["accuracy"] >= target), None)
        params, workers = self.method.model(self.state), getattr(self.fed.engine, "spent", None)
        summary = Summary(
            run=str(self.folder.path) if self.folder else "",
            method=self.config.method,
            task=self.config.task,
            rounds=self.round,
            seed=self.config.seed,
            accuracy=scored[-1]["accuracy"],
            loss=scored[-1]["loss"],
            round_seconds=sum(r["round_seconds"] for r in self.history) / max(len(self.history), 1),
            total_seconds=self.fed.clock.now,
            wall_seconds=sum(r["wall_seconds"] for r in self.history),
            bytes_up=self.fed.totals.bytes_up,
            bytes_down=self.fed.totals.bytes_down,
            model_sha256=params.sha256(),
            target_seconds=hit,
            stopped=stopped or "",
            chunk=self.config.chunk or 1,
            path=self.path,
            spent={"here": self.spent, "workers": workers.seconds if workers is not None else {}},
            history=self.history,
        )
        if self.folder is not None:
            self.folder.write_summary(summary.as_dict())
            self.folder.save_model(params)
        return summary


def prepare(
    config: RunConfig,
    *,
    task: Task | None = None,
    drop: Callable[[int, int, str], bool] | None = None,
    folder: RunFolder | None = None,
    observer: Observer | None = None,
    aggregation: Aggregation | None = None,
    engine: Callable[[Setup], Engine] | None = None,
    split: Partition | None = None,
) -> Run:
    """Build all parts of a run and check that they fit; raises `PlanError` listing every misfit.

    Args:
        config: what to run.
        task: a task object in place of the one that the configuration names.
        drop: ``(round, client, function) -> bool``, clients that vanish before that reply (fault injection).
        folder: where to keep the run; None keeps nothing.
        observer: is told of every round.
        aggregation: how sums are formed, in place of the one that the configuration names.
        engine: makes the engine, in place of the one that the configuration names.
        split: who has which samples, in place of the partition that the configuration names.
    """
    torch.set_num_threads(config.threads)
    method = find_method(config.method).build(config.options)
    if task is None:
        task = load_task(config.task, model=config.model, seed=config.seed, **config.task_options)
    misfits = []
    if config.cohort > config.clients:
        misfits.append(
            f"the cohort of {config.cohort} is larger than the population of {config.clients} clients"
        )
    if config.quorum > config.cohort:
        misfits.append(f"the quorum of {config.quorum} is larger than the cohort of {config.cohort}")
    aggregation = aggregation or load_aggregation(config.aggregation, config.secure, config.sum_bound)
    if not aggregation.sees_each:
        misfits += _hidden(method, config)
    if not method.has_model and config.evaluation in ("central", "federated"):
        misfits.append(f"method {config.method!r} has no global model; use --evaluation clients")
    adversary = None if config.adversary is None else load_adversary(config.adversary)
    if adversary is not None and not adversary.poisons_data and aggregation.name == "secure":
        misfits.append(
            f"adversary {adversary.name!r} changes replies, which secure aggregation seals on the client; simulate it with "
            f"--aggregation secure-arithmetic, whose bits are the same"
        )
    if misfits:
        raise PlanError(misfits)
    split = split or partition_task(
        task,
        config.partition,
        config.clients,
        config.seed,
        config.allow_empty,
        config.client_test,
        config.client_samples,
    )
    byzantine = members(adversary.share, config.clients, config.seed) if adversary is not None else ()
    if adversary is not None and adversary.poisons_data:
        task = poisoned(task, split, adversary, byzantine)
    fleet = load_fleet(config.fleet, config.clients, config.seed)
    programs = {"method": method, **getattr(aggregation, "programs", {})}
    setup = Setup(
        programs=programs,
        task=task,
        split=split,
        num_clients=config.clients,
        fleet=fleet,
        seed=config.seed,
        flops=flops(task.build(0), task.train.x[:1]),
        device=config.device,
        drop=drop,
        measured=config.measured,
        threads=config.threads,
        precision=config.precision,
        chunk=config.chunk or 1,
        one_step=config.one_step,
        services={"submodels": submodel_service, "architectures": architectures_service},
    )
    made = load_engine(config.engine, setup, config.workers) if engine is None else engine(setup)
    fed = Federation(
        made
        if adversary is None or adversary.poisons_data
        else Hostile(made, adversary, byzantine, config.seed),
        aggregation,
        fleet,
        VirtualClock(),
        seed=config.seed,
        cohort=config.cohort,
        quorum=config.quorum,
        least_group=config.least_group,
        on_error=config.on_error,
        deadline=config.deadline,
    )
    misfits = aggregation.check(fed) + method.check(fed)
    if misfits:
        made.close()
        raise PlanError(misfits)
    scratch = tempfile.TemporaryDirectory(prefix="paceline-") if folder is None else None
    place = (
        folder.path / "memory" if folder is not None else Path(scratch.name) if scratch is not None else None
    )
    store = MemoryStore(place, durable=folder is not None, max_bytes=config.memory_mib << 20)
    fed.engine.restore(store)
    choice = _choose(config, made)
    config = config.model_copy(
        update={"vectorize": "on" if choice.chunk > 1 else "off", "chunk": choice.chunk}
    )
    return Run(
        config,
        method,
        task,
        fed,
        split.groups,
        folder=folder,
        store=store,
        observer=observer,
        scratch=scratch,
        path=choice.reason,
    )


def _choose(config: RunConfig, engine: Any) -> Choice:
    """Decide how many clients train as one, and tell the engine."""
    if not isinstance(engine, LocalEngine) or engine.setup.strict:
        return Choice(1, "this engine runs one client at a time")
    if config.vectorize == "off":
        return Choice(1, "switched off")
    choice = (
        Choice(config.chunk, "as given")
        if config.chunk
        else engine.measure(config.cohort, config.vectorize == "on")
    )
    engine.stack(choice.chunk)
    return choice


def _hidden(method: Method, config: RunConfig) -> list[str]:
    """Return what of a method needs single replies, which the aggregation hides, with alternatives."""
    singles = [name for name, declared in client_functions(method).items() if declared.each]
    if not singles:
        return []
    alternative = getattr(method, "sum_only", None)
    hint = (
        f"; use {alternative}"
        if alternative
        else "; run it with --aggregation plain, or choose a sum-only method"
    )
    return [
        f"method {config.method!r} needs every client's own reply from {', '.join(singles)}(), which "
        f"{config.aggregation!r} aggregation hides from the server{hint}"
    ]


def run(
    config: RunConfig, folder: RunFolder | None = None, observer: Observer | None = None, **parts: Any
) -> Summary:
    """Prepare a run and carry it out; see `prepare` for `parts`."""
    prepared = prepare(config, folder=folder, observer=observer, **parts)
    if folder is not None:  # with what was measured, so that a rerun takes the same path
        folder.write_config(prepared.config.model_dump(exclude_none=True))
    return prepared.go()


def resume(path: str | Path, observer: Observer | None = None, **parts: Any) -> Summary:
    """Go on with a run from its last checkpoint; the end has the bits of an undisturbed run.

    Raises `CheckpointError` when the checkpoint is corrupt or of another configuration.
    """
    return reopen(path, observer=observer, **parts).go()


def reopen(path: str | Path, observer: Observer | None = None, **parts: Any) -> Run:
    """Prepare a run as its last checkpoint left it; `go` goes on with it. See `resume`."""
    folder = RunFolder.open(path)
    config = RunConfig.build(folder.read_config())
    prepared = prepare(config, folder=folder, observer=observer, **parts)
    if folder.checkpoint.exists():
        _restore(prepared, load_checkpoint(folder.checkpoint))
    else:
        folder.truncate_metrics(0)
    return prepared


def _restore(prepared: Run, saved: dict[str, Any]) -> None:
    folder, store = prepared.folder, prepared.store
    assert folder is not None
    if saved["config"] != prepared.config.model_dump_json():
        raise CheckpointError(f"{folder.path}: the checkpoint is of another configuration than config.toml")
    prepared.round, prepared.state = saved["round"], saved["state"]
    prepared.fed.clock.now = saved["clock"]
    prepared.fed.totals.bytes_up, prepared.fed.totals.bytes_down = saved["bytes"]
    prepared.history = folder.truncate_metrics(prepared.round)
    prepared.fed.engine.restore(store.restore(saved["memory"]))
