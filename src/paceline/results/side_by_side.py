"""Several runs one after another: all checked first, then carried out, each in a folder of its own, and compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.assembly import read_task
from paceline.core.config import RunConfig
from paceline.core.errors import ConfigError, PlanError
from paceline.core.names import safe_names
from paceline.core.task import Task
from paceline.results.arguments import Arguments
from paceline.results.comparison import Comparison
from paceline.results.groups import RunEntry, labels
from paceline.results.progress import RunProgress
from paceline.results.result import Result
from paceline.store import RunFolder
from paceline.store.places import write_comparison

if TYPE_CHECKING:
    from paceline.runner import Run

__all__ = ["for_seeds", "side_by_side"]


def side_by_side(
    asked: Sequence[Arguments],
    place: Path | None,
    bar: RunProgress,
    prepare: Callable[[Arguments], Run],
    carry_out: Callable[[Arguments, RunFolder | None, RunProgress], Result],
    around: Callable[[Path], contextlib.AbstractContextManager[Any]] | None = None,
) -> Comparison:
    """Carry out several runs one after another; see `paceline.run.compare`.

    Args:
        asked: the runs, in the order of the table.
        place: folder of the comparison, which is free; None keeps nothing.
        bar: shows the progress of each.
        prepare: prepares a run, to check it.
        carry_out: carries out a run in its folder.
        around: ``(folder of a run) -> context`` in which that run is carried out.
    """
    tasks: dict[str, Task] = {}
    asked = [one if one.task is not None else replace(one, task=_task_of(one.config, tasks)) for one in asked]
    _check(asked, prepare)
    names = labels([one.config.model_dump() for one in asked])
    folders = safe_names([f"{label}-s{one.config.seed}" for one, label in zip(asked, names, strict=True)])
    if len(set(folders)) < len(folders):
        raise ConfigError(f"duplicate method or seed: {', '.join(dict.fromkeys(names))}; list each once")
    results: list[Result] = []
    with contextlib.ExitStack() as held:
        if place is not None:
            write_comparison(place, folders)
            held.callback(RunFolder(place).hold().release)
        for one, label, name in zip(asked, names, folders, strict=True):
            bar.begin(f"{label}, seed {one.config.seed}", one.config.rounds)
            with contextlib.nullcontext() if around is None or place is None else around(place / name):
                results.append(carry_out(one, None if place is None else RunFolder.create(place, name), bar))
    entries = [RunEntry(one.config.model_dump(), r.as_dict(), r.history) for one, r in zip(asked, results, strict=True)]
    first = asked[0].config
    title = (
        f"{first.task}, {first.clients} clients, {first.partition}, fleet {first.fleet}, "
        f"{first.aggregation} aggregation, {first.rounds} rounds"
    )
    return Comparison(entries, title, first.goal, results, place)


def for_seeds(asked: Sequence[Arguments], seeds: Sequence[int]) -> list[Arguments]:
    """Return each run once for each seed."""
    if not asked or not seeds:
        raise ConfigError(f"a comparison of {len(asked)} methods and {len(seeds)} seeds is empty; pass at least one of each")
    return [replace(one, config=RunConfig.build(one.config.model_dump() | {"seed": seed})) for one in asked for seed in seeds]


def _task_of(config: RunConfig, known: dict[str, Task]) -> Task:
    key = repr((config.task, config.model, config.seed, config.task_options))
    if key not in known:
        known[key] = read_task(config)
    return known[key]


def _check(asked: Sequence[Arguments], prepare: Callable[[Arguments], Run]) -> None:
    """Prepare each method once, so that mismatches are reported before any training."""
    misfits: dict[str, list[str]] = {}
    for one in asked:
        if one.config.seed == asked[0].config.seed:
            try:
                prepare(one).close()
            except PlanError as error:
                for misfit in error.misfits:
                    misfits.setdefault(misfit, []).append(one.config.method)
    if misfits:
        raise PlanError([f"{', '.join(dict.fromkeys(methods))}: {misfit}" for misfit, methods in misfits.items()])
