"""The samples and the device of a real client: what a simulation has for all clients together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paceline.assembly import read_task
from paceline.core.errors import EmptyClientError, PolicyError, SchemaError
from paceline.core.importing import is_import_path
from paceline.core.random import numpy_rng
from paceline.core.samples import Split
from paceline.data.files import is_file_task, without_tests
from paceline.data.mapping import Names
from paceline.data.schema import Schema
from paceline.devices import Profile
from paceline.network.handshake import HIDDEN

if TYPE_CHECKING:
    from paceline.core.config import RunConfig
    from paceline.deploy.settings import DataConfig
    from paceline.tasks import Task

__all__ = ["OwnDevice", "OwnSplit", "SchemaRefusal", "allowed_modules", "own_split", "own_task", "refusal", "task_options"]


class SchemaRefusal(PolicyError):
    """This client's files differ from the run's schema; the reasons contain no value of the files."""


def own_task(data: DataConfig, config: RunConfig, schema: Schema | None) -> Task:
    """Return the task of this client's data, read by the run's schema if it has one.

    Args:
        data: data configuration of this client.
        config: the run.
        schema: the schema in the server's plan.

    Raises:
        SchemaError: the files differ from the schema.
        PolicyError: the schema is not the one that this client has agreed to.
    """
    if data.schema_file is not None:
        agreed = Schema.read(data.schema_file)
        if schema is None or agreed.digest != schema.digest:
            raise PolicyError(["the run's schema is not the one that this client has agreed to (data.schema_file)"])
    options = task_options(data, config)
    if schema is not None and is_file_task(data.task or config.task):
        options = without_tests(data.task or config.task) | options | {"schema": schema, "names": Names(data.columns, data.values)}
    return read_task(config, data.task, options)


def refusal(error: SchemaError, data: DataConfig) -> SchemaRefusal:
    """Return what the server learns of a difference between own files and the schema.

    Args:
        error: the difference.
        data: data configuration of this client, which says whether the server learns it.
    """
    if data.report == "nothing":
        return SchemaRefusal([HIDDEN])
    return SchemaRefusal([f"this client's data do not match the schema of the run: {text}" for text in error.shared])


def task_options(data: DataConfig, config: RunConfig) -> dict[str, Any]:
    """Return the options of this client's task. For local files, the server determines only the model, not how they are read."""
    from paceline.models import model_options

    if ":" not in data.task:
        return dict(data.task_options or config.task_options)
    known = {"peft", *(model_options(config.model) if config.model else ())}
    return {name: value for name, value in config.task_options.items() if name in known} | data.task_options


def allowed_modules(modules: Sequence[str], data: DataConfig) -> set[str]:
    """Return the modules that names with a colon may come from: those that this client's own configuration names."""
    return {*modules, *([data.task.partition(":")[0]] if is_import_path(data.task) else [])}


@dataclass(frozen=True)
class OwnSplit(Split):
    """Split in which all samples belong to this client.

    Args:
        train, test: rows of the task's training data (int64).
    """

    train: Tensor
    test: Tensor

    def __call__(self, client: int) -> tuple[Tensor, Tensor]:
        """Return the (train, test) rows."""
        return self.train, self.test


class OwnDevice:
    """Profile of the actual device: times are measured, the client measures its transfers under masks, the server otherwise."""

    def profile(self, client: int, round: int) -> Any:
        """Return a profile that adds nothing to measured seconds."""
        return Profile(up=math.inf, down=math.inf, latency=0.0)


def own_split(config: RunConfig, number: int, task: Task) -> Split:
    """Return the split that gives all samples of a task to one client, up to the run's `client_samples`.

    Args:
        config: says what share is set aside for tests, and whether a client may have no samples.
        number: the client's number.
        task: its own data.

    Raises:
        EmptyClientError: nothing is left to train on.
    """
    order = torch.from_numpy(numpy_rng(config.seed, "own", number).permutation(len(task.train)))[: config.client_samples]
    if not len(order) and not config.allow_empty:
        raise EmptyClientError(f"task {task.name!r} has no training samples for this client")
    # leave at least one to train on: otherwise participation would reveal the number of samples
    held = max(min(round(config.client_test * len(order)), len(order) - 1), 0)
    return OwnSplit(order[held:].sort().values, order[:held].sort().values)
