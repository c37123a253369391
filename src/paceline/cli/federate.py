"""`paceline federate`: run a real federation on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from paceline import registry
from paceline.cli.fields import ConfigFile, Options, SecureOptions, TaskOptions, completed, configuration, run_options
from paceline.cli.run import Json, Name, Out, Quiet, Replace, Track, _finish
from paceline.cli.signals import resumable
from paceline.core.parsing import pairs
from paceline.results.progress import LiveProgress

__all__ = ["federate"]

CLIENTS = 5

Faults = Annotated[
    list[str] | None,
    typer.Option(
        "--fault",
        metavar="KIND:client=N,...",
        help="inject a fault: kill, bandwidth, delay, slow, drop, duplicate, swap or corrupt; repeatable",
        show_default="none",
    ),
]
Keep = Annotated[bool, typer.Option("--keep", help="retain keys, configurations and logs next to the run", show_default="off")]


@run_options()
def federate(
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
    fault: Faults = None,
    keep: Keep = False,
    json: Json = False,
    quiet: Quiet = False,
    track: Track = None,
    **given: Any,
) -> None:
    """Train as a real federation on this machine: authority, server and clients as separate processes, over TLS.

    Takes the options of `run`; the result is bitwise identical. By default there are 5 clients.
    """
    spec = None if method is None else registry.parse("method", method)
    from paceline.run import RunConfig

    settings = configuration(
        ctx,
        given,
        config,
        method=spec.name if spec else None,
        options=(spec.options if spec else {}) | pairs(option),
        task_option=task_option,
        secure_option=secure_option,
    )
    chosen = settings.model_fields_set
    changes: dict[str, Any] = {"engine": "grpc"}
    if "clients" not in chosen:
        changes["clients"] = CLIENTS
    if "on_error" not in chosen:
        changes["on_error"] = "drop"
    settings = RunConfig.build({**settings.model_dump(exclude_unset=True), **changes}).fitted()
    from paceline.cli.folders import new_place
    from paceline.deploy.loopback import federate as carry_out

    default = f"federate-{settings.method}-{settings.task}-s{settings.seed}"
    with new_place(out, name, default, replace) as place, LiveProgress(quiet or json) as progress, resumable(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        progress.begin(settings.method, settings.rounds)
        summary = carry_out(settings, place, [progress, *(track or ())], faults=fault or (), keep=keep)
    _finish(summary, json)
