"""`paceline resume`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.run import Json, Quiet, Track, _finish
from paceline.cli.signals import resumable
from paceline.cli.sweep import Workers, go_on
from paceline.core.errors import ConfigError
from paceline.results.progress import LiveProgress

if TYPE_CHECKING:
    from paceline.results.result import Result

__all__ = ["resume"]


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run, a comparison or a sweep", show_default=False)],
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=1, help="extend the run to this number of rounds in total", show_default="as configured"),
    ] = None,
    workers: Workers = 1,
    json: Json = False,
    quiet: Quiet = False,
    track: Track = None,
) -> None:
    """Resume a stopped or killed run from its last checkpoint, or extend one; the result is bitwise that of an undisturbed run."""
    from paceline.store import RunFolder
    from paceline.store.places import COMPARISON

    if os.path.isfile(run / COMPARISON):
        if rounds is not None:
            raise ConfigError(f"{run} contains several runs; extend one of them")
        go_on(run, json, quiet, workers)
        return
    carry_on: Callable[..., Result]
    if RunFolder.open(run).read_config().get("engine") == "grpc":
        from paceline.deploy.loopback import resume as carry_on
    else:
        from paceline.run import resume as carry_on
    with LiveProgress(quiet or json) as progress, resumable(run):
        progress.begin(run.name)
        summary = carry_on(run, [progress, *(track or ())], rounds=rounds)
    _finish(summary, json)
