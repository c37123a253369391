"""`paceline sweep`: methods with many settings, the best first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline import registry
from paceline.cli.compare import Methods, read_seeds
from paceline.cli.fields import ConfigFile, SecureOptions, TaskOptions, configuration, run_options
from paceline.cli.run import Axis, Json, Out, Quiet, Replace
from paceline.cli.show import err, print_json
from paceline.cli.show import out as console_out
from paceline.results.progress import LiveProgress

if TYPE_CHECKING:
    from paceline.results.comparison import Comparison

__all__ = ["Workers", "go_on", "show", "sweep"]

Workers = Annotated[int, typer.Option("--workers", min=1, help="runs of a sweep at the same time, each in a process of its own")]


@run_options(without=("seed", "workers"))
def sweep(
    ctx: typer.Context,
    methods: Methods,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--option",
            metavar="NAME=VALUES",
            help="a setting and what to try: 0.01,0.1 or a range 0.001..1, log:0.001..1, 1..10; a field of the methods, or of the run; "
            "repeatable",
            show_default="none",
        ),
    ] = None,
    random: Annotated[
        int | None, typer.Option("--random", min=1, help="settings drawn at random", show_default="all combinations")
    ] = None,
    search_seed: Annotated[int, typer.Option("--search-seed", min=0, help="seed of the random draws")] = 0,
    seeds: Annotated[str, typer.Option("--seeds", metavar="N|N,N,...", help="number of seeds, or the seeds")] = "1",
    workers: Workers = 1,
    top: Annotated[int, typer.Option("--top", min=1, help="rows of the table")] = 10,
    task_option: TaskOptions = None,
    secure_option: SecureOptions = None,
    config: ConfigFile = None,
    out: Out = Path("runs"),
    name: Annotated[str | None, typer.Option("--name", help="name of the sweep's folder", show_default="sweep-TASK")] = None,
    replace: Replace = False,
    x: Axis = "time",
    json: Json = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Run methods with many settings and seeds; print a table of the best, with means ± standard deviations over the seeds.

    Repeat the command with the same --name, or `paceline resume FOLDER`, to go on with a sweep that was stopped.
    """
    from paceline.results.arguments import Arguments
    from paceline.results.side_by_side import for_seeds
    from paceline.results.space import parse_space
    from paceline.studies import place_of_sweep, run_all, settings_of

    base = []
    for spec in (registry.parse("method", text) for text in methods):
        made = configuration(
            ctx, given, config, method=spec.name, options=spec.options, task_option=task_option, secure_option=secure_option
        )
        base.append(Arguments(made.fitted()))
    asked = for_seeds(settings_of(base, parse_space(option or ()), random, search_seed), read_seeds(seeds, count=True))
    default = f"sweep-{asked[0].config.task}"
    with place_of_sweep(out, name, default, replace) as place, LiveProgress(quiet or json) as progress, _resumable(place):
        found = run_all(asked, place, progress, kind="sweep", workers=workers).ranked()
    show(found, json, top, x)


def go_on(place: Path, json: bool, quiet: bool, workers: int = 1) -> None:
    """Go on with a sweep or a comparison."""
    from paceline.studies import continued

    with LiveProgress(quiet or json) as progress, _resumable(place):
        found = continued(place, progress, workers)
    show(found, json, 10)


def show(found: Comparison, json: bool, top: int, x: str = "time") -> None:
    """Print a sweep's table and failures, and save its plot.

    Args:
        found: the sweep, the best first.
        json: print rows and failures as JSON.
        top: rows of the table.
        x: axis of the plot.
    """
    if json:
        print_json({"rows": found.rows, "best": found.best, "failed": found.failed, "folder": str(found.folder)})
        return
    console = console_out()
    console.print(found.table(top))
    if len(found.groups) > top:
        console.print(f"the best {top} of {len(found.groups)}")
    for label, error in found.failed.items():
        err().print(f"failed: {label}: {error}", markup=False, soft_wrap=True)
    picture = found.plot_best(top, x)
    console.print(f"runs: {found.folder}\nplot: {picture}", soft_wrap=True)


@contextmanager
def _resumable(place: Path) -> Iterator[None]:
    """Context manager: attach the folder to an interruption, if the sweep can go on."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        if (place / "comparison.json").is_file():
            stopped.add_note(str(place))
        raise
