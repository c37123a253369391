"""`paceline compare`: several methods and seeds in one table and one plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline import registry
from paceline.cli.fields import ConfigFile, Options, SecureOptions, TaskOptions, completed, configuration, run_options
from paceline.cli.figures import RunEntry, common_target, comparison, grouped, labels
from paceline.cli.progress import LiveProgress
from paceline.cli.run import Json, Out, Quiet, Replace
from paceline.cli.show import out as console_out
from paceline.cli.show import print_json
from paceline.cli.signals import resumable
from paceline.core.errors import ConfigError, PlanError
from paceline.core.parsing import pairs

if TYPE_CHECKING:
    from paceline.run import RunConfig
    from paceline.tasks import Task

__all__ = ["compare"]


@run_options(without=("seed",))
def compare(
    ctx: typer.Context,
    methods: Annotated[
        list[str],
        typer.Argument(
            metavar="METHOD...",
            help="methods, each as NAME or NAME:field=value,...; see `paceline methods`",
            show_default=False,
            autocompletion=completed("method"),
        ),
    ],
    seeds: Annotated[str, typer.Option("--seeds", metavar="N,N,...", help="every method is run with each of these seeds")] = "0",
    option: Options = None,
    task_option: TaskOptions = None,
    secure_option: SecureOptions = None,
    config: ConfigFile = None,
    out: Out = Path("runs"),
    name: Annotated[
        str | None,
        typer.Option("--name", help="name of the comparison's folder", show_default="compare-TASK"),
    ] = None,
    replace: Replace = False,
    json: Json = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Run several methods on the same clients, devices and seeds; print a table and save a plot.

    Figures are means ± standard deviations over the seeds; × is the ratio to the first method. Without
    --target-accuracy, the time is to the highest whole percentage that every run reached.
    """
    common = pairs(option)
    settings = []
    for spec in (registry.parse("method", text) for text in methods):
        base = configuration(
            ctx, given, config, method=spec.name, options=common | spec.options,
            task_option=task_option, secure_option=secure_option,
        )  # fmt: skip
        settings += [base.model_copy(update={"seed": seed}) for seed in _seeds(seeds)]
    from paceline.cli.folders import new_place, plot_groups, write_comparison
    from paceline.core.names import safe_names
    from paceline.run import run as carry_out
    from paceline.store import RunFolder

    tasks = _tasks(settings)
    _check(settings, tasks)
    names = labels([s.model_dump() for s in settings])
    folders = safe_names([f"{label}-s{s.seed}" for s, label in zip(settings, names, strict=True)])
    if len(set(folders)) < len(folders):
        raise ConfigError(f"a method is given twice: {', '.join(dict.fromkeys(names))}")
    entries = []
    with (
        new_place(out, name, f"compare-{settings[0].task}", replace) as place,
        LiveProgress(quiet or json) as progress,
    ):
        write_comparison(place, folders)
        held = RunFolder(place).hold()
        for settled, label, folder in zip(settings, names, folders, strict=True):
            progress.begin(f"{label}, seed {settled.seed}", settled.rounds)
            with resumable(place / folder):
                summary = carry_out(settled, RunFolder.create(place, folder), progress, task=tasks[settled.seed])
            entries.append(RunEntry(settled.model_dump(), summary.as_dict(), summary.history))
        held.release()
    groups = grouped(entries)
    target = settings[0].target_accuracy or common_target(groups)
    picture = plot_groups(groups, place, target)
    if json:
        print_json([{**e.summary, "label": label} for e, label in zip(entries, names, strict=True)])
        return
    first = settings[0]
    console = console_out()
    title = (
        f"{first.task}, {first.clients} clients, {first.partition}, fleet {first.fleet}, "
        f"{first.aggregation} aggregation, {first.rounds} rounds"
    )
    console.print(comparison(title, groups, target))
    console.print("times are virtual; × is the ratio to the first method")
    console.print(f"runs: {place}\nplot: {picture}", soft_wrap=True)


def _seeds(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {text!r} is not a list of whole numbers such as 0,1,2") from None
    if min(found) < 0 or len(set(found)) < len(found):
        raise ConfigError(f"--seeds {text!r}: seeds must differ and be at least 0")
    return found


def _tasks(settings: Sequence[RunConfig]) -> dict[int, Task]:
    from paceline.tasks import load_task

    found: dict[int, Task] = {}
    for s in settings:
        if s.seed not in found:
            found[s.seed] = load_task(s.task, model=s.model, seed=s.seed, **s.task_options)
    return found


def _check(settings: Sequence[RunConfig], tasks: dict[int, Task]) -> None:
    """Prepare each method once, so that mismatches are reported before any training."""
    from paceline.run import prepare

    misfits: dict[str, list[str]] = {}
    for s in settings:
        if s.seed == settings[0].seed:
            try:
                prepare(s, task=tasks[s.seed]).fed.engine.close()
            except PlanError as error:
                for misfit in error.misfits:
                    misfits.setdefault(misfit, []).append(s.method)
    if misfits:
        raise PlanError([f"{', '.join(dict.fromkeys(methods))}: {misfit}" for misfit, methods in misfits.items()])
