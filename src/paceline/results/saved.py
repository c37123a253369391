"""The models of a run that lies in a folder, and what that folder names: a method and a task, or objects to give again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from paceline import registry
from paceline.assembly import build_method, read_task
from paceline.core.config import RunConfig
from paceline.core.errors import ConfigError, LayoutError, StoreError
from paceline.core.layout import Layout
from paceline.core.method import Method
from paceline.core.params import Params
from paceline.core.random import derive
from paceline.core.task import Task
from paceline.data.files import is_file_task
from paceline.results.card import Card
from paceline.results.model import ELSEWHERE, FinalModel, check_global, global_module, personal_module
from paceline.results.predictor import load_predictor
from paceline.store import RunFolder
from paceline.store.weights import check_names

if TYPE_CHECKING:
    from paceline.runner import Run

__all__ = ["check_task", "saved_method", "saved_model"]


def saved_method(folder: RunFolder, config: RunConfig) -> Method:
    """Return a kept run's method. Raises `ConfigError` for one that cannot be found by name."""
    try:
        return build_method(config)
    except ConfigError as error:
        if ":" not in config.method:
            raise
        raise ConfigError(f"{folder.path}: {error}; or pass the run's method as an object: method=...") from error


def check_task(folder: RunFolder, config: RunConfig) -> None:
    """Raise `ConfigError` where a kept run's task was an object."""
    if config.task not in registry.names("task") and not is_file_task(config.task) and ":" not in config.task:
        raise ConfigError(
            f"{folder.path}: the run's task {config.task!r} was an object, which is not saved; pass it again: task=..."
        )


def saved_model(
    folder: RunFolder, task: Task | None, method: Method | None, reopen: Callable[[], Run], model: Any = None
) -> FinalModel:
    """Return the models of a run that has ended.

    Args:
        folder: of the run.
        task: the run's task, where it was an object.
        method: the run's method, where it cannot be found by name.
        reopen: prepares the run as it ended.
        model: a module, its class or a function that makes one, where its description does not make it.
    """
    config = RunConfig.build(folder.read_config())

    @functools.cache
    def parts() -> tuple[Method, Task]:
        if task is None:
            check_task(folder, config)
        return (method or saved_method(folder, config)).fit_task(task or read_task(config))

    def params() -> Params:
        fitted, own = parts()
        tensors = folder.load_model()
        if not fitted.has_model:
            layout = Layout.build([(name, tuple(tensor.shape), "param") for name, tensor in tensors.items()])
        else:
            layout = Layout.of(own.build(derive(config.seed, "init")), own.trainable, own.buffers)
        if {e.name: tuple(tensors[e.name].shape) if e.name in tensors else None for e in layout.entries} != {
            e.name: e.shape for e in layout.entries
        }:
            raise StoreError(f"{folder.model} does not match the model of task {own.name!r}; pass the run's own task")
        return Params(torch.cat([tensors[e.name].reshape(-1).float() for e in layout.entries]), layout)

    def whole() -> nn.Module:
        saved = Card.read(folder.path)
        if saved is not None and saved.whole and (model is not None or (task is None and saved.module is not None)):
            return load_predictor(folder.path, model).module
        fitted, own = parts()
        check_global(fitted)
        if saved is None:  # a run of an earlier version
            return global_module(own, params(), config.seed)
        module, tensors = own.build(derive(config.seed, "init")), folder.load_model()
        try:
            check_names(module, tensors, str(folder.model), f"task {own.name!r}")
        except LayoutError as error:
            raise StoreError(f"{error}; pass the run's own task") from error
        module.load_state_dict(tensors, strict=True)
        return module.eval()

    def card() -> Card:
        saved = Card.read(folder.path)
        if saved is not None:
            return saved
        fitted, own = parts()
        return Card.of(own, config, fitted.has_model)

    def personal(client: int) -> nn.Module:
        if config.engine == "grpc":
            raise ConfigError(ELSEWHERE)
        run = reopen()
        try:
            return personal_module(run, client)
        finally:
            run.close()

    return FinalModel(params, whole, personal, card)
