"""`paceline partition`: distribution of a task's samples over clients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from paceline.cli.fields import ConfigFile, TaskOptions, configuration, run_options
from paceline.cli.run import Json
from paceline.cli.show import out as console_out
from paceline.cli.show import percent, print_json, table

if TYPE_CHECKING:
    from paceline.data import Partition
    from paceline.tasks import Task

__all__ = ["partition"]

MOST_SHOWN = 60
"""Maximum number of clients with a row each; for more clients, quantiles are shown."""


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
            help="file of the plot; png, svg or pdf",
            show_default="runs/partition-TASK-PARTITION.png",
        ),
    ] = None,
    json: Json = False,
    **given: Any,
) -> None:
    """Show how the samples of a task are split over clients, and save a plot."""
    settings = configuration(ctx, given, config, task_option=task_option)
    from paceline.core.names import safe_name
    from paceline.data import partition_task
    from paceline.data.heterogeneity import unlikeness
    from paceline.data.plots import plot_partition
    from paceline.tasks import load_task

    task = load_task(settings.task, model=settings.model, seed=settings.seed, **settings.task_options)
    split = partition_task(
        task,
        settings.partition,
        settings.clients,
        settings.seed,
        settings.allow_empty,
        settings.client_test,
        settings.client_samples,
    )
    rows = _rows(split, task)
    default = Path("runs") / f"{safe_name(f'partition-{settings.task}-{split.name}')}.png"
    picture = plot_partition(out or default, split, task)
    unlike, used = unlikeness(split, task), int(split.sizes.sum()) / max(len(task.train), 1)
    if json:
        summary = {"task": task.name, "partition": split.name, "seed": settings.seed, "moved": split.moved, "used": used, **unlike}
        print_json({**summary, "plot": str(picture), "clients": rows})
        return
    console = console_out()
    title = f"{task.name} over {len(split)} clients: {split.name}, seed {settings.seed}"
    console.print(_each(title, rows) if len(rows) <= MOST_SHOWN else _quantiles(title, rows))
    if split.moved:
        console.print(f"{split.moved} samples were moved to clients without any (disable with --allow-empty)")
    if used < 1:
        console.print(f"{percent(used)} of the samples are used")
    told = ", ".join(f"{value:.3f} {name.removeprefix('kl_').replace('_', ' ')}" for name, value in unlike.items())
    if told:
        console.print(f"mean KL divergence of a client from the whole data, in nats: {told}")
    console.print(f"plot: {picture}", soft_wrap=True, markup=False)


def _rows(split: Partition, task: Task) -> list[dict[str, Any]]:
    """Return name, number of samples and classes, and largest class of each client."""
    names = task.classes or tuple(str(i) for i in range(task.num_classes)) or ("all",)
    rows = []
    for client, counts in enumerate(split.table(task)):
        train, test = split(client)
        total, top = int(counts.sum()), int(counts.argmax())
        rows.append(
            {
                "client": client,
                "name": split.owners[client] if split.owners else "",
                "samples": total,
                "train": len(train),
                "test": len(test),
                "classes": int((counts > 0).sum()),
                "largest_class": names[top] if total else None,
                "largest_share": int(counts[top]) / total if total else None,
            }
        )
    return rows


def _each(title: str, rows: list[dict[str, Any]]) -> Table:
    figures = ("samples", "train", "test", "classes", "its share")
    shown = table(title, "client", *figures[:4], "largest class", "its share", right=figures)
    for row in rows:
        name = f"{row['client']} {row['name']}".rstrip()
        shown.add_row(
            escape(name),
            *(str(row[figure]) for figure in figures[:4]),
            escape(row["largest_class"] or "–"),
            percent(row["largest_share"]),
        )
    return shown


def _quantiles(title: str, rows: list[dict[str, Any]]) -> Table:
    columns = ("minimum", "25 %", "median", "75 %", "maximum")
    shown = table(title, "per client", *columns, right=columns)
    for figure in ("samples", "train", "test", "classes"):
        values = sorted(row[figure] for row in rows)
        shown.add_row(figure, *(str(values[round(q * (len(values) - 1) / 4)]) for q in range(5)))
    return shown
