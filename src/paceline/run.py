"""A run is one function: check the plan, then rounds with evaluation, records and checkpoints.

A run can be killed at any moment and resumed: state, clock and client memories are in the checkpoint,
and every random stream is derived from (seed, client, round), so the end has the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from paceline.adversaries.behaviours import load_adversary
from paceline.adversaries.engine import Hostile
from paceline.aggregation import load_aggregation
from paceline.aggregation.secure.task_hash import Agreement
from paceline.assembly import assemble, devices, reload, share_out
from paceline.core.config import RunConfig
from paceline.core.engine import Engine
from paceline.core.errors import CheckpointError, PlanError
from paceline.core.federation import Aggregation, Federation
from paceline.core.method import Method, client_functions
from paceline.core.processes import check_main
from paceline.data import Partition
from paceline.devices import VirtualClock
from paceline.engines import Choice, Pool, Setup, load_engine
from paceline.engines.accelerators import check_device
from paceline.runner import Observer, Run, StackingWarning, Summary
from paceline.store import MemoryStore, RunFolder, load_checkpoint
from paceline.store.provenance import ResumeWarning, compare, sources
from paceline.tasks import Task

__all__ = ["Observer", "ResumeWarning", "Run", "RunConfig", "StackingWarning", "Summary", "prepare", "reopen", "resume", "run"]


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
    check_main()
    torch.set_num_threads(config.threads)
    check_device(config.device, "--device", here=config.engine != "ray" or config.ray_address is None)
    named = task is None and split is None
    made = assemble(config, task)
    asked, method = made.asked, made.method
    misfits = []
    if config.cohort > config.clients:
        misfits.append(f"the cohort of {config.cohort} is larger than the population of {config.clients} clients")
    if config.quorum > config.cohort:
        misfits.append(f"the quorum of {config.quorum} is larger than the cohort of {config.cohort}")
    aggregation = aggregation or load_aggregation(
        config.aggregation, config.secure, config.sum_bound, Agreement.of(config, type(asked))
    )
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
    shared = share_out(config, made.task, split)
    task, fleet = shared.task, devices(config, shared)
    setup = made.setup(
        shared,
        fleet,
        aggregation.programs,
        device=config.device,
        threads=config.threads,
        drop=drop,
        samples=functools.partial(reload, config, asked) if named else None,
    )
    ray = {"address": config.ray_address, "cpus": config.ray_cpus, "gpus": config.ray_gpus}
    runs = load_engine(config.engine, setup, config.workers, ray) if engine is None else engine(setup)
    fed = Federation(
        runs if adversary is None or adversary.poisons_data else Hostile(runs, adversary, shared.byzantine, config.seed),
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
        runs.close()
        raise PlanError(misfits)
    scratch = tempfile.TemporaryDirectory(prefix="paceline-") if folder is None else None
    place = folder.path / "memory" if folder is not None else Path(scratch.name) if scratch is not None else None
    store = MemoryStore(place, durable=folder is not None, max_bytes=config.memory_mib << 20)
    fed.engine.restore(store)
    choice = _choose(config, method, runs)
    config = config.model_copy(update={"vectorize": "on" if choice.chunk > 1 else "off", "chunk": choice.chunk})
    return Run(
        config,
        method,
        task,
        fed,
        shared.groups,
        folder=folder,
        store=store,
        observer=observer,
        scratch=scratch,
        path=choice.reason,
        code=sources(method, task, task.build(0)),
    )


def _choose(config: RunConfig, method: Method, engine: Any) -> Choice:
    """Decide how many clients train as one, and tell the engine."""
    if not isinstance(engine, Pool) or engine.setup.strict:
        return Choice(1, "this engine runs one client at a time")
    if config.vectorize == "off":
        return Choice(1, "switched off")
    if not method.vectorizable and config.vectorize == "auto" and not config.chunk:
        return Choice(1, "this method's clients train one at a time")
    choice = Choice(config.chunk, "as given") if config.chunk else engine.measure(config.cohort, config.vectorize == "on")
    engine.stack(choice.chunk)
    return choice


def _hidden(method: Method, config: RunConfig) -> list[str]:
    """Return what of a method needs single replies, which the aggregation hides, with alternatives."""
    singles = [name for name, declared in client_functions(method).items() if declared.each]
    if not singles:
        return []
    alternative = getattr(method, "sum_only", None)
    hint = f"; use {alternative}" if alternative else "; run it with --aggregation plain, or choose a sum-only method"
    return [
        f"method {config.method!r} needs every client's own reply from {', '.join(singles)}(), which "
        f"{config.aggregation!r} aggregation hides from the server{hint}"
    ]


def run(config: RunConfig, folder: RunFolder | None = None, observer: Observer | None = None, **parts: Any) -> Summary:
    """Prepare a run and carry it out; see `prepare` for `parts`."""
    with _holding(folder):
        prepared = prepare(config, folder=folder, observer=observer, **parts)
        if folder is not None:  # with what was measured, so that a rerun takes the same path
            folder.write_config(prepared.config.model_dump(exclude_none=True))
        return prepared.go()


@contextlib.contextmanager
def _holding(folder: RunFolder | None) -> Iterator[None]:
    """Hold a run's folder; `Run.go` releases it, and so does an error on the way there."""
    try:
        if folder is not None:
            folder.hold()
        yield
    except BaseException:
        if folder is not None:
            folder.release()
        raise


def resume(path: str | Path, observer: Observer | None = None, **parts: Any) -> Summary:
    """Go on with a run from its last checkpoint; the end has the bits of an undisturbed run.

    What of code or torch has changed in between is told in a `ResumeWarning`.
    Raises `CheckpointError` when the checkpoint is corrupt or of another configuration or other data, `StoreError` when another
    process holds the run.
    """
    return reopen(path, observer=observer, **parts).go()


def reopen(path: str | Path | RunFolder, observer: Observer | None = None, **parts: Any) -> Run:
    """Prepare a run as its last checkpoint left it; `go` goes on with it. See `resume`.

    The run's folder is held from now on. Raises `StoreError` where another process holds it.
    """
    folder = path if isinstance(path, RunFolder) else RunFolder.open(path)
    with _holding(folder):
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
    compare(saved.get("provenance"), prepared.provenance, str(folder.checkpoint))
    prepared.round, prepared.state = saved["round"], saved["state"]
    prepared.fed.clock.now = saved["clock"]
    prepared.fed.totals.bytes_up, prepared.fed.totals.bytes_down = saved["bytes"]
    prepared.history = folder.truncate_metrics(prepared.round)
    prepared.fed.engine.restore(store.restore(saved["memory"]))
