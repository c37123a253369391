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
from typing import Any, Unpack

import torch

from paceline.adversaries.behaviours import load_adversary
from paceline.adversaries.engine import Hostile
from paceline.aggregation import load_aggregation
from paceline.aggregation.secure.task_hash import Agreement
from paceline.assembly import assemble, devices, group_misfits, misfits, reload, share_out
from paceline.core.config import RunConfig
from paceline.core.engine import Aggregation, Engine
from paceline.core.errors import ConfigError, PlanError, StoreError
from paceline.core.federation import Federation
from paceline.core.method import Method
from paceline.core.process_state import process_state
from paceline.core.processes import check_main
from paceline.core.profiling import spent
from paceline.core.run_fields import RunFields
from paceline.core.wording import command, setting
from paceline.data import Partition
from paceline.devices import VirtualClock
from paceline.engines import Setup, load_engine
from paceline.engines.accelerators import check_device
from paceline.engines.pool import stack_size
from paceline.results.arguments import Arguments, MethodLike, TaskLike, arguments
from paceline.results.progress import both, library_progress
from paceline.results.result import Result
from paceline.results.resuming import extend, restore
from paceline.results.saved import check_task, saved_method, saved_model
from paceline.runner import Observer, Run, StackingWarning
from paceline.store import MemoryStore, RunFolder, load_checkpoint
from paceline.store.places import new_place
from paceline.store.provenance import ResumeWarning, sources
from paceline.store.start import Start, keep_start, open_start
from paceline.tasks import Task, schema_of
from paceline.trackers.base import Observers, Watch

__all__ = [
    "Observer",
    "Result",
    "ResumeWarning",
    "Run",
    "RunConfig",
    "StackingWarning",
    "carry_out",
    "load",
    "prepare",
    "reopen",
    "resume",
    "run",
]


@process_state()
def prepare(
    config: RunConfig,
    *,
    task: Task | None = None,
    method: Method | None = None,
    drop: Callable[[int, int, str], bool] | None = None,
    folder: RunFolder | None = None,
    observer: Observer | None = None,
    aggregation: Aggregation | None = None,
    engine: Callable[[Setup], Engine] | None = None,
    split: Partition | None = None,
    start: Start | None = None,
) -> Run:
    """Build all parts of a run and check that they fit; raises `PlanError` listing every misfit.

    Args:
        config: what to run.
        task: a task object in place of the one that the configuration names.
        method: a method object in place of the one that the configuration names.
        drop: ``(round, client, function) -> bool``, clients that vanish before that reply (fault injection).
        folder: where to keep the run; None keeps nothing.
        observer: is told of every round.
        aggregation: how sums are formed, in place of the one that the configuration names.
        engine: makes the engine, in place of the one that the configuration names.
        split: who has which samples, in place of the partition that the configuration names.
        start: weights to start from, where they have been read before.

    Example:
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> run = pl.prepare(pl.RunConfig(clients=4, cohort=4, rounds=2), task=blobs())
        >>> run.step()["round"], run.round
        (1, 1)
        >>> run.close()
    """
    check_main()
    torch.set_num_threads(config.threads)
    check_device(config.device, setting("device"), here=config.engine != "ray" or config.ray_address is None)
    named = task is None and split is None
    if start is None:
        config, start = open_start(config, None if folder is None else folder.path)
    made = assemble(config, task, method, start)
    asked, method = made.asked, made.method
    aggregation = aggregation or load_aggregation(
        config.aggregation, config.secure, config.sum_bound, Agreement.of(config, type(asked), schema_of(made.task))
    )
    adversary = None if config.adversary is None else load_adversary(config.adversary)
    if wrong := misfits(config, method, aggregation, adversary, made.task):
        raise PlanError(wrong)
    shared = share_out(config, made.task, split)
    task, fleet = shared.task, devices(config, shared)
    setup = made.setup(
        shared,
        fleet,
        aggregation.programs,
        device=config.device,
        threads=config.threads,
        drop=drop,
        samples=functools.partial(reload, config, asked, start) if named else None,
    )
    setup.profiled = spent.watches
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
    if wrong := aggregation.check(fed) + method.check(fed) + group_misfits(config, aggregation, shared.groups):
        runs.close()
        raise PlanError(wrong)
    if folder is not None:
        keep_start(start, folder.path)
    scratch = tempfile.TemporaryDirectory(prefix="paceline-") if folder is None else None
    place = folder.path / "memory" if folder is not None else Path(scratch.name) if scratch is not None else None
    store = MemoryStore(place, durable=folder is not None, max_bytes=config.memory_mib << 20)
    fed.engine.restore(store)
    choice = stack_size(runs, config, method)
    taken = {"vectorize": "on" if choice.chunk > 1 else "off", "chunk": choice.chunk, "kernels": choice.kernels}
    config = config.model_copy(update=taken)
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


