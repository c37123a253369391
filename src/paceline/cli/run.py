"""`paceline run`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from paceline import registry
from paceline.cli.fields import ConfigFile, Options, SecureOptions, TaskOptions, completed, configuration, run_options
from paceline.cli.show import bytes_text, out, percent, print_json, score_text, seconds_text, table
from paceline.cli.signals import resumable
from paceline.core.parsing import pairs
from paceline.results.progress import LiveProgress

if TYPE_CHECKING:
    from paceline.results.result import Result

__all__ = ["Axis", "Json", "Name", "Out", "Quiet", "Replace", "Track", "run"]

Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="folder for runs")]
Name = Annotated[str | None, typer.Option("--name", help="name of the run's folder", show_default="METHOD-TASK-sSEED")]
Replace = Annotated[bool, typer.Option("--replace", help="replace an earlier run of that name", show_default="off")]
Json = Annotated[bool, typer.Option("--json", help="print only JSON on stdout", show_default="off")]
Profile = Annotated[bool, typer.Option("--profile", help="show wall time by section, and the time of GPUs", show_default="off")]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="TRACKER[:PLACE]",
        help="write figures to tensorboard, mlflow or wandb",
        show_default="none",
    ),
]
Axis = Annotated[
    Literal["time", "rounds", "bytes"], typer.Option("--x", help="horizontal axis of the plot: virtual time, rounds, or bytes")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="show no progress", show_default="off")]


@run_options()
def run(
    ctx: typer.Context,
    method: Annotated[
        str | None,
        typer.Argument(
            help="a method, or METHOD:field=value,...; see `paceline methods`",
            show_default="the file's, else fedavg",
            autocompletion=completed("method"),
        ),
    ] = None,
    option: Options = None,
    task_option: TaskOptions = None,
    secure_option: SecureOptions = None,
    config: ConfigFile = None,
    out: Out = Path("runs"),
    name: Name = None,
    replace: Replace = False,
    json: Json = False,
    quiet: Quiet = False,
    profile: Profile = False,
    track: Track = None,
    **given: Any,
) -> None:
    """Train one model with one method and keep the run in a folder."""
    spec = None if method is None else registry.parse("method", method)
    settings = configuration(
        ctx,
        given,
        config,
        method=spec.name if spec else None,
        options=(spec.options if spec else {}) | pairs(option),
        task_option=task_option,
        secure_option=secure_option,
    )
    settings = settings.fitted()
    from paceline.cli.folders import new_place
    from paceline.run import run as carry_out
    from paceline.store import RunFolder

    with new_place(out, name, settings.label, replace) as place, LiveProgress(quiet or json) as progress, resumable(place):
        progress.begin(settings.method, settings.rounds)
        folder, watch = RunFolder.create(place.parent, place.name), [progress, *(track or ())]
        with _profiled(profile):
            summary = carry_out(settings, folder=folder, observer=watch, progress=False)
    _finish(summary, json, profile)


@contextlib.contextmanager
def _profiled(wanted: bool) -> Iterator[None]:
    """Measure the time of GPUs by section, if wanted, in runs that are prepared in the block."""
    from paceline.core.profiling import spent

    before, spent.watches = spent.watches, wanted
    try:
        yield
    finally:
        spent.watches = before
        spent.watch("cpu")


def _profile(summary: Result) -> None:
    """Print the wall time of the rounds by section: in this process, in all workers together, and on GPUs."""
    from paceline.core.profiling import GPU

    sides = {"this process": summary.spent.get("here", {}), "workers": summary.spent.get("workers", {})}
    on_gpus: dict[str, float] = {}
    for side in sides.values():
        for name, seconds in side.items():
            if name.startswith(GPU):
                on_gpus[name.removeprefix(GPU)] = on_gpus.get(name.removeprefix(GPU), 0.0) + seconds
    columns = sides | ({"GPU": on_gpus} if on_gpus else {})
    shown = table("Wall time by section", "section", *columns, right=tuple(columns))
    parts = {name for side in columns.values() for name in side if not name.startswith(GPU)}
    for part in sorted(parts, key=lambda p: -sum(side.get(p, 0.0) for side in sides.values())):
        shown.add_row(part, *(seconds_text(side[part]) if part in side else "" for side in columns.values()))
    out().print(shown)


def _named(figure: str) -> str:
    """Return a figure's name as the heading of a row."""
    text = figure.replace("_", " ")
    return text[:1].upper() + text[1:]


def _extra(figure: str, main: str) -> bool:
    """Return whether a figure has a row of its own: one of a further metric, not of a part, a group or the clients."""
    known = figure in ("accuracy", "loss", main) or figure.endswith("_resolution")
    return not known and not figure.startswith(("worst_", "part_", "group_", "client_")) and figure != "adjusted_rand"


def _finish(summary: Result, as_json: bool, profile: bool = False) -> None:
    """Print the outcome of a run, as a table or as JSON."""
    if as_json:
        print_json(summary.as_dict() | {"figures": summary.figures})
        return
    from paceline.cli.folders import plot

    judged = sum(record.get("evaluation_seconds", 0.0) for record in summary.history)
    shown = table(f"{summary.method} on {summary.task}, seed {summary.seed}", "Metric", "Value", right=("Value",))
    for label, text in (
        *(
            ()
            if summary.metric in ("accuracy", "loss")
            else ((_named(summary.metric), score_text(summary.score, summary.in_percent)),)
        ),
        *((("Accuracy", percent(summary.accuracy)),) if summary.metric == "accuracy" or math.isfinite(summary.accuracy) else ()),
        ("Loss", f"{summary.loss:.4f}"),
        *((_named(name), f"{value:.4g}") for name, value in summary.figures.items() if _extra(name, summary.metric)),
        ("Rounds", f"{summary.rounds} ({summary.stopped})"),
        ("Time per round (virtual)", seconds_text(summary.round_seconds)),
        *([("Time of evaluation (virtual)", seconds_text(judged))] if judged else []),
        ("Total time (virtual)", seconds_text(summary.total_seconds)),
        (f"Time to target {summary.metric.replace('_', ' ')} (virtual)", seconds_text(summary.target_seconds)),
        ("Total wall time (this machine)", seconds_text(summary.wall_seconds)),
        ("Client training", f"{summary.chunk} clients per stack" if summary.chunk > 1 else "one client at a time"),
        ("Stacking", summary.path),
        ("Bytes up", bytes_text(summary.bytes_up)),
        ("Bytes down", bytes_text(summary.bytes_down)),
        ("Model SHA-256", summary.model_sha256[:16] + "…"),
    ):
        shown.add_row(label, text)
    console = out()
    console.print(shown)
    if profile:
        _profile(summary)
    console.print(f"run: {summary.run}", soft_wrap=True)
    console.print(f"plot: {plot(Path(summary.run))}", soft_wrap=True)
