"""The `paceline` command: subcommands and error handling."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from paceline import __version__
from paceline.cli import (
    ca,
    client,
    compare,
    data,
    doctor,
    federate,
    listing,
    models,
    new,
    partition,
    predict,
    report,
    resume,
    run,
    schema,
    server,
    sweep,
)
from paceline.cli.exitcodes import epilog
from paceline.cli.show import err, show_error
from paceline.cli.signals import ending
from paceline.cli.spelling import correct
from paceline.core.errors import PacelineError
from paceline.core.wording import as_commands

__all__ = ["Commands", "app"]


class Commands(TyperGroup):
    """Command group that converts Paceline errors to a message and an exit code; other exceptions propagate."""

    debug = as_json = False
    words: tuple[str, ...] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Record ``--debug`` and ``--json`` at any position, so that they also apply to a malformed command line."""
        self.debug, self.as_json, self.words = "--debug" in args, "--json" in args, tuple(args)
        return super().parse_args(ctx, [a for a in args if a != "--debug"])

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; methods can be loaded from modules in the current folder."""
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            with as_commands():
                return super().invoke(ctx)
        except PacelineError as error:
            if self.debug:
                traceback.print_exc(file=sys.stderr)
            show_error(error, self.as_json)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as stopped:
            text, code = ending(stopped)
            err().print(text, soft_wrap=True, markup=False)
            raise typer.Exit(code) from None
        except Exception as error:
            self._correct(error)
            if self.as_json and hasattr(error, "format_message"):
                show_error(error, as_json=True)
                raise typer.Exit(getattr(error, "exit_code", 2)) from None
            raise

    def _correct(self, error: Any) -> None:
        """Add a suggestion to the error of an unknown option that belongs to the method, the task or the fleet."""
        context = getattr(error, "ctx", None)
        if not hasattr(error, "possibilities") or context is None or "task_option" not in {p.name for p in context.command.params}:
            return
        text = correct(error.option_name, self.words)
        if text:
            error.message, error.possibilities = f"No such option: {error.option_name}; {text}", None


app = typer.Typer(
    cls=Commands,
    name="paceline",
    epilog=epilog(),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"paceline {__version__}")
        raise typer.Exit


@app.callback()
def start(
    debug: Annotated[
        bool,
        typer.Option("--debug", help="show tracebacks of errors; accepted at any position", show_default="off"),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="print the version and exit",
            show_default="off",
        ),
    ] = False,
) -> None:
    """Secure federated learning that is not held back by its slowest client.

    Start with `paceline doctor`, `paceline methods` and `paceline run fedavg --task digits --rounds 5`.
    """


for command in (new.new, run.run, compare.compare, sweep.sweep, resume.resume, report.report, predict.predict, predict.export):
    app.command(rich_help_panel="Runs")(command)
for command in (listing.methods, listing.tasks, models.models, listing.metrics, partition.partition, schema.schema, doctor.doctor):
    app.command(rich_help_panel="Methods, tasks and data")(command)
app.add_typer(data.app, name="data", rich_help_panel="Methods, tasks and data")
for command in (server.server, client.client, federate.federate):
    app.command(rich_help_panel="Deployment")(command)
app.add_typer(ca.app, name="ca", rich_help_panel="Deployment")
