"""Checks of `paceline doctor --config`: everything that the start of a server or client would refuse, and ports in use."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.cli.machine import Finding, writable
from paceline.cli.server import run_of
from paceline.core.errors import PacelineError
from paceline.core.parsing import read_toml

if TYPE_CHECKING:
    from paceline.deploy.settings import ClientConfig, ServerConfig

__all__ = ["look_at"]


def look_at(path: Path) -> Iterator[Finding]:
    """Check the configuration of a server, or of a client if it has a client's tables.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    from paceline.deploy.settings import ClientConfig, ServerConfig, load_config

    if {"client", "data"} & read_toml(path).keys():
        yield from _client(load_config(ClientConfig, path))
    else:
        yield from _server(load_config(ServerConfig, path), path)


def _try(what: str, cure: str, look: Callable[[], str]) -> Finding:
    """Return the result of `look` as a successful finding, or its error as a failed one."""
    try:
        return Finding(what, "ok", look())
    except PacelineError as error:
        return Finding(what, "missing", str(error), cure)


def _server(config: ServerConfig, path: Path) -> Iterator[Finding]:
    from paceline.deploy.identity.admission import Gate
    from paceline.deploy.identity.trust import Trust
    from paceline.deploy.server.attendance import check_expected
    from paceline.deploy.server.server import LOCAL_AUTHORITY_WARNING, invited

    part = config.server
    lists = part.ca or part.folder

    def run() -> str:
        from paceline.assembly import assemble
        from paceline.deploy.federated_fields import check_federated

        found = run_of(config, path)
        check_federated(found)
        assemble(found)
        return f"{found.method} on {found.task}, {found.clients} clients"

    def gate() -> Gate:
        return Gate(Trust.load(part.folder / "trust.pem"), part.directory or lists / "directory", part.crl or lists / "crl.pem")

    def sites() -> str:
        there = gate()
        check_expected(part.expected, there.members(), invited(part, there.clock()), run_of(config, path).clients)
        return f"{len(there.members())} clients in the directory"

    yield _try("run", "correct the table [run]", run)
    yield _try("keys of the server", "paceline ca issue --server NAME", lambda: _holds(part.folder, "server"))
    yield _try("clients", "correct server.expected, or get trust.pem, directory and crl.pem from the authority", sites)
    for name, address in (("listen", part.listen), ("enrol", part.enrol), ("renew", part.renew)):
        taken = "" if address is None else address.taken()
        if taken:
            yield Finding(f"port of server.{name}", "warning", f"{address}: {taken}", "choose another port, or stop that process")
    yield writable("folder of the run", part.run)
    if part.ca is None:
        yield Finding("authority", "ok", "not on the server's machine, according to its configuration")
    else:
        yield Finding(
            "authority",
            "warning",
            LOCAL_AUTHORITY_WARNING.partition(";")[0],
            "move the authority elsewhere: enrol clients there, copy its lists",
        )


def _client(config: ClientConfig) -> Iterator[Finding]:
    from paceline.deploy.client.policy import policy_of

    part, data = config.client, config.data

    def policy() -> str:
        policy_of(part.policy, part.folder)
        if part.policy is None:
            return "none: secure sums of 3 clients or more, and no method or task with a colon in its name"
        return str(part.policy)

    def own() -> str:
        from torch import Tensor

        from paceline.cli.spelling import check_task
        from paceline.core.checks import described
        from paceline.engines.accelerators import check_device
        from paceline.tasks import load_task

        check_device(data.device, "data.device")
        if not data.task:
            return "the task chosen by the server"
        check_task(data.task)
        task = load_task(data.task, **data.task_options)
        x = task.train.x
        shape = f"shape {tuple(x.shape[1:])}" if isinstance(x, Tensor) else described(task.train.example)
        return f"{data.task}: {len(task.train)} samples of {shape}"

    yield _try("keys of the client", "paceline client --config FILE --enrol INVITATION", lambda: _holds(part.folder, "client"))
    yield _try("policy", "correct the policy", policy)
    yield _try("data", "correct the table [data]", own)
    yield writable("state of the client", part.state)
    if part.proxy:
        return
    try:
        with socket.create_connection((part.server.host, part.server.port), timeout=5):
            yield Finding("server", "ok", f"{part.server} answers")
    except OSError as error:
        yield Finding(
            "server",
            "warning",
            f"{part.server}: {error.strerror or error}",
            "check name, port and firewalls, and whether it is running",
        )


def _holds(folder: Path, role: str) -> str:
    """Return the expiry of a party's certificate; raises `IdentityError` if a file is missing or the certificate is invalid."""
    from paceline.core.errors import IdentityError
    from paceline.deploy.identity import pki
    from paceline.deploy.identity.trust import Trust, read

    Trust.load(folder / "trust.pem")
    for name in (f"{role}.key", *(["identity.key", "directory"] if role == "client" else [])):
        read(folder / name, "get it from the operator of the federation")
    held = pki.load_certificate(read(folder / f"{role}.pem", "get it from the operator of the federation"), f"{role}.pem")
    begin, end = held.not_valid_before_utc, held.not_valid_after_utc
    now = pki.utc_now()
    if not begin <= now <= end:
        raise IdentityError(f"{folder / role}.pem holds from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, not now")
    return f"{folder}, until {end:%Y-%m-%d}"
