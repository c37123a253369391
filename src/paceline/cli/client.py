"""`paceline client`: participate in a federation with local data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.server import Config
from paceline.cli.spelling import check_task

if TYPE_CHECKING:
    from paceline.deploy.settings import ClientConfig

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
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="dry run: read the data by the schema, show what would be shared, train one batch, then exit",
            show_default="off",
        ),
    ] = False,
    schema: Annotated[
        Path | None,
        typer.Option(
            "--schema", metavar="FILE.json", help="schema for --check", show_default="data.schema_file, else the last run's"
        ),
    ] = None,
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
    if check:
        _check(settings, schema)
        return
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


def _check(settings: ClientConfig, schema: Path | None) -> None:
    from paceline.cli.schema import show_schema
    from paceline.cli.show import out
    from paceline.deploy.client.dry_run import dry_run

    if settings.data.task:
        check_task(settings.data.task)
    done = dry_run(settings, schema)
    console = out()
    if done.schema is not None:
        show_schema(done.schema, done.notes)
    origin = (
        f"schema {done.compared}: the data match"
        if done.compared
        else "no schema to compare with: this is what the data are taken for"
    )
    console.print(origin, markup=False, soft_wrap=True)
    console.print(f"samples: {done.samples[0]}, of which {done.samples[1]} for training", markup=False)
    console.print("a run would share:", markup=False)
    for line in done.shared:
        console.print(f"- {line}", markup=False, soft_wrap=True)
    console.print(f"one batch: loss {done.loss[0]:.4f}, after one step {done.loss[1]:.4f}", markup=False)
