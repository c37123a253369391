"""Server and client processes, from configuration to exit code."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from paceline.core.address import proxy_shown
from paceline.core.errors import PacelineError
from paceline.core.failures import class_of
from paceline.core.processes import begin, on_stop
from paceline.core.tree import rename_main
from paceline.core.wording import as_commands
from paceline.deploy.client.client import make_node, participate
from paceline.deploy.logs import Journal, logged_warnings
from paceline.deploy.server.database import ServerState
from paceline.deploy.server.events import Notes
from paceline.deploy.server.handshake_log import core_log
from paceline.deploy.server.server import FederationServer
from paceline.deploy.server.write_queue import BACK
from paceline.deploy.settings import ClientConfig, Logging, ServerConfig, load_config
from paceline.network.engine import Stopped
from paceline.run import Result, RunConfig
from paceline.trackers.base import Watch

__all__ = ["child", "run_client", "run_server"]


def run_server(config: ServerConfig) -> Result | None:
    """Serve one run until it ends; return its summary, or None if SIGTERM, SIGHUP or SIGINT stopped it first.

    Raises:
        PacelineError: the run failed.
    """
    journal, metrics = _watchers("server", config.logging)
    url = config.server.state or config.server.run / "state.db"
    state = ServerState(url, wait=BACK, warn=lambda why: journal("database_away", why=why))
    run = RunConfig.build({"on_error": "drop", **config.run, "engine": "grpc"}).fitted()
    notes = Notes(journal, metrics, state)
    try:
        with logged_warnings(journal), Watch(config.server.track, config.server.run.name, run) as watch:
            server = FederationServer(config, run, notes, observer=watch)
            on_stop(lambda _: server.stop())
            with core_log(notes):
                return watch.ended(server.go())
    except Stopped:
        journal("stopped")
        return None
    finally:
        state.close()
        if metrics is not None:
            metrics.close()


def run_client(config: ClientConfig) -> str:
    """Participate until the run has ended; return the reason.

    Raises:
        PacelineError: the client cannot participate.
    """
    journal, metrics = _watchers("client", config.logging)
    try:
        with logged_warnings(journal):
            node = make_node(config, journal, metrics)
            journal("dialling", client=node.runner.number, server=str(config.client.server), proxy=proxy_shown(config.client.proxy))
            ended = asyncio.run(participate(node))
        journal("ended", client=node.runner.number, why=ended)
        return ended
    finally:
        if metrics is not None:
            metrics.close()


def _watchers(role: str, logging: Logging) -> tuple[Journal, Any]:
    journal = Journal(role, logging.format, logging.level)
    if not logging.metrics:
        return journal, None
    from paceline.deploy.metrics import Metrics

    metrics = Metrics()
    journal("metrics", port=metrics.serve(logging.metrics))
    return journal, metrics


def child(role: str, config: Path, log: Path, commands: bool = False) -> None:
    """Run a server or client in a process started by `federate`, and exit the process.

    Args:
        role: ``server`` or ``client``.
        config: configuration file.
        log: file for its output. Its error is written next to it, as JSON with the suffix ``.error``.
        commands: whether messages are for a user of the `paceline` command.
    """
    begin()
    rename_main()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    try:
        with as_commands(commands):
            if role == "server":
                run_server(load_config(ServerConfig, config, {}))
            else:
                run_client(load_config(ClientConfig, config, {}))
    except PacelineError as error:
        log.with_suffix(".error").write_text(json.dumps([class_of(error), str(error)]))
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    os._exit(0)
