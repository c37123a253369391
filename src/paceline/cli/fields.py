"""The options that decide a run, for every command that takes them.

They mirror `paceline.run.RunConfig`, which cannot be imported for a help page because it needs torch; a test
holds names, defaults and texts together.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli.values import pairs, read_toml

if TYPE_CHECKING:
    from paceline.run import RunConfig

__all__ = [
    "FIELDS",
    "ConfigFile",
    "Option",
    "Options",
    "SecureOptions",
    "TaskOptions",
    "configuration",
    "run_options",
]

TASK, ROUNDS, SUMS, CLIENTS, JUDGED = (
    "Task and data",
    "Rounds",
    "Sums",
    "Devices and workers",
    "Evaluation and end",
)


@dataclass(frozen=True)
class Option:
    """One field of `RunConfig` as an option; `absent` says what a default of None means."""

    field: str
    kind: type
    default: Any
    panel: str
    help: str
    absent: str = ""

    def parameter(self) -> inspect.Parameter:
        """Return the option as a parameter that typer understands."""
        flag = "--" + self.field.replace("_", "-")
        flags = [f"{flag}/--no-{flag[2:]}"] if self.kind is bool else [flag]
        shown: bool | str = self.absent if self.default is None else True
        info = typer.Option(
            self.default, *flags, help=self.help, show_default=shown, rich_help_panel=self.panel
        )
        annotation: Any = self.kind if self.default is not None else self.kind | None
        return inspect.Parameter(
            self.field, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation
        )


FIELDS = (
    Option("task", str, "mnist-5k", TASK, "task, see `paceline tasks`, or kind:/path of your own files"),
    Option("model", str, None, TASK, "reference model; the task's own by default", "the task's own"),
    Option(
        "partition",
        str,
        "iid",
        TASK,
        "iid, dirichlet:ALPHA, shards:K, quantity:ALPHA, groups:0-4/5-9, longtail:0.05/0.5 or natural",
    ),
    Option("clients", int, 20, TASK, "size of the population"),
    Option("client_test", float, 0.0, TASK, "share of a client's samples set aside for tests"),
    Option("client_samples", int, None, TASK, "most samples of a client; the others are left out", "no limit"),
    Option("allow_empty", bool, False, TASK, "let clients have no samples"),
    Option("cohort", int, 20, ROUNDS, "clients asked in each round"),
    Option("rounds", int, 30, ROUNDS, "rounds"),
    Option("seed", int, 0, ROUNDS, "seed of every random stream"),
    Option("checkpoint_every", int, 1, ROUNDS, "rounds between checkpoints"),
    Option("aggregation", str, "plain", SUMS, "plain, secure or secure-arithmetic"),
    Option("sum_bound", float, 2.0**20, SUMS, "largest |weight x value| in an exact sum"),
    Option("quorum", int, 1, SUMS, "least number of replies in a sum"),
    Option("least_group", int, 1, SUMS, "least size of a group that may be summed on its own"),
    Option("on_error", str, "stop", SUMS, "a client's error stops the run, or drops the client"),
    Option("deadline", float, None, SUMS, "virtual seconds after which a reply is dropped", "no deadline"),
    Option(
        "fleet", str, "homogeneous", CLIENTS, "homogeneous, stragglers or mobile, with options after a colon"
    ),
    Option("adversary", str, None, CLIENTS, "Byzantine clients, such as signflip:0.2", "everybody honest"),
    Option("measured", bool, False, CLIENTS, "time from measured seconds in place of FLOPs"),
    Option("engine", str, "local", CLIENTS, "local or debug"),
    Option("workers", int, 1, CLIENTS, "worker processes; 1 works in this process"),
    Option("threads", int, 1, CLIENTS, "torch threads of each worker"),
    Option("device", str, "cpu", CLIENTS, "torch device"),
    Option(
        "evaluation",
        str,
        "auto",
        JUDGED,
        "central, federated (the clients' data), clients (their own models), clients-central or auto",
    ),
    Option("eval_every", int, 1, JUDGED, "rounds between evaluations"),
    Option("target_accuracy", float, None, JUDGED, "accuracy whose virtual time is reported", "none"),
    Option("stop_at_target", bool, False, JUDGED, "end once the target accuracy is reached"),
    Option("patience", int, None, JUDGED, "end after so many evaluations without a better accuracy", "never"),
)
"""One option for each field of `RunConfig` but the method and the three tables of options."""

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        help="read the run from this file; options given here win",
        show_default="none",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="NAME=VALUE",
        help="a field of the method; may be given again",
        show_default="none",
    ),
]
TaskOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--task-option",
        metavar="NAME=VALUE",
        help="an option of the task; may be given again",
        show_default="none",
        rich_help_panel=TASK,
    ),
]
SecureOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--secure-option",
        metavar="NAME=VALUE",
        help="an option of secure aggregation; may be given again",
        show_default="none",
        rich_help_panel=SUMS,
    ),
]


def run_options(
    *only: str, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `FIELDS`, all or `only` some; they reach it through its ``**given``."""
    chosen = [o.parameter() for o in FIELDS if (not only or o.field in only) and o.field not in without]

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def extended(**values: Any) -> None:
            command(**values)

        signature = inspect.signature(command, eval_str=True)
        own = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in signature.parameters.values()
            if p.name != "given"
        ]
        extended.__signature__ = inspect.Signature([*own, *chosen])  # type: ignore[attr-defined]
        extended.__annotations__ = {p.name: p.annotation for p in [*own, *chosen]}
        return extended

    return extend


def configuration(
    ctx: typer.Context,
    given: Mapping[str, Any],
    config: Path | None,
    *,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    task_option: list[str] | None = None,
    secure_option: list[str] | None = None,
) -> RunConfig:
    """Return the configuration of a file under what was given on the command line, which wins.

    Raises `ConfigError` for wrong values, `UnknownNameError` for a field that does not exist.
    """
    from paceline.run import RunConfig

    values = {} if config is None else read_toml(config)
    values |= {name: value for name, value in given.items() if _typed(ctx, name)}
    tables = {"options": options or {}, "task_options": pairs(task_option), "secure": pairs(secure_option)}
    for name, table in tables.items():
        if table:
            values[name] = {**values.get(name, {}), **table}
    if method is not None:
        values["method"] = method
    return RunConfig.build(values)


def _typed(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
