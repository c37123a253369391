"""From a configuration to the parts of a run: one code path for the simulation, a federation's server and its clients.

Whatever shapes a result is read from the configuration here and nowhere else. In which way a real client differs from a
simulated one (its own samples, its device, its secret seed) is an argument.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from paceline.adversaries.behaviours import Adversary, load_adversary, members
from paceline.adversaries.engine import poisoned
from paceline.blocks.architectures import Architectures, architectures_service
from paceline.blocks.server_data import ServerData, server_data_service
from paceline.core.checks import check_task, idle_fields
from paceline.core.config import RunConfig
from paceline.core.engine import Aggregation
from paceline.core.errors import ConfigError, PacelineError, PlanError, UnknownNameError
from paceline.core.method import Method, client_functions
from paceline.core.metrics import Metric
from paceline.core.nested import Segmenter
from paceline.core.samples import Split, labelled
from paceline.core.terms import check_metrics, main_of
from paceline.core.wording import setting
from paceline.data import Partition, partition_task
from paceline.devices import Fleet, load_fleet, load_participation
from paceline.engines.setup import Setup
from paceline.registry import KINDS, build, find_method, method_names
from paceline.store.start import Start
from paceline.submodels.flops import flops
from paceline.submodels.nesting import segmenter_service
from paceline.submodels.service import Submodels, submodel_service
from paceline.tasks import Task, load_task
from paceline.tasks.start import fits, started
from paceline.tasks.tuning import parse_tuning, tune

__all__ = [
    "Allocation",
    "Assembly",
    "assemble",
    "build_method",
    "devices",
    "field_owners",
    "group_misfits",
    "load_metric",
    "misfits",
    "read_task",
    "reload",
    "share_out",
    "with_metrics",
]


@dataclass(frozen=True)
class Allocation:
    """Who has which samples.

    Args:
        task: the task, with the labels that Byzantine clients have changed.
        split: rows of each client.
        byzantine: who they are.
        groups: true group of each client, where the partition has groups.
    """

    task: Task
    split: Split
    byzantine: Collection[int] = ()
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Assembly:
    """A method and the task that it trains on, made for each other.

    Args:
        config: what they were made from.
        asked: the method as it is configured.
        method: the method, fitted to the task.
        task: the task, fitted to the method.
        flops: forward cost of one sample.
    """

    config: RunConfig
    asked: Method
    method: Method
    task: Task
    flops: float = 0.0

    def setup(
        self,
        shared: Allocation,
        fleet: Any,
        programs: Mapping[str, Any],
        *,
        device: str,
        threads: int,
        client_seed: int | None = None,
        drop: Callable[[int, int, str], bool] | None = None,
        samples: Callable[[], tuple[Task, Split]] | None = None,
    ) -> Setup:
        """Return what a worker is built from.

        Args:
            shared: who has which samples.
            fleet: device profiles.
            programs: protocols whose functions may run beside the method's, by name.
            device: torch device of this party.
            threads: torch threads of this party.
            client_seed: secret seed of a real client's random streams; the run's seed by default.
            drop: see `Setup`.
            samples: see `Setup`.
        """
        config, task = self.config, shared.task
        return Setup(
            programs={"method": self.method, **programs},
            task=task,
            split=shared.split,
            num_clients=config.clients,
            fleet=fleet,
            seed=config.seed,
            client_seed=client_seed,
            flops=self.flops,
            device=device,
            drop=drop,
            measured=config.measured,
            threads=threads,
            precision=config.precision,
            chunk=1 if config.vectorize == "off" else config.chunk or 1,
            one_step=config.one_step,
            samples=samples,
            services={
                Submodels: submodel_service,
                Segmenter: segmenter_service,
                Architectures: architectures_service,
                ServerData: server_data_service,
            },
        )


def build_method(config: RunConfig) -> Method:
    """Return the configured method.

    Raises:
        UnknownNameError: no such method or field; names the methods that have such a field.
        ConfigError: a field has an invalid value.
    """
    cls = find_method(config.method)
    fields = {f.name for f in dataclasses.fields(cls)}
    for name in config.options:
        if name not in fields and name not in RunConfig.model_fields and (owners := field_owners(name)):
            raise UnknownNameError(f"{cls.__name__} field", name, fields, f"{name} is a field of {owners}")
    return cls.build(config.options)


def field_owners(field: str, most: int = 6) -> str:
    """Return the methods that have a field, as text for a message; empty if none has it.

    Args:
        field: name of the field.
        most: methods to name.

    Example:
        >>> field_owners("mu")
        'fednova, fedprox and moon'
    """
    found = []
    for name in method_names():
        with contextlib.suppress(PacelineError):  # a method that cannot be imported
            found += [name] if field in {f.name for f in dataclasses.fields(find_method(name))} else []
    named, rest = (found, 0) if len(found) <= most + 1 else (found[:most], len(found) - most)
    return f"{', '.join(named)} and {rest} others" if rest > 0 else " and ".join(filter(None, [", ".join(named[:-1]), *named[-1:]]))


def read_task(config: RunConfig, name: str = "", options: Mapping[str, Any] | None = None) -> Task:
    """Read the configured task; see `load_task` for what is raised.

    Args:
        config: names the task, its options and its model.
        name: a client's own task in place of the configured one.
        options: a client's own options in place of the configured ones.
    """
    chosen = config.task_options if options is None else options
    for own in ("name", "model", "seed"):
        if own in chosen:
            raise ConfigError(f"{own} is not an option of a task; use {setting('task' if own == 'name' else own, chosen[own])}")
    return load_task(name or config.task, model=config.model, seed=config.seed, **chosen)


def assemble(config: RunConfig, task: Task | None = None, method: Method | None = None, start: Start | None = None) -> Assembly:
    """Fit the method and its task to each other.

    Args:
        config: what is run.
        task: in place of the configured one.
        method: `build_method` of the configuration, where that was called before.
        start: weights to start from: those of the task's model, or of the model that the method makes of it.

    Raises:
        PlanError: the method needs classes, which the task does not have, or has no use for a field that was set.
        ConfigError, DataError: samples, model, loss and metrics of the task do not fit together, see `check_task`.
        LayoutError: the weights match neither model.
    """
    asked = build_method(config) if method is None else method
    task, start = _begun(config, task, start)
    if wrong := idle_fields(asked) + _classless(config, asked, task):
        raise PlanError(wrong)
    fitted, task = asked.fit_task(task)
    task = task if start is None else started(task, start.tensors, start.where)
    module = task.build(0)
    check_task(task, module)
    task = with_metrics(config, task)
    check_metrics(task, module)
    return Assembly(config, asked, fitted, task, flops(module, task.train.example))


def _classless(config: RunConfig, method: Method[Any], task: Task) -> list[str]:
    """Return what of a run needs one class per sample, which the task does not have."""
    if task.num_classes and isinstance(task.train.y, Tensor):
        if method.needs_labels and not labelled(task, task.train.y).all():
            return [f"method {method.slug()!r} reads every label, but task {task.name!r} has samples without one; leave these out"]
        return []
    found = [f"method {method.slug()!r} needs classes"] if method.needs_classes else []
    if config.adversary is not None and load_adversary(config.adversary).poisons_data:
        found.append(f"adversary {config.adversary!r} changes class labels")
    return [f"{what}, but task {task.name!r} has none; choose another one, or a task with num_classes" for what in found]


def _begun(config: RunConfig, task: Task | None, start: Start | None) -> tuple[Task, Start | None]:
    """Return the task, with the weights to start from if they are its model's; otherwise also the start."""
    tuning = config.task_options.get("peft") if task is None else None
    if start is None or tuning is None:
        task = read_task(config) if task is None else task
    else:  # a tuning of the weights, or the weights of an earlier tuning
        task = read_task(config, options={name: value for name, value in config.task_options.items() if name != "peft"})
        if fits(task, start.tensors):
            return tune(started(task, start.tensors, start.where), parse_tuning(tuning)), None
        task = tune(task, parse_tuning(tuning))
    if start is not None and fits(task, start.tensors):
        return started(task, start.tensors, start.where), None
    return task, start


