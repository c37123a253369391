"""A federation's client: its own data, its own installed functions, its own rules."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline import __version__
from paceline.aggregation.secure.client_openings import Openings
from paceline.aggregation.secure.task_hash import Agreement
from paceline.core.errors import (
    ConfigError,
    EmptyClientError,
    IdentityError,
    LayoutError,
    MissingDataError,
    MissingExtraError,
    PacelineError,
    PolicyError,
    ProtocolError,
    StoreError,
)
from paceline.core.processes import on_stop
from paceline.core.samples import Split
from paceline.core.tree import Tree
from paceline.deploy.client.ledger import Ledger
from paceline.deploy.client.policy import Policy, load_policy
from paceline.deploy.identity import pki
from paceline.deploy.identity.keys import PinnedDirectory
from paceline.deploy.logs import Journal
from paceline.deploy.plan import CallRequest, Plan
from paceline.deploy.run_fields import check_federated
from paceline.deploy.settings import ClientConfig, DataConfig
from paceline.engines.worker import Worker
from paceline.network import protocol as p
from paceline.network.client_runner import Runner
from paceline.network.client_stream import Node, NodeSettings
from paceline.network.fault_injection import Faults
from paceline.network.handshake import HIDDEN, MALFORMED, Welcome
from paceline.network.interfaces import check_limit
from paceline.network.tls import Credentials
from paceline.store.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

    from paceline.core.config import RunConfig
    from paceline.core.method import Method
    from paceline.deploy.metrics import Metrics
    from paceline.tasks import Task

__all__ = ["HouseRules", "build_worker", "make_node", "own_certificate", "own_split", "take_part"]

_SOON = timedelta(days=14)
"""With less time left than this for its certificate, a client says so when it begins."""


class HouseRules:
    """A client's policy and ledger, asked before every call.

    Args:
        policy: what is allowed.
        ledger: what was given.
        folder: where each run's plan is kept, so that it cannot be changed under way.
        clock: tells the time.
    """

    def __init__(
        self, policy: Policy, ledger: Ledger, folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.policy, self.ledger, self.folder, self.clock = policy, ledger, folder, clock
        self._plan: Plan | None = None
        self._run = ""

    def join(self, welcome: Welcome) -> None:
        """Judge the plan. Raises `PolicyError` with all reasons, `ProtocolError` for a plan that was changed."""
        plan = Plan.from_tree(welcome.plan.get("plan"))
        path = self.folder / welcome.run / "plan"
        if path.exists() and path.read_text() != plan.digest:
            raise ProtocolError("the plan of this run is not the one that was agreed to; a new run is needed")
        now = self.clock()
        closed = self.policy.closed(now)  # that passes, and is told apart from this
        lasting = [
            why for why in self.policy.check(plan, CallRequest(now, usage=self.ledger.usage(welcome.run, now))) if why not in closed
        ]
        if lasting:
            raise PolicyError(lasting)
        if not path.exists():
            atomic_write(path, plan.digest.encode())
        self.ledger.join(welcome.run, plan)
        self._plan, self._run = plan, welcome.run

    def closed(self) -> list[str]:
        """Return why this client takes no part just now, though it will later; nothing where it does."""
        return self.policy.closed(self.clock())

    def call(self, head: Mapping[str, Any], message: Tree) -> None:
        """Judge a call. Raises `PolicyError` with all reasons."""
        if self._plan is None:
            raise PolicyError(["nothing was agreed to yet"])
        now, program = self.clock(), p.field(head, "program", str)
        stays = p.field(p.field(head, "channel", dict), "kind", str) == "held"  # what is only begun shows nothing
        facts: dict[str, Any] = {"cohort": p.field(head, "cohort", int) if program == "method" and not stays else None}
        if program == "secagg":
            facts |= _secure_facts(p.field(head, "function", str), message)
        request = CallRequest(
            now,
            round=p.field(head, "round", int),
            program=None if stays else program,
            begun=stays,
            message_bytes=p.field(head, "size", int),
            usage=self.ledger.usage(self._run, now),
            **facts,
        )
        self.policy.demand(self._plan, request)

    def done(self, head: Mapping[str, Any], sent: int, seconds: float) -> None:
        """Put a call into the ledger, before its answer leaves."""
        size = p.field(head, "size", int) + sent
        self.ledger.note(self._run, p.field(head, "round", int), size, seconds, self.clock())


def _secure_facts(function: str, message: Tree) -> dict[str, Any]:
    """Return what a step of secure aggregation says about its cohort, options or survivors."""
    match function, message:
        case "advertise", {"clients": [*clients], "config": dict(config)}:
            return {"cohort": len(set(clients)), "secure": config}
        case "consistency", {"alive": [*alive]}:
            return {"survivors": len(set(alive))}
    return {}


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
) -> Callable[[Welcome], Worker]:
    """Return what builds this client's worker for a run, from the run's plan and this client's own data.

    Args:
        data: which data are its own.
        number: this client's number.
        directory: its identity key, and the others' pinned ones.
        modules: from which methods may come that are not registered.
        private: draw from a secret seed.
        named: sum functions under masks that read a line of their own from the message (`Method.names_clients`).
        openings: what this client has helped to open.
        task: a task object in place of the one that is configured.
    """

    import torch

    from paceline.assembly import Shared, assemble, build_method, devices, read_task, share_out
    from paceline.core.config import RunConfig
    from paceline.core.params import Layout

    def build(welcome: Welcome) -> Worker:
        config = RunConfig.build(p.field(welcome.plan, "config", dict))
        check_federated(config)
        offered = Plan.from_tree(welcome.plan.get("plan"))
        if Plan.of(config, offered.privacy) != offered:
            raise ProtocolError("the server's plan and its configuration are not the same run")
        if ":" in config.method and config.method.partition(":")[0] not in modules:
            raise PolicyError([f"method {config.method!r} is not registered here; name its module in client.modules to allow it"])
        if not 0 <= number < config.clients:
            raise ConfigError(f"this client has number {number}, but the run has only {config.clients} clients")
        torch.set_num_threads(data.threads)
        method = build_method(config)
        if method.names_clients and config.aggregation == "secure" and not named:
            raise PolicyError(
                [
                    f"messages of {config.method!r} hold a line for each client, with which a server that lies could open one client's "
                    "update (secure_aggregation.named_clients)"
                ]
            )
        if config.aggregation == "secure" and Agreement.of(config, type(method)).method.hex() != welcome.plan.get("method"):
            raise PolicyError(
                [
                    f"the server runs another version of paceline or of {config.method!r}, or on other options, than this client has "
                    f"({__version__}); all of them must be the same under secure aggregation"
                ]
            )
        with _quiet(config.aggregation == "secure"):
            worker = from_data(welcome, config, method)
            if differs := Layout.from_plain(welcome.plan.get("layout")).difference(worker.initial.layout):
                raise LayoutError(
                    f"the run's parameters do not fit the model that this client's data give: {differs}; shapes and classes "
                    "must be those of the run's task"
                )
            return worker

    def from_data(welcome: Welcome, config: RunConfig, method: Method) -> Worker:
        made = assemble(config, task or read_task(config, data.task, _task_options(data, config)), method)
        shared = Shared(made.task, own_split(config, number, made.task)) if data.own else share_out(config, made.task)
        programs: dict[str, Any] = {}
        if config.aggregation == "secure":
            from paceline.aggregation.secure.client_functions import SecAggClient

            if openings is not None:
                openings.open()
            programs["secagg"] = SecAggClient(directory, Agreement.of(config, type(method)), openings, welcome.run)
        return Worker(
            made.setup(
                shared,
                _Here() if config.measured else devices(config),
                programs,
                device=data.device,
                threads=data.threads,
                client_seed=secrets.randbits(63) if private else None,
            )
        )

    return build


def _task_options(data: DataConfig, config: RunConfig) -> dict[str, Any]:
    """Return the options of this client's task: how its own files are read is not the server's to say, only the model is."""
    from paceline.data.files import is_file_task
    from paceline.models import model_options

    if not is_file_task(data.task):
        return data.task_options or config.task_options
    known = {"peft", *(model_options(config.model) if config.model else ())}
    return {name: value for name, value in config.task_options.items() if name in known} | data.task_options


@contextlib.contextmanager
def _quiet(hidden: bool) -> Iterator[None]:
    """Keep what is wrong with this client's data from the server where sums are secure: a reason may hold values of them."""
    try:
        yield
    except (StoreError, MissingExtraError, MissingDataError):
        raise
    except (PacelineError, *MALFORMED) as error:
        if hidden:
            raise PolicyError([HIDDEN]) from error
        raise


