"""`paceline report`: tables and plots of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.run import Axis, Json
from paceline.cli.show import out as console_out
from paceline.cli.show import print_json
from paceline.core.errors import ConfigError

__all__ = ["report"]


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="folders of runs, or of comparisons", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="folder for the plot of several runs",
            show_default="the first RUN",
        ),
    ] = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            "--target-accuracy", help="accuracy whose time is reported", show_default="the highest that every run reached"
        ),
    ] = None,
    target_score: Annotated[
        float | None,
        typer.Option("--target-score", help="value of the primary metric whose time is reported", show_default="the same"),
    ] = None,
    x: Axis = "time",
    json: Json = False,
) -> None:
    """Show one or more finished runs as a table, and save their plots."""
    if target_accuracy is not None and not 0 < target_accuracy <= 1:
        raise ConfigError(f"--target-accuracy {target_accuracy} is not between 0 and 1")
    if target_accuracy is not None and target_score is not None:
        raise ConfigError("--target-accuracy and --target-score exclude each other; set one of them")
    from paceline.cli.folders import entries_of, plot
    from paceline.results.comparison import Comparison

    found = {str(entry.summary["run"]): entry for path in runs for entry in entries_of(path)}
    entries = list(found.values())
    pictures = [plot(Path(path), x) for path in found]
    others = {entry.main.name for entry in entries} - {"accuracy"}
    if target_accuracy is not None and others:
        raise ConfigError(f"--target-accuracy is of accuracy, but {', '.join(sorted(others))} is primary; use --target-score")
    made = Comparison(entries, "Finished runs", target_accuracy if target_score is None else target_score)
    folder = out or runs[0]
    if len(entries) > 1:
        pictures.append(folder / "compare.png")
        made.plot(pictures[-1], x)
    picture = folder / "round.png" if len(entries) > 1 else pictures[0].with_name("round.png")
    if made.plot_round(picture):
        pictures.append(picture)
    if json:
        print_json([{**e.summary, "label": label} for e, label in zip(entries, made.labels, strict=True)])
        return
    console = console_out()
    console.print(made.table())
    for picture in pictures:
        console.print(f"plot: {picture}", soft_wrap=True)
