"""Several runs: compare methods, or sweep settings of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from paceline.core.config import RunConfig
from paceline.core.errors import ConfigError, StoreError
from paceline.core.method import Method
from paceline.core.run_fields import RunFields
from paceline.registry import find_method
from paceline.results.arguments import Arguments, MethodLike, TaskLike, arguments, as_task
from paceline.results.comparison import Comparison
from paceline.results.progress import Observer, RunProgress, library_progress
from paceline.results.result import Result
from paceline.results.side_by_side import for_seeds, side_by_side
from paceline.results.space import drawn, grid, owner, space_of
from paceline.run import carry_out, load, prepare, reopen
from paceline.store import RunFolder
from paceline.store.places import new_place, read_comparison

__all__ = ["Comparison", "compare", "continued", "run_all", "settings_of", "sweep"]


def compare(
    methods: Iterable[MethodLike],
    task: TaskLike = None,
    *,
    seeds: Iterable[int] = (0,),
    model: Any = None,
    out: str | Path | None = None,
    progress: bool | None = None,
    **fields: Unpack[RunFields],
) -> Comparison:
    """Run several methods on the same clients, devices and seeds.

    All are checked before the first one is trained.

    Args:
        methods: as `run` takes them.
        task: as `run` takes it.
        seeds: each of which every method is run with.
        model: as `run` takes it.
        out: a folder to keep the runs in, below one for this comparison; None keeps nothing.
        progress: show a bar; by default in a terminal and in a notebook only.
        fields: of `RunConfig`, for all methods.

    Raises what `run` raises; a `PlanError` names the methods that do not fit.

    Example:
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> table = pl.compare(["fedavg", pl.methods.FedProx(mu=1.0)], blobs(), seeds=range(2), clients=4, rounds=2)
        >>> [row["label"] for row in table.rows], table.rows[0]["seeds"]
        (['fedavg', 'fedprox:mu=1.0'], 2)
    """
    if "seed" in fields:
        raise ConfigError("pass the seeds of a comparison as seeds=, such as range(3)")
    if isinstance(methods, str | Method | type | RunConfig):
        raise ConfigError("methods must be a list, such as ['fedavg', 'fedprox']")
    if isinstance(task, tuple):
        task, model = as_task(task, model), None  # data are read once
    asked = for_seeds([arguments(method, task, model, fields) for method in methods], list(seeds))
    with contextlib.ExitStack() as around:
        bar = around.enter_context(library_progress(progress))
        place = None
        if out is not None:
            place = around.enter_context(new_place(Path(out), None, f"compare-{asked[0].config.task}", False))
        return run_all(asked, place, bar)


def sweep(
    methods: MethodLike | Iterable[MethodLike],
    task: TaskLike = None,
    *,
    space: Mapping[str, Any],
    random: int | None = None,
    seeds: int | Iterable[int] = 1,
    workers: int = 1,
    search_seed: int = 0,
    model: Any = None,
    out: str | Path | None = None,
    name: str | None = None,
    progress: bool | None = None,
    **fields: Any,
) -> Comparison:
    """Run methods with many settings, and return them with the best first.

    A run that fails, for example because its learning rate is too large, is listed in `Comparison.failed`; the others go on.

    Args:
        methods: a method, or a list; as `run` takes them.
        task: as `run` takes it.
        space: values of each setting: a list, or text as on the command line (``"log:0.001..1"``, ``"0.1..0.9"``, ``"1..10"``).
            A setting is a field of the methods that have it, or of the run.
        random: draw that many settings at random; by default all combinations.
        seeds: a number of seeds, from 0, or the seeds; each setting is run with each.
        workers: runs at the same time, in processes of their own.
        search_seed: of the random draws.
        model: as `run` takes it.
        out: a folder to keep the runs in, below one for this sweep; None keeps nothing.
        name: of the sweep's folder. Where there is one of that name with the same runs, it goes on.
        progress: show a bar; by default in a terminal and in a notebook only.
        fields: of `RunConfig`, for all runs.

    Raises what `run` raises; `UnknownNameError` for a setting that neither a method nor the run has.

    Example:
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> found = pl.sweep("fedavg", blobs(), space={"lr": [0.01, 0.1]}, seeds=2, clients=4, rounds=2)
        >>> found.rows[0]["label"], found.best["options"]
        ('fedavg:lr=0.1', {'lr': 0.1})
    """
    if "seed" in fields:
        raise ConfigError("pass the seeds of a sweep as seeds=, such as 3 or [0, 4]")
    if isinstance(task, tuple):
        task, model = as_task(task, model), None  # data are read once
    several = [methods] if isinstance(methods, str | Method | type | RunConfig) else list(methods)
    base = [arguments(method, task, model, fields) for method in several]
    asked = settings_of(base, space_of(space), random, search_seed)
    listed = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    with contextlib.ExitStack() as around:
        bar = around.enter_context(library_progress(progress))
        place = None
        if out is not None:
            place = around.enter_context(place_of_sweep(Path(out), name, f"sweep-{asked[0].config.task}"))
        return run_all(for_seeds(asked, listed), place, bar, kind="sweep", workers=workers).ranked()


def settings_of(base: Sequence[Arguments], space: Mapping[str, Any], random: int | None, seed: int = 0) -> list[Arguments]:
    """Return each method with each setting of a space, once.

    Args:
        base: the methods, as they were asked for.
        space: values and ranges, see `paceline.results.space`.
        random: number of draws; None for all combinations.
        seed: of the draws.

    Raises:
        UnknownNameError: neither a method nor the run has a setting.
        ConfigError: a value does not fit.
    """
    if not space:
        raise ConfigError("a sweep needs settings to vary, such as lr=0.01,0.1")
    methods = {one.config.method: type(one.method) if one.method is not None else find_method(one.config.method) for one in base}
    owners = {name: owner(name, methods) for name in space}
    found: dict[str, Arguments] = {}
    for values in grid(space) if random is None else drawn(space, random, seed):
        for one in base:
            own = {n: v for n, v in values.items() if one.config.method in owners[n]}
            run = {n: v for n, v in values.items() if not owners[n]}
            config = {**one.config.model_dump(exclude_unset=True), **run, "options": {**one.config.options, **own}}
            made = RunConfig.build(config).fitted()
            method = one.method if one.method is None else replace(one.method, **own)
            found.setdefault(made.model_dump_json(), replace(one, config=made, method=method))
    return list(found.values())


@contextlib.contextmanager
def place_of_sweep(root: Path, name: str | None, default: str, again: bool = False) -> Any:
    """Yield the folder of a sweep: a new one, or the one of that name, which goes on unless it is replaced."""
    if name is not None and not again and (root / name / "comparison.json").is_file():
        yield root / name
        return
    with new_place(root, name, default, again) as place:
        yield place


def continued(place: Path, bar: RunProgress, workers: int = 1) -> Comparison:
    """Go on with a comparison or a sweep whose methods and tasks can be found by name.

    Args:
        place: its folder.
        bar: shows the progress.
        workers: runs at the same time.

    Raises `StoreError` for one of an earlier version, which does not name its runs.
    """
    _, configs, kind = read_comparison(place)
    if not configs:
        raise StoreError(f"{place} was written by an earlier version; resume its runs one by one")
    made = run_all([Arguments(RunConfig.build(config)) for config in configs], place, bar, kind=kind, workers=workers)
    return made.ranked() if kind == "sweep" else made


def run_all(
    asked: Sequence[Arguments],
    place: Path | None,
    bar: RunProgress,
    around: Callable[[Path], contextlib.AbstractContextManager[Any]] | None = None,
    *,
    kind: str = "compare",
    workers: int = 1,
) -> Comparison:
    """Carry out several runs; see `side_by_side`."""
    return side_by_side(asked, place, bar, _prepared, _carry_on, around, kind=kind, workers=workers)


def _prepared(one: Arguments) -> Any:
    return prepare(one.config, task=one.task, method=one.method)


def _carry_on(one: Arguments, place: Path | None, observer: Observer) -> Result:
    """Begin a run, go on with the one in its folder, or read the result of one that has ended."""
    if place is None:
        return carry_out(one, None, observer)
    folder = RunFolder(place)
    if not (place / "config.toml").is_file():
        return carry_out(one, RunFolder.create(place.parent, place.name), observer)
    if folder.read_summary() is None:
        reopen(folder, observer, task=one.task, method=one.method).go()
    return load(place, one.task, one.method)