def own_split(config: RunConfig, number: int, task: Task) -> Split:
    """Return the split that gives all samples of a task to one client, up to the run's `client_samples`.

    Args:
        config: says what share is set aside for tests, and whether a client may have no samples.
        number: the client's number.
        task: its own data.

    Raises `EmptyClientError` where nothing is left to train on.
    """
    import torch

    from paceline.core.random import numpy_rng

    order = torch.from_numpy(numpy_rng(config.seed, "own", number).permutation(len(task.train)))[: config.client_samples]
    if not len(order) and not config.allow_empty:
        raise EmptyClientError(f"task {task.name!r} has no samples for this client to train on")
    # one is left to train on, or whether this client takes part would tell how many it has
    held = max(min(round(config.client_test * len(order)), len(order) - 1), 0)
    return _Own(order[held:].sort().values, order[:held].sort().values)


@dataclass(frozen=True)
class _Own(Split):
    """All samples belong to this client."""

    train: Tensor
    test: Tensor

    def __call__(self, client: int) -> tuple[Tensor, Tensor]:
        return self.train, self.test


class _Here:
    """The device that this client runs on: times are measured, and transfers are the server's to measure."""

    def profile(self, client: int, round: int) -> Any:
        """Return a profile that adds nothing to measured seconds."""
        from paceline.devices import Profile

        return Profile(up=math.inf, down=math.inf, latency=0.0)