def with_metrics(config: RunConfig, task: Task) -> Task:
    """Return a task with the metrics of the configuration, or with its own, built from their names.

    Raises:
        UnknownNameError: no such metric or option.
        ConfigError: an option has an invalid value, or two metrics have a figure of the same name.
    """
    made = tuple(m if isinstance(m, Metric) else load_metric(m) for m in config.metrics or task.metrics)
    figures = [metric.figure for metric in made]
    if repeated := sorted({name for name in figures if figures.count(name) > 1}):
        raise ConfigError(f"{setting('metrics')}: {', '.join(repeated)} is listed more than once; list each metric once")
    return task if made == tuple(task.metrics) else dataclasses.replace(task, metrics=made)


def load_metric(text: str) -> Metric:
    """Return the metric of a specification ``NAME[:OPTION=VALUE,...]``; see `with_metrics` for what is raised."""
    made = build("metric", text, {})
    if not isinstance(made, Metric):
        raise ConfigError(f"{setting('metrics', text)} is a {type(made).__name__}; it should be {KINDS['metric'].what}")
    return made


def share_out(config: RunConfig, task: Task, split: Partition | None = None) -> Allocation:
    """Share a task's samples out over the clients; see `partition_task` for what is raised.

    Args:
        config: names partition and adversary.
        task: the task.
        split: in place of the configured partition.
    """
    split = split or partition_task(
        task,
        config.partition,
        config.clients,
        config.seed,
        config.allow_empty,
        config.client_test,
        config.client_samples,
    )
    if config.adversary is None:
        return Allocation(task, split, (), split.groups)
    adversary = load_adversary(config.adversary)
    byzantine = members(adversary.share, config.clients, config.seed)
    task = poisoned(task, split, adversary, byzantine) if adversary.poisons_data else task
    return Allocation(task, split, byzantine, split.groups)