def run(
    method: MethodLike,
    task: TaskLike = None,
    *,
    model: Any = None,
    folder: str | Path | RunFolder | None = None,
    out: str | Path | None = None,
    observer: Observers = None,
    progress: bool | None = None,
    drop: Callable[[int, int, str], bool] | None = None,
    split: Partition | None = None,
    **fields: Unpack[RunFields],
) -> Result:
    """Train one model with one method.

    The process is left as it was found: torch's threads, precision and flags, and the global random generators.

    Args:
        method: a method (`paceline.methods.FedProx(mu=0.1)`), its class, a name with options (``"fedprox:mu=0.1"``), or a
            whole `RunConfig`.
        task: a `Task`, the name of one, or a pair of data sets (train, test).
        model: of a named task: a model by name, or a class or function of a module; of data sets: see `Task.from_datasets`.
        folder: where to keep the run, so that `resume` and `load` find it; it must not exist.
        out: in place of `folder`: a folder that holds runs; this one is named by method, task and seed, with a number where
            that is taken.
        observer: is called after each round with its record and the number of rounds, see `Observer`; a tracker, by its name
            (``"tensorboard:runs/board"``) or as an object of `paceline.trackers`; or a list of these.
        progress: show a bar; by default in a terminal and in a notebook only.
        drop: ``(round, client, function) -> bool``, clients that vanish before that reply (fault injection).
        split: who has which samples, in place of the configured partition.
        fields: of `RunConfig`, such as ``clients=20, rounds=10``. Where `cohort` is not given, it is 20, or all clients where
            there are fewer.

    Raises:
        UnknownNameError: for a field, method, task or other name that does not exist; lists the nearest.
        ConfigError: for a value that does not fit.
        PlanError: for parts that do not fit together; lists all misfits.
        StoreError: where the folder exists, or cannot be written.

    Example:
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> result = pl.run(pl.methods.FedProx(mu=0.1), blobs(), clients=6, rounds=3, partition="dirichlet:0.3")
        >>> result.rounds, result.config.options
        (3, {'mu': 0.1})
    """
    asked = arguments(method, task, model, fields)
    if folder is not None and out is not None:
        raise ConfigError("pass either folder= (the folder of this run) or out= (the folder that contains runs), not both")
    with contextlib.ExitStack() as around:
        bar = around.enter_context(library_progress(progress))
        bar.begin(asked.config.method, asked.config.rounds)
        if out is not None:
            folder = around.enter_context(new_place(Path(out), None, asked.config.label, False))
        if isinstance(folder, str | Path):
            folder = RunFolder.create(Path(folder).parent, Path(folder).name)
        with _holding(folder):
            watch = around.enter_context(Watch(observer, folder.name if folder else asked.config.label, asked.config))
        return watch.ended(carry_out(asked, folder, both(watch, bar), drop=drop, split=split))


