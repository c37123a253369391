"""`paceline client`: take part in a federation with one's own data."""

from __future__ import annotations

from paceline.cli.server import Config

__all__ = ["client"]


def client(config: Config = None) -> None:
    """Take part in a federation: dial the server, answer what this client's policy allows, come back when it breaks.

    SIGTERM makes it leave. docs/deploy.md shows the configuration.
    """
    from paceline.deploy.processes import run_client
    from paceline.deploy.settings import ClientConfig, load_config

    run_client(load_config(ClientConfig, config))
