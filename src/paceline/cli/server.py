"""`paceline server`: serve one run to real clients."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.run import Json
from paceline.cli.spelling import check_run
from paceline.core.errors import ConfigError

if TYPE_CHECKING:
    from paceline.core.config import RunConfig
    from paceline.deploy.settings import ServerConfig

__all__ = ["Config", "run_of", "server"]

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE.toml", help="configuration; variables PACELINE_TABLE__KEY take precedence", show_default="none"
    ),
]


def server(config: Config = None, json: Json = False) -> None:
    """Serve a run to the clients of a federation; after a restart it resumes where it was.

    SIGTERM stops it as soon as its state is safe. docs/deploy.md describes the configuration.
    """
    from paceline.cli.run import _finish
    from paceline.deploy.settings import ServerConfig, load_config

    settings = load_config(ServerConfig, config)
    run_of(settings, config)
    from paceline.deploy.processes import run_server

    summary = run_server(settings)
    if summary is not None:
        _finish(summary, json)


def run_of(settings: ServerConfig, path: Path | None, environment: Mapping[str, str] = os.environ) -> RunConfig:
    """Return the run of a server's configuration.

    Args:
        settings: configuration of the server.
        path: its file.
        environment: environment variables.

    Raises:
        ConfigError: the run is invalid; the message contains the file and the variables that set parts of it.
    """
    from paceline.core.config import RunConfig
    from paceline.deploy.settings import PREFIX

    where = f"{path or 'the environment'}, table [run]"
    given = sorted(name for name in environment if name.startswith(f"{PREFIX}RUN__"))
    if given:
        where += f" with {', '.join(given)}"
    check_run(settings.run, where)
    try:
        return RunConfig.build(settings.run).fitted()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
