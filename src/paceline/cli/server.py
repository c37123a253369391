"""`paceline server`: serve one run to real clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.run import Json
from paceline.cli.spelling import check_run

__all__ = ["Config", "server"]

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.toml", help="configuration; PACELINE_TABLE__KEY wins over it", show_default="none")
]


def server(config: Config = None, json: Json = False) -> None:
    """Serve a run to the clients of a federation; killed and started again, it goes on where it was.

    SIGTERM ends it as soon as its state is safe. docs/deploy.md shows the configuration.
    """
    from paceline.cli.run import _finish
    from paceline.deploy.settings import ServerConfig, load_config

    settings = load_config(ServerConfig, config)
    check_run(settings.run, f"{config}, table [run]")
    from paceline.deploy.processes import run_server

    summary = run_server(settings)
    if summary is not None:
        _finish(summary, json)
