"""Provenance of a checkpoint: environment of its run, compared when the run is resumed.

Different samples, or a model of another shape, make it a different run, which is refused. Different code or another
version of torch may change the bits of the result; the run continues with a warning.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paceline.core.errors import CheckpointError
from paceline.core.fingerprint import digest
from paceline.core.task import Task

__all__ = ["ResumeWarning", "compare", "provenance", "sources"]

_VERSIONED = ("torch", "paceline", "builtins")
"""Packages identified by their version instead of their source."""


class ResumeWarning(UserWarning):
    """The environment has changed since a run was stopped, so its result may differ in bits."""


def sources(method: Any, task: Task, module: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of the source files that define a method and a task's model and loss, by module name.

    Torch and Paceline are excluded, and so are modules imported by these files.
    """
    makers: list[Any] = [*type(method).__mro__, *dict.fromkeys(type(m) for m in module.modules()), task.loss, task.model]
    found: dict[str, str] = {}
    for name in dict.fromkeys(_written_in(makers)):
        file = getattr(sys.modules.get(name), "__file__", None)
        if name.partition(".")[0] not in _VERSIONED and file is not None and Path(file).is_file():
            found[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return found


def _written_in(makers: Iterable[Any]) -> Iterable[str]:
    for maker in makers:
        while isinstance(maker, functools.partial):
            maker = maker.func
        name = getattr(maker, "__module__", None)
        if isinstance(name, str):
            yield name


def provenance(task: Task, layout: str, code: Mapping[str, str]) -> dict[str, Any]:
    """Return the provenance to store in a checkpoint.

    Args:
        task: task of the run.
        layout: digest of the model's layout.
        code: see `sources`.
    """
    defaults = digest(task.lr, task.batch_size, task.buffers, task.trainable, task.in_time)
    versions = {"torch": str(torch.__version__), "paceline": importlib.metadata.version("paceline")}
    return {"data": dict(task.fingerprint), "layout": layout, "defaults": defaults, "versions": versions, "code": dict(code)}


def compare(saved: Any, now: Mapping[str, Any], where: str) -> None:
    """Warn of changes since a checkpoint.

    Args:
        saved: provenance in the checkpoint.
        now: current provenance.
        where: name of the checkpoint, for messages.

    Raises:
        CheckpointError: the samples or the model's shape have changed.
    """
    if not isinstance(saved, dict):
        _warn(f"{where} was written by an earlier version and does not identify its data; make sure that they have not changed")
        return
    data = _changed(saved["data"], now["data"])
    if data:
        raise CheckpointError(
            f"{where}: the task's data have changed since this checkpoint ({', '.join(data)}); restore them, or start a new run"
        )
    if saved["layout"] != now["layout"]:
        raise CheckpointError(
            f"{where}: the model's parameters differ from this checkpoint; restore its definition, or start a new run"
        )
    if saved["defaults"] != now["defaults"]:
        _warn(f"{where}: the task's defaults (lr, batch_size, buffers, trainable) have changed since this checkpoint")
    for name in _changed(saved["versions"], now["versions"]):
        _warn(
            f"{where} was written with {name} {saved['versions'].get(name)}; the installed version is {now['versions'].get(name)}"
        )
    for name in _changed(saved["code"], now["code"]):
        _warn(f"{where}: the source of {name} has changed since this checkpoint")


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _warn(text: str) -> None:
    warnings.warn(f"{text}; the run continues, but its result may differ bitwise", ResumeWarning, stacklevel=3)