def make_node(
    config: ClientConfig, journal: Journal, metrics: Metrics | None = None, task: Task | None = None, **parts: Any
) -> Node:
    """Put a client together from its configuration; raises what is wrong with its files."""
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

    policy = Policy() if part.policy is None else load_policy(part.policy)
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
        ),
    )
    runner = Runner(number, part.state, work, HouseRules(policy, ledger, part.state), learn=directory.update)
    settings = NodeSettings(
        part.server, part.first, part.most, part.limit, part.pack, part.attempts, part.name, part.stay, part.proxy
    )
    credentials = Credentials.read(part.folder / "client.key", part.folder / "client.pem", directory.trust.roots)
    ends = own_certificate(credentials.certificate)
    if ends is not None and ends - pki.utc_now() < _SOON:
        note("certificate", {"why": f"this client's certificate holds until {ends:%Y-%m-%d %H:%M} UTC; get another with --renew"})
    faults = Faults.of(part.faults, number)
    node = Node(settings, credentials, runner, note, faults, check=lambda: not_expired(credentials.certificate), **parts)
    if metrics is not None:
        metrics.ready = lambda: node.welcomed
    return node


def _within(limit: int, build: Callable[[Welcome], Worker]) -> Callable[[Welcome], Worker]:
    """Let a client refuse a run whose model it could not receive, before any round."""

    def within(welcome: Welcome) -> Worker:
        worker = build(welcome)
        if worker.setup.programs["method"].sends_model:
            check_limit("the model of this run", worker.initial.vector.nbytes, limit, "client.limit")
        return worker

    return within


def own_certificate(certificate: bytes) -> datetime | None:
    """Return until when a client's certificate holds. Raises `IdentityError` where it does not hold now."""
    held, now = pki.load_certificate(certificate, "client.pem"), pki.utc_now()
    begin, end = held.not_valid_before_utc, held.not_valid_after_utc
    if begin <= now <= end:
        return end
    what = "enrol again" if now > end else "look at the clocks of this machine and of the authority's"
    raise IdentityError(f"this client's certificate holds from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, not now: {what}")


def not_expired(certificate: bytes) -> None:
    """Raise `IdentityError` where a client's certificate holds no more, by this machine's clock."""
    if pki.utc_now() > pki.load_certificate(certificate, "client.pem").not_valid_after_utc:
        own_certificate(certificate)


async def take_part(node: Node) -> str:
    """Run a client until the run has ended, or SIGTERM, SIGHUP or SIGINT asks it to leave; return why it ended."""
    loop = asyncio.get_running_loop()
    leave = functools.partial(asyncio.run_coroutine_threadsafe, loop=loop)  # signal handlers of a loop are not everywhere
    on_stop(lambda _: leave(node.stop("the client was asked to stop")))
    return await node.run()
