"""Several runs: checked first, then carried out, in turn or at the same time, each in a folder of its own, and compared."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.assembly import build_method, read_task
from paceline.core.config import RunConfig
from paceline.core.errors import ConfigError, PacelineError, PlanError, StoreError, by_name
from paceline.core.names import safe_names
from paceline.core.task import Task
from paceline.core.wording import setting
from paceline.results.arguments import Arguments
from paceline.results.comparison import Comparison
from paceline.results.groups import RunEntry, labels
from paceline.results.parallel import run_jobs
from paceline.results.progress import LiveProgress, Observer, RunProgress
from paceline.results.result import Result
from paceline.store import RunFolder, atomic_write
from paceline.store.places import COMPARISON, read_comparison, write_comparison

if TYPE_CHECKING:
    from paceline.runner import Run

__all__ = ["for_seeds", "side_by_side"]

_FAILED = "failed.json"
"""In the folder of a run of a sweep: the error with which it has ended."""


def side_by_side(
    asked: Sequence[Arguments],
    place: Path | None,
    bar: RunProgress,
    prepare: Callable[[Arguments], Run],
    carry_on: Callable[[Arguments, Path | None, Observer], Result],
    around: Callable[[Path], contextlib.AbstractContextManager[Any]] | None = None,
    *,
    kind: str = "compare",
    workers: int = 1,
) -> Comparison:
    """Carry out several runs; see `paceline.studies.compare` and `sweep`.

    Args:
        asked: the runs, in the order of the table.
        place: folder of the comparison: free, or of the same runs, which go on; None keeps nothing.
        bar: shows the progress.
        prepare: prepares a run, to check it.
        carry_on: begins a run in its folder, or goes on with the one that is there.
        around: ``(folder of a run) -> context`` in which that run is carried out.
        kind: compare, where the first error ends all; or sweep, where failed runs are listed.
        workers: runs at the same time, each in a process of its own.

    Raises:
        ConfigError: a run is listed twice, or there are several workers and no folder.
        PlanError: lists the methods that do not fit.
        StoreError: the folder belongs to other runs.
    """
    tasks: dict[str, Task] = {}
    asked = [one if one.task is not None else replace(one, task=_task_of(one.config, tasks)) for one in asked]
    configs = [one.config.model_dump() for one in asked]
    names = labels(configs)
    folders = safe_names([f"{label}-s{one.config.seed}" for one, label in zip(asked, names, strict=True)])
    if len(set(folders)) < len(folders):
        raise ConfigError(f"duplicate method or seed: {', '.join(dict.fromkeys(names))}; list each once")
    if workers > 1 and place is None:
        raise ConfigError(f"several workers need a folder for the runs: {setting('out', 'runs')}")
    if place is None or not (place / COMPARISON).exists():
        _check(asked if kind == "compare" else _first_of_each(asked), prepare)
    places = [None if place is None else place / name for name in folders]
    with contextlib.ExitStack() as held:
        if place is not None:
            _claim(place, folders, [one.config.model_dump(mode="json", exclude_none=True) for one in asked], kind)
            held.callback(RunFolder(place).hold().release)
        runs = [_Listed(*each) for each in zip(asked, names, places, strict=True)]
        done = _in_turn(runs, bar, carry_on, around, kind) if workers == 1 else _at_once(runs, bar, carry_on, workers, kind)
    kept = [(config, result) for config, result in zip(configs, done, strict=True) if isinstance(result, Result)]
    failed = {
        f"{name}, seed {one.config.seed}": str(error)
        for one, name, error in zip(asked, names, done, strict=True)
        if not isinstance(error, Result)
    }
    if not kept:
        raise next(error for error in done if isinstance(error, PacelineError))
    entries = [RunEntry(config, result.as_dict(), result.history) for config, result in kept]
    first = asked[0].config
    title = (
        f"{first.task}, {first.clients} clients, {first.partition}, fleet {first.fleet}, "
        f"{first.aggregation} aggregation, {first.rounds} rounds"
    )
    return Comparison(entries, title, first.goal, [result for _, result in kept], place, failed)


@dataclass(frozen=True)
class _Listed:
    asked: Arguments
    label: str
    place: Path | None

    @property
    def failure(self) -> PacelineError | None:
        """The error with which the run has ended before."""
        file = None if self.place is None else self.place / _FAILED
        if file is None or not file.is_file():
            return None
        said = json.loads(file.read_text(encoding="utf-8"))
        return by_name(said["error"], said["message"])

    def fail(self, error: PacelineError) -> PacelineError:
        """Record the error with which the run has ended."""
        if self.place is not None:
            said = {"error": type(error).__name__, "message": str(error)}
            atomic_write(self.place / _FAILED, (json.dumps(said, indent=2) + "\n").encode())
        return error


Carry = Callable[[Arguments, Path | None, Observer], Result]


def _in_turn(
    runs: Sequence[_Listed], bar: RunProgress, carry_on: Carry, around: Callable[[Path], Any] | None, kind: str
) -> list[Result | PacelineError]:
    """Carry out runs one after another, in this process."""
    done: list[Result | PacelineError] = []
    for number, run in enumerate(runs, 1):
        place = f" ({number} of {len(runs)})" if kind == "sweep" else ""
        bar.begin(f"{run.label}, seed {run.asked.config.seed}{place}", run.asked.config.rounds)
        if (failure := run.failure) is not None:
            done.append(failure)
            continue
        with contextlib.nullcontext() if around is None or run.place is None else around(run.place):
            try:
                done.append(carry_on(run.asked, run.place, bar))
            except PacelineError as error:
                if kind == "compare" or isinstance(error, StoreError):
                    raise
                done.append(run.fail(error))
    return done


def _at_once(runs: Sequence[_Listed], bar: RunProgress, carry_on: Carry, workers: int, kind: str) -> list[Result | PacelineError]:
    """Carry out runs in several processes, and read their results from their folders."""
    failures = {number: failure for number, run in enumerate(runs) if (failure := run.failure) is not None}
    open_ = [number for number in range(len(runs)) if number not in failures]
    total, seen = sum(runs[number].asked.config.rounds for number in open_), 0
    bar.begin(f"{len(open_)} runs, {workers} at a time", total)

    def tick(_: int, record: dict[str, Any]) -> None:
        nonlocal seen
        seen += 1
        bar({**record, "round": seen}, total)

    jobs = [partial(carry_on, runs[number].asked, runs[number].place) for number in open_]
    for place, error in run_jobs(jobs, workers, tick).items():
        if kind == "compare" or isinstance(error, StoreError):
            raise error
        failures[open_[place]] = runs[open_[place]].fail(error)
    quiet = LiveProgress(quiet=True)
    return [failures[n] if n in failures else carry_on(run.asked, run.place, quiet) for n, run in enumerate(runs)]


def _claim(place: Path, names: Sequence[str], configs: Sequence[dict[str, Any]], kind: str) -> None:
    """Mark a folder as that of these runs; raises `StoreError` where it belongs to others."""
    if (place / COMPARISON).exists():
        if read_comparison(place) != (list(names), json.loads(json.dumps(list(configs))), kind):
            raise StoreError(f"{place} contains other runs; choose another name, or remove it")
        return
    write_comparison(place, names, configs, kind)


def _first_of_each(asked: Sequence[Arguments]) -> list[Arguments]:
    """Return the first run of each method; of the others, check the fields of their methods."""
    for one in asked:
        if one.method is None:
            build_method(one.config)
    return list({one.config.method: one for one in reversed(asked)}.values())[::-1]


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
