"""Dry run at a site: read the own files by a schema, and train one batch. Nothing is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paceline.core.columns import call, first, place
from paceline.core.errors import ConfigError, NonFiniteError
from paceline.core.importing import imports_from
from paceline.core.layout import Layout
from paceline.core.process_state import process_state
from paceline.data.files import is_file_task, without_tests
from paceline.data.mapping import Names
from paceline.data.schema import Schema
from paceline.deploy.client.own import allowed_modules
from paceline.deploy.settings import ClientConfig
from paceline.tasks import load_task, schema_of

__all__ = ["DryRun", "dry_run", "known_schema"]


@dataclass(frozen=True)
class DryRun:
    """Outcome of a dry run.

    Args:
        schema: the schema by which the files were read; None for a task without files.
        compared: where the schema comes from; empty if it is the files' own, so that nothing was compared.
        notes: what was found in the files, a line each; for the site alone.
        shared: what a run would send, a line each.
        samples: number of samples, and how many of them a run may train on.
        loss: loss of the first batch before and after one step.
    """

    schema: Schema | None
    compared: str
    notes: tuple[str, ...]
    shared: tuple[str, ...]
    samples: tuple[int, int]
    loss: tuple[float, float]


def known_schema(config: ClientConfig) -> Path | None:
    """Return the schema to compare with: the one that the client has agreed to, else that of the last run that it joined."""
    if config.data.schema_file is not None:
        return config.data.schema_file
    stored = sorted(config.client.state.glob("*/schema.json"), key=lambda path: path.stat().st_mtime)
    return stored[-1] if stored else None


def dry_run(config: ClientConfig, schema: Path | None = None, model: str | None = None) -> DryRun:
    """Read this client's data as a run would, and train one batch.

    Args:
        config: configuration of the client.
        schema: file of a schema; by default `known_schema`.
        model: reference model; by default the one of the data's kind.

    Raises:
        ConfigError: the configuration names no data.
        SchemaError: the files differ from the schema; names rows and values.
        DataError: the files cannot be read, or their content is in doubt.
    """
    data = config.data
    if not data.task:
        raise ConfigError('the client\'s configuration names no data; set task in [data], such as task = "csv:/data/own.csv"')
    found = schema or known_schema(config)
    options: dict[str, Any] = dict(data.task_options)
    if found is not None and is_file_task(data.task):
        options = without_tests(data.task) | options | {"schema": Schema.read(found), "names": Names(data.columns, data.values)}
    with imports_from(allowed_modules(config.client.modules, data)), process_state(0, data.threads, "float32"):
        task = load_task(data.task, model=model, **options)
        module = task.build(0)
        loss = _one_batch(task, module, data.device)
        parameters = Layout.of(module, task.trainable, task.buffers).size
    used = schema_of(task)
    shared = [
        "at joining: that this client participates; if the files differed from the schema: "
        + ("names of columns, kinds and classes" if data.report == "differences" else "one fixed text"),
        f"in each round, with secure aggregation only as part of sums: an update of {parameters} parameters, its weight, and "
        "sums of loss and correct answers, overall and per class",
    ]
    if used is not None and used.standardize == "federated":
        shared.append(
            f"before round 1, as part of sums: sums of {used.width} inputs and of their squares, and the number of samples"
        )
    notes = tuple(task.info.get("read", "").splitlines())
    compared = str(found) if "schema" in options else ""
    return DryRun(used, compared, notes, tuple(shared), (len(task.train) + len(task.test), len(task.train)), loss)


def _one_batch(task: Any, module: torch.nn.Module, device: str) -> tuple[float, float]:
    module = module.to(device).train()
    x, y = (place(first(part, task.batch_size), device) for part in (task.train.x, task.train.y))
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=task.lr)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = task.loss(call(module, x), y)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    if not all(map(torch.isfinite, map(torch.tensor, losses))):
        raise NonFiniteError("the loss of one batch is not finite; check the scaling of the columns and the learning rate")
    return losses[0], losses[1]