def carry_out(asked: Arguments, folder: RunFolder | None, observer: Observer, **parts: Any) -> Result:
    """Carry out a run as it was asked for, in a new folder or without one; see `run`."""
    with _holding(folder):
        if folder is not None and None in asked.config.options.values():
            lost = ", ".join(name for name, value in asked.config.options.items() if value is None)
            raise ConfigError(f"{asked.config.method} with {lost}=None cannot be saved: set a value, or run without a folder")
        prepared = prepare(asked.config, task=asked.task, method=asked.method, folder=folder, observer=observer, **parts)
        if folder is not None:  # with what was measured, so that a rerun takes the same path
            folder.write_config(prepared.config.model_dump(exclude_none=True), prepared.task.info.get("schema"))
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


def resume(
    path: str | Path, observer: Observers = None, *, rounds: int | None = None, progress: bool | None = None, **parts: Any
) -> Result:
    """Go on with a run from its last checkpoint; the end has the bits of an undisturbed run.

    What of code or torch has changed in between is told in a `ResumeWarning`.

    Args:
        path: the run's folder.
        observer: see `run`.
        rounds: extend the run to this number of rounds in total, whether it has ended or not; the end has the bits of a run
            of that many rounds from the start.
        progress: see `run`.
        parts: ``task`` and ``method``, where the run was given objects that cannot be found by name; see `prepare`.

    Raises `CheckpointError` when the checkpoint is corrupt or of another configuration or other data, `StoreError` when another
    process holds the run, `ConfigError` for a run that cannot be extended.

    Example:
        >>> import tempfile
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> place = tempfile.mkdtemp() + "/run"
        >>> made = pl.run("fedavg", blobs(), clients=4, rounds=2, folder=place)
        >>> pl.resume(place, task=blobs()).rounds  # it has ended, so nothing is left to do
        2
        >>> pl.resume(place, rounds=3, task=blobs()).rounds
        3
    """
    folder = RunFolder.open(path)
    if rounds is not None:
        with _holding(folder):
            extend(folder, rounds, parts.get("method"))
    watch = Watch(observer, folder.name, RunConfig.build(folder.read_config()))
    with library_progress(progress) as bar, watch:
        prepared = reopen(folder, observer=both(watch, bar), **parts)
        bar.begin(prepared.config.method, prepared.config.rounds)
        return watch.ended(prepared.go())


def load(path: str | Path, task: Task | None = None, method: Method | None = None, *, model: Any = None) -> Result:
    """Return the result of a run that has ended, from its folder. Its model is made when it is asked for.

    Args:
        path: the run's folder.
        task: the run's task, where it was an object; only for `Result.params` and clients' own models.
        method: the run's method, where its class cannot be found by name; likewise.
        model: the model's class, a function that makes one, or a module, where it was defined in a script or a function, so that
            ``model.json`` cannot name it.

    Raises `StoreError` where there is no run, or it has not ended.

    Example:
        >>> import tempfile
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> place = tempfile.mkdtemp() + "/run"
        >>> made = pl.run("fedavg", blobs(), clients=4, rounds=2, folder=place)
        >>> pl.load(place).model_sha256 == made.model_sha256
        True
    """
    folder = RunFolder.open(path)
    again = functools.partial(reopen, folder, task=task, method=method)
    result = Result.read(folder, saved_model(folder, task, method, again, model))
    if result is None:
        raise StoreError(f"{folder.path} has not ended; continue it with {command('resume', folder.path)}")
    return result


def reopen(path: str | Path | RunFolder, observer: Observer | None = None, **parts: Any) -> Run:
    """Prepare a run as its last checkpoint left it; `go` goes on with it. See `resume`.

    The run's folder is held from now on. Raises `StoreError` where another process holds it.
    """
    folder = path if isinstance(path, RunFolder) else RunFolder.open(path)
    with _holding(folder):
        config = RunConfig.build(folder.read_config())
        parts["method"] = parts.get("method") or saved_method(folder, config)
        if parts.get("task") is None and parts.get("split") is None:
            check_task(folder, config)
        prepared = prepare(config, folder=folder, observer=observer, **parts)
        if folder.checkpoint.exists():
            restore(prepared, load_checkpoint(folder.checkpoint))
        else:
            folder.truncate_metrics(0)
        return prepared
