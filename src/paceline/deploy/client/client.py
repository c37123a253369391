"""Client of a federation: local data, locally installed functions, local policy."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline import __version__
from paceline.aggregation.nested import NestedClient
from paceline.aggregation.secure.client_openings import Openings
from paceline.aggregation.secure.task_hash import Agreement
from paceline.core.errors import (
    ConfigError,
    IdentityError,
    LayoutError,
    MissingDataError,
    MissingExtraError,
    PacelineError,
    PolicyError,
    ProtocolError,
    SchemaError,
    StoreError,
)
from paceline.core.importing import imports_from
from paceline.core.processes import on_stop
from paceline.deploy.client.ledger import Ledger
from paceline.deploy.client.own import OwnDevice, SchemaRefusal, allowed_modules, own_split, own_task, refusal
from paceline.deploy.client.policy import policy_of
from paceline.deploy.client.rules import PolicyRules
from paceline.deploy.federated_fields import check_federated
from paceline.deploy.identity import pki
from paceline.deploy.identity.keys import PinnedDirectory
from paceline.deploy.logs import Journal
from paceline.deploy.plan import Plan
from paceline.deploy.settings import ClientConfig, DataConfig
from paceline.engines.worker import Worker
from paceline.network import protocol as p
from paceline.network.client_runner import Runner
from paceline.network.client_stream import Node, NodeSettings
from paceline.network.fault_injection import Faults
from paceline.network.handshake import HIDDEN, MALFORMED, Welcome
from paceline.network.interfaces import check_limit
from paceline.network.tls import Credentials

if TYPE_CHECKING:
    from paceline.core.config import RunConfig
    from paceline.core.method import Method
    from paceline.data.schema import Schema
    from paceline.deploy.metrics import Metrics
    from paceline.tasks import Task

__all__ = ["build_worker", "make_node", "own_certificate", "participate"]

_SOON = timedelta(days=14)
"""A client logs a warning at start if its certificate expires within this time."""


def build_worker(
    data: DataConfig,
    number: int,
    directory: PinnedDirectory,
    *,
    modules: tuple[str, ...] = (),
    private: bool = False,
    named: bool = False,
    openings: Openings | None = None,
    task: Task | None = None,
    models: Path | None = None,
) -> Callable[[Welcome], Worker]:
    """Return a function that builds this client's worker from a run's plan and the local data.

    Args:
        data: data configuration of this client.
        number: id of this client.
        directory: its identity key, and the pinned keys of the others.
        modules: modules from which unregistered methods, tasks, models and fleets may be loaded.
        private: use a secret random seed.
        named: permit secure sums of functions whose messages contain a line for each client (`Method.names_clients`),
            and of methods that use the times of a simulated fleet.
        openings: record of the sums that this client has helped to open.
        task: task object to use instead of the configured task.
        models: folder in which this client's own model of each run is kept; None keeps none.

    Returns:
        a function from a `Welcome` to a `Worker`. It raises `PolicyError`, `ProtocolError`, `ConfigError`, `LayoutError`
        or a data error if the run does not fit this client.
    """

    import torch

    from paceline.assembly import Allocation, assemble, build_method, devices, share_out
    from paceline.core.config import RunConfig
    from paceline.core.layout import Layout
    from paceline.deploy.client.own_model import OwnModel

    def build(welcome: Welcome) -> Worker:
        with imports_from(allowed_modules(modules, data)):
            return from_plan(welcome)

    def from_plan(welcome: Welcome) -> Worker:
        config = RunConfig.build(p.field(welcome.plan, "config", dict))
        check_federated(config)
        offered = Plan.from_tree(welcome.plan.get("plan"))
        if Plan.of(config, offered.privacy, offered.data_schema) != offered:
            raise ProtocolError("the server's plan does not match its configuration")
        if not 0 <= number < config.clients:
            raise ConfigError(f"this client has number {number}, but the run has only {config.clients} clients")
        torch.set_num_threads(data.threads)
        method = build_method(config)
        simulated = method.records_times and not config.measured
        names = method.names_each_client()
        if (names or simulated) and config.aggregation == "secure" and not named:
            what = (
                "messages contain an entry for each client" if names else "times come from a simulated fleet chosen by the server"
            )
            raise PolicyError(
                [
                    f"{config.method!r}: its {what}, which lets a malicious server isolate one client's update "
                    f"({'' if names else 'run it with measured = true, or allow it by '}secure_aggregation.named_clients)"
                ]
            )
        schema = offered.data_schema
        agreed = Agreement.of(config, type(method), schema)
        if config.aggregation == "secure" and agreed.method.hex() != welcome.plan.get("method"):
            raise PolicyError(
                [
                    f"the server uses another version of paceline or of {config.method!r}, or other options, than this client "
                    f"({__version__}); under secure aggregation they must be identical"
                ]
            )
        with _quiet(config.aggregation == "secure"):
            try:
                worker = from_data(welcome, config, method, agreed, schema)
            except SchemaError as error:
                raise refusal(error, data) from error
            if differs := Layout.from_plain(welcome.plan.get("layout")).difference(worker.initial.layout):
                raise LayoutError(
                    f"the run's parameters do not match the model built from this client's data: {differs}; sample shapes and classes "
                    "must be those of the run's task"
                )
            return worker

    def from_data(welcome: Welcome, config: RunConfig, method: Method, agreed: Agreement, schema: Schema | None) -> Worker:
        made = assemble(config, task or own_task(data, config, schema), method)
        shared = Allocation(made.task, own_split(config, number, made.task)) if data.own else share_out(config, made.task)
        programs: dict[str, Any] = {} if config.aggregation == "secure" else {"nested": NestedClient()}
        if config.aggregation == "secure":
            from paceline.aggregation.secure.client_functions import SecAggClient

            if openings is not None:
                openings.open()
            programs["secagg"] = SecAggClient(directory, agreed, openings, welcome.run)
        worker = Worker(
            made.setup(
                shared,
                OwnDevice() if config.measured else devices(config),
                programs,
                device=data.device,
                threads=data.threads,
                client_seed=secrets.randbits(63) if private else None,
            )
        )
        if models is not None:
            worker.watch = OwnModel(models / welcome.run / "model", config, made.task, number).watch
        return worker

    return build


@contextlib.contextmanager
def _quiet(hidden: bool) -> Iterator[None]:
    """Hide errors about this client's data from the server if sums are secure: a reason may contain values of the data.

    A `SchemaRefusal` was written for the server: it contains none.
    """
    try:
        yield
    except (StoreError, MissingExtraError, MissingDataError, SchemaRefusal):
        raise
    except (PacelineError, *MALFORMED) as error:
        if hidden:
            raise PolicyError([HIDDEN]) from error
        raise


def make_node(
    config: ClientConfig, journal: Journal, metrics: Metrics | None = None, task: Task | None = None, **parts: Any
) -> Node:
    """Build a client from its configuration.

    Args:
        config: configuration of the client.
        journal: event logger.
        metrics: metrics to update, or None.
        task: task object to use instead of the configured task.
        **parts: further fields of `Node`.

    Raises:
        PacelineError: a file is missing, damaged or inconsistent, or the certificate has expired.
    """
    from paceline.engines.accelerators import check_device

    check_device(config.data.device, "data.device")
    part = config.client
    number: int | None = None

    def note(event: str, facts: dict[str, Any]) -> None:
        journal(event, client=number, **facts)
        if metrics is not None:
            metrics.events.labels(event, "").inc()
            if event == "answered":
                metrics.work.observe(facts["seconds"])

    policy = policy_of(part.policy, part.folder)
    directory = PinnedDirectory.of(part.folder, policy.secure_aggregation.accept_changed_keys, note)
    number = directory.client
    assert number is not None
    ledger = Ledger(part.state / "ledger.json", policy.hours.zone)
    rule = policy.cohort
    openings = Openings(part.state / "openings.db", rule.least_difference, policy.limits.openings, scope=rule.difference_scope)
    work = _within(
        part.limit,
        build_worker(
            config.data,
            number,
            directory,
            modules=part.modules,
            private=part.private_rounding,
            named=policy.secure_aggregation.named_clients,
            openings=openings,
            task=task,
            models=part.state if part.keep_model else None,
        ),
    )
    rules, own = PolicyRules(policy, ledger, part.state), allowed_modules(part.modules, config.data)
    runner = Runner(number, part.state, work, rules, learn=directory.update, modules=own)
    settings = NodeSettings(
        part.server, part.first, part.most, part.limit, part.pack, part.attempts, part.name, part.stay, part.proxy
    )
    credentials = Credentials.read(part.folder / "client.key", part.folder / "client.pem", directory.trust.roots)
    ends = own_certificate(credentials.certificate)
    if ends is not None and ends - pki.utc_now() < _SOON:
        note("certificate", {"why": f"this client's certificate expires at {ends:%Y-%m-%d %H:%M} UTC; renew it with --renew"})
    faults = Faults.of(part.faults, number)
    node = Node(settings, credentials, runner, note, faults, check=lambda: not_expired(credentials.certificate), **parts)
    if metrics is not None:
        metrics.ready = lambda: node.welcomed
    return node


def _within(limit: int, build: Callable[[Welcome], Worker]) -> Callable[[Welcome], Worker]:
    """Refuse a run before its first round if its model exceeds the client's message limit."""

    def within(welcome: Welcome) -> Worker:
        worker = build(welcome)
        if worker.setup.programs["method"].sends_model:
            check_limit("the model of this run", worker.initial.vector.nbytes, limit, "client.limit")
        return worker

    return within


def own_certificate(certificate: bytes) -> datetime | None:
    """Return the expiry time of a client's certificate.

    Args:
        certificate: PEM.

    Raises:
        IdentityError: the certificate is not valid now.
    """
    held, now = pki.load_certificate(certificate, "client.pem"), pki.utc_now()
    begin, end = held.not_valid_before_utc, held.not_valid_after_utc
    if begin <= now <= end:
        return end
    what = "enrol again" if now > end else "check the clocks of this machine and of the authority's"
    raise IdentityError(f"this client's certificate is valid only from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC; {what}")


def not_expired(certificate: bytes) -> None:
    """Raise `IdentityError` if a client's certificate has expired according to the local clock."""
    if pki.utc_now() > pki.load_certificate(certificate, "client.pem").not_valid_after_utc:
        own_certificate(certificate)


async def participate(node: Node) -> str:
    """Run a client until the run has ended, or SIGTERM, SIGHUP or SIGINT requests it to leave; return the reason."""
    loop = asyncio.get_running_loop()
    leave = functools.partial(asyncio.run_coroutine_threadsafe, loop=loop)  # loop signal handlers are not portable
    on_stop(lambda _: leave(node.stop("the client was requested to stop")))
    return await node.run()
