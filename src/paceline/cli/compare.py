"""`paceline compare`: several methods and seeds in one table and one plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from paceline import registry
from paceline.cli.fields import ConfigFile, Options, SecureOptions, TaskOptions, completed, configuration, run_options
from paceline.cli.run import Axis, Json, Out, Quiet, Replace
from paceline.cli.show import out as console_out
from paceline.cli.show import print_json
from paceline.cli.signals import resumable
from paceline.core.errors import ConfigError
from paceline.core.parsing import pairs
from paceline.results.progress import LiveProgress

__all__ = ["Methods", "compare", "read_seeds"]


Methods = Annotated[
    list[str],
    typer.Argument(
        metavar="METHOD...",
        help="methods, each as NAME or NAME:field=value,...; see `paceline methods`",
        show_default=False,
        autocompletion=completed("method"),
    ),
]


@run_options(without=("seed",))
def compare(
    ctx: typer.Context,
    methods: Methods,
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
    x: Axis = "time",
    json: Json = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Run several methods on the same clients, devices and seeds; print a table and save a plot.

    Figures are means ± standard deviations over the seeds; × is the ratio to the first method. Without
    --target-accuracy or --target-score, the time is to the best rounded value that every run reached.
    """
    common = pairs(option)
    settings = []
    for spec in (registry.parse("method", text) for text in methods):
        base = configuration(
            ctx, given, config, method=spec.name, options=common | spec.options,
            task_option=task_option, secure_option=secure_option,
        )  # fmt: skip
        settings += [base.fitted().model_copy(update={"seed": seed}) for seed in read_seeds(seeds)]
    from paceline.results.arguments import Arguments
    from paceline.store.places import new_place
    from paceline.studies import run_all

    with (
        new_place(out, name, f"compare-{settings[0].task}", replace) as place,
        LiveProgress(quiet or json) as progress,
    ):
        made = run_all([Arguments(settled) for settled in settings], place, progress, resumable)
    picture = place / "compare.png"
    made.plot(picture, x)
    pictures = [picture, *([place / "round.png"] if made.plot_round(place / "round.png") else [])]
    if json:
        print_json([{**entry.summary, "label": label} for entry, label in zip(made.entries, made.labels, strict=True)])
        return
    console = console_out()
    console.print(made.table())
    console.print("times are virtual; × is the ratio to the first method")
    console.print(f"runs: {place}", soft_wrap=True)
    for picture in pictures:
        console.print(f"plot: {picture}", soft_wrap=True)


def read_seeds(text: str, count: bool = False) -> list[int]:
    """Return the seeds of an option.

    Args:
        text: as typed.
        count: whether a single number is a number of seeds.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {text!r} is not a list of whole numbers such as 0,1,2") from None
    if count and len(found) == 1 and found[0] > 0:
        return list(range(found[0]))
    if min(found) < 0 or len(set(found)) < len(found) or (count and len(found) == 1):
        raise ConfigError(f"--seeds {text!r}: seeds must differ and be at least 0")
    return found
