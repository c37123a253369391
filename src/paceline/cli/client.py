"""`paceline client`: participate in a federation with local data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.server import Config
from paceline.cli.spelling import check_task

__all__ = ["client"]


def client(
    config: Config = None,
    enrol: Annotated[
        Path | None,
        typer.Option("--enrol", metavar="INVITATION", help="enrol with this invitation, then exit", show_default="none"),
    ] = None,
    renew: Annotated[
        str | None, typer.Option("--renew", metavar="HOST:PORT", help="renew the certificate there, then exit", show_default="none")
    ] = None,
    address: Annotated[
        str, typer.Option("--address", metavar="HOST:PORT", help="address for enrolment", show_default="the invitation's")
    ] = "",
) -> None:
    """Participate in a federation: connect to the server, answer the calls that this client's policy permits, and reconnect.

    SIGTERM makes it leave. docs/deploy.md describes the configuration.
    """
    from paceline.cli.show import out
    from paceline.core.address import Address, proxy_shown
    from paceline.deploy.settings import ClientConfig, load_config

    there = None if renew is None else Address.parse(renew, "--renew")
    where = Address.parse(address, "--address") if address else None
    settings = load_config(ClientConfig, config)
    if enrol is None and there is None:
        if settings.data.task:
            check_task(settings.data.task)
        from paceline.deploy.processes import run_client

        run_client(settings)
        return
    from paceline.deploy.identity import enrolment_client as enrolment

    folder, proxy = settings.client.folder, settings.client.proxy
    if proxy:
        out().print(f"through the proxy {proxy_shown(proxy)}", soft_wrap=True)
    if enrol is not None:
        given = enrolment.enrol(folder, enrol, where, proxy)
    else:
        assert there is not None
        given = enrolment.renew(folder, there, proxy)
    out().print(f"client {given.client} ({given.name}): certificate in {folder}", soft_wrap=True)