def reload(config: RunConfig, method: Method, start: Start | None = None) -> tuple[Task, Split]:
    """Read a named task and share it out again, in another process."""
    shared = share_out(config, assemble(config, method=method, start=start).task)
    return shared.task, shared.split


def devices(config: RunConfig, shared: Allocation | None = None) -> Fleet:
    """Return the configured fleet.

    Args:
        config: names fleet and participation.
        shared: by whose classes clients may come and go. None for a client, which asks for speed and bandwidth only.
    """
    if shared is None:
        return load_fleet(config.fleet, config.clients, config.seed)
    table = functools.partial(_table, shared)
    return load_fleet(
        config.fleet, config.clients, config.seed, load_participation(config.participation, config.clients, config.seed, table)
    )


def _table(shared: Allocation) -> Any:
    assert isinstance(shared.split, Partition)
    return shared.split.table(shared.task)


def misfits(
    config: RunConfig, method: Method[Any], aggregation: Aggregation, adversary: Adversary | None, task: Task | None = None
) -> list[str]:
    """Return the reasons why the parts of a run do not fit together, one sentence each; empty if they do.

    Args:
        config: the configuration.
        method: the method, fitted to its task.
        aggregation: the aggregation of sums.
        adversary: the attack of Byzantine clients, or None.
        task: the task with its metrics, if known.
    """
    found = []
    if task is not None and config.target_accuracy is not None:
        main = main_of(task, task.train.y)
        if main.name != "accuracy":
            found.append(f"{setting('target_accuracy')} is of accuracy, but {main.name} is primary; use {setting('target_score')}")
    if config.by_group and config.evaluation not in ("federated", "clients"):
        found.append(
            f"{setting('by_group', True)} needs {setting('evaluation', 'federated')} or {setting('evaluation', 'clients')}"
        )
    if config.cohort > config.clients:
        found.append(
            f"the cohort of {config.cohort} is larger than the population of {config.clients} clients; "
            f"set {setting('cohort')} to {config.clients} or less"
        )
    if config.quorum > config.cohort:
        found.append(f"the quorum of {config.quorum} is larger than the cohort of {config.cohort}")
    if not aggregation.sees_each:
        found += _hidden(method, config)
    if not method.has_model and config.evaluation in ("central", "federated"):
        found.append(f"method {config.method!r} has no global model; use {setting('evaluation', 'clients')}")
    if adversary is not None and not adversary.poisons_data and aggregation.name == "secure":
        found.append(
            f"adversary {adversary.name!r} changes replies, which secure aggregation seals on the client; simulate it with "
            f"{setting('aggregation', 'secure-arithmetic')}, whose bits are the same"
        )
    return found


def group_misfits(config: RunConfig, aggregation: Aggregation, groups: Collection[int]) -> list[str]:
    """Return the reasons why groups cannot be evaluated separately; empty if they can, or if that is not asked for.

    Args:
        config: the configuration.
        aggregation: the aggregation of sums.
        groups: true group of each client; empty if the partition has none.
    """
    if not config.by_group:
        return []
    if not groups:
        return [f"{setting('by_group', True)} needs groups of clients; use {setting('partition', 'groups:0-4/5-9')}"]
    least = max(config.least_group, 1 if aggregation.sees_each else 3)
    small = [group for group in sorted(set(groups)) if list(groups).count(group) < least]
    text = ", ".join(map(str, small))
    return [f"{setting('by_group', True)}: a sum needs at least {least} clients, but group {text} has fewer"] if small else []


def _hidden(method: Method, config: RunConfig) -> list[str]:
    """Return what of a method needs single replies, which the aggregation hides, with alternatives."""
    singles = [name for name, declared in client_functions(method).items() if declared.each]
    if not singles:
        return []
    alternative = getattr(method, "sum_only", None)
    other = f"run it with {setting('aggregation', 'plain')}, or choose a sum-only method"
    return [
        f"method {config.method!r} needs every client's own reply from {', '.join(singles)}(), which "
        f"{config.aggregation!r} aggregation hides from the server; {f'use {alternative}' if alternative else other}"
    ]
