"""Run options: the fields of `RunConfig`, for every command that takes them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from paceline import registry
from paceline.cli.spelling import check_run
from paceline.core.config import PANELS, RunConfig
from paceline.core.parsing import pairs, read_toml

__all__ = [
    "FIELDS",
    "ConfigFile",
    "Option",
    "Options",
    "SecureOptions",
    "TaskOptions",
    "completed",
    "configuration",
    "run_options",
]


@dataclass(frozen=True)
class Option:
    """One field of `RunConfig` as a command-line option.

    `absent` describes a default of None; `repeat` is the name of the option for one entry of a list.
    """

    field: str
    kind: type
    default: Any
    panel: str
    help: str
    absent: str = ""
    repeat: str = ""

    def parameter(self) -> inspect.Parameter:
        """Return the option as a parameter for typer."""
        if self.repeat:
            return self._repeated()
        flag = "--" + self.field.replace("_", "-")
        flags = [f"{flag}/--no-{flag[2:]}"] if self.kind is bool else [flag]
        shown: bool | str = self.absent if self.default is None else True
        known = completed(self.field) if self.field in registry.KINDS else None
        info = typer.Option(
            self.default, *flags, help=self.help, show_default=shown, rich_help_panel=self.panel, autocompletion=known
        )
        annotation: Any = self.kind if self.default is not None else self.kind | None
        return inspect.Parameter(self.field, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation)

    def _repeated(self) -> inspect.Parameter:
        known = completed(self.repeat) if self.repeat in registry.KINDS else None
        info = typer.Option(
            f"--{self.repeat}",
            metavar="NAME[:OPTION=VALUE,...]",
            help=f"{self.help}; repeatable",
            show_default="none",
            rich_help_panel=self.panel,
            autocompletion=known,
        )
        return inspect.Parameter(
            self.field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[list[str] | None, info]
        )


def completed(kind: registry.Kind) -> Callable[[str], list[str]]:
    """Return what a shell completes the names of a kind with."""

    def starting(incomplete: str) -> list[str]:
        return [name for name in registry.names(kind) if name.startswith(incomplete)]

    return starting


def _options() -> tuple[Option, ...]:
    found = []
    for name, spec in RunConfig.model_fields.items():
        extra = spec.json_schema_extra
        if isinstance(extra, dict):  # the others have dedicated options
            kinds = [k for k in (get_args(spec.annotation) or (spec.annotation,)) if k is not type(None)]
            kind = kinds[0] if isinstance(kinds[0], type) else str  # of the choices of a Literal
            texts = [str(extra[key]) for key in ("panel", "absent", "repeat")]
            found.append(Option(name, kind, spec.default, texts[0], str(spec.description), *texts[1:]))
    return tuple(found)


FIELDS = _options()
"""One option for each field of `RunConfig`, except the method and the three tables of options."""

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        help="read the run from this file; command-line options take precedence",
        show_default="none",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="NAME=VALUE",
        help="a field of the method; repeatable",
        show_default="none",
    ),
]
TaskOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--task-option",
        metavar="NAME=VALUE",
        help="an option of the task; repeatable",
        show_default="none",
        rich_help_panel=PANELS[0],
    ),
]
SecureOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--secure-option",
        metavar="NAME=VALUE",
        help="an option of secure aggregation; repeatable",
        show_default="none",
        rich_help_panel=PANELS[2],
    ),
]


def run_options(*only: str, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: add the options of `FIELDS`, all or `only` some, to a command, which receives them as ``**given``."""
    chosen = [o.parameter() for o in FIELDS if (not only or o.field in only) and o.field not in without]

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def extended(**values: Any) -> None:
            command(**values)

        signature = inspect.signature(command, eval_str=True)
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values() if p.name != "given"]
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
    """Return the configuration of a file, overridden by the command line.

    Args:
        ctx: context of the command.
        given: values of the run options.
        config: configuration file, or None.
        method: name of the method, if given.
        options: fields of the method.
        task_option: options of the task, as ``name=value``.
        secure_option: options of secure aggregation, as ``name=value``.

    Raises:
        ConfigError: invalid values.
        UnknownNameError: unknown field.
    """
    values = {} if config is None else read_toml(config)
    values |= {name: value for name, value in given.items() if _typed(ctx, name)}
    tables = {"options": options or {}, "task_options": pairs(task_option), "secure": pairs(secure_option)}
    for name, table in tables.items():
        if table:
            values[name] = {**values.get(name, {}), **table}
    if method is not None:
        values["method"] = method
    check_run(values, str(config or ""))
    return RunConfig.build(values)


def _typed(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
