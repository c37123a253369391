"""`paceline partition`: what each client would get."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.cli.fields import ConfigFile, TaskOptions, configuration, run_options
from paceline.cli.run import Json
from paceline.cli.show import out as console_out
from paceline.cli.show import print_json, table

__all__ = ["partition"]


@run_options("task", "model", "partition", "clients", "client_test", "allow_empty", "seed")
def partition(
    ctx: typer.Context,
    task_option: TaskOptions = None,
    config: ConfigFile = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.png",
            help="where the plot goes",
            show_default="runs/partition-TASK-PARTITION.png",
        ),
    ] = None,
    json: Json = False,
    **given: Any,
) -> None:
    """Show how the samples of a task are split over clients, and save a plot of it."""
    settings = configuration(ctx, given, config, task_option=task_option)
    from paceline.data import partition_task
    from paceline.tasks import load_task

    task = load_task(settings.task, model=settings.model, seed=settings.seed, **settings.task_options)
    split = partition_task(
        task, settings.partition, settings.clients, settings.seed, settings.allow_empty, settings.client_test
    )
    print(split)
