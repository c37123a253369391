"""What `paceline.run` is called with, as a configuration and the objects that take the place of names in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from paceline import registry
from paceline.core.config import RunConfig
from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.method import Method
from paceline.core.metrics import Metric
from paceline.core.task import Task

__all__ = ["Arguments", "MethodLike", "TaskLike", "arguments", "as_task", "metric_texts"]

MethodLike = RunConfig | Method[Any] | type[Method[Any]] | str
TaskLike = Task | tuple[Any, Any] | str | None


@dataclass(frozen=True)
class Arguments:
    """A run as it was asked for.

    Args:
        config: the configuration, with the method's name and fields.
        method: the method, where an object was given; else None.
        task: the task, where an object or data were given; else None.
    """

    config: RunConfig
    method: Method[Any] | None = None
    task: Task | None = None


def arguments(method: MethodLike, task: TaskLike, model: Any, fields: Mapping[str, Any]) -> Arguments:
    """Read a call's arguments.

    Args:
        method: a configuration, a method, a method's class, or a name with options (``"fedprox:mu=0.1"``).
        task: a task, a name, a pair of data sets (train, test), or None for the configuration's.
        model: of a named task: a model by name, or a class or function of a module; of data sets: what `Task.from_datasets` takes.
        fields: of `RunConfig`.

    Raises `UnknownNameError` with the nearest names for a field that does not exist, `ConfigError` for a value that does
    not fit and for a field of the method that was given as one of the run.
    """
    values: dict[str, Any] = {}
    if isinstance(method, RunConfig):
        values, asked = method.model_dump(exclude_unset=True), None
        owner = None
    else:
        values, asked = _method(method)
        owner = type(asked) if asked is not None else registry.find_method(values["method"])
    _check_names(fields, owner)
    if asked is not None and fields.get("options"):
        raise ConfigError(f"options are fields of the method object: write {type(asked).__name__}({_written(fields['options'])})")
    if "metrics" in fields:
        fields = {**fields, "metrics": metric_texts(fields["metrics"])}
    values |= {**fields, "options": {**values.get("options", {}), **fields.get("options", {})}}
    made = None
    if isinstance(task, str):
        named = model if model is None or isinstance(model, str) else registry.name_of("model", model)
        values |= {"task": task, "model": named}
    elif task is None:
        values |= {} if model is None else {"model": model}
    else:
        made = as_task(task, model)
        values |= {"task": made.name, "model": None}
    config = RunConfig.build(values)
    return Arguments(config if isinstance(method, RunConfig) else config.fitted(), asked, made)


def metric_texts(metrics: Any) -> list[str]:
    """Return metrics as a configuration names them.

    Args:
        metrics: a name with options, a metric, its class, or a list of these.

    Raises:
        ConfigError: for anything else, and a metric whose class is not a global name of a module.

    Example:
        >>> from paceline.metrics import AUROC, Accuracy
        >>> metric_texts(["f1:average=micro", Accuracy(top=5), AUROC])
        ['f1:average=micro', 'accuracy:top=5', 'auroc']
    """
    several = metrics if isinstance(metrics, list | tuple) else [metrics]
    return [metric if isinstance(metric, str) else _metric_text(metric) for metric in several]


def _metric_text(metric: Any) -> str:
    if isinstance(metric, type) and issubclass(metric, Metric):
        return registry.name_of("metric", metric)
    if not isinstance(metric, Metric):
        raise ConfigError(f"{_what(metric)} is not a metric; pass a name such as 'f1', or a paceline.metrics.Metric")
    name, made = registry.name_of("metric", metric), cast(Any, metric)
    fields = dataclasses.fields(made) if dataclasses.is_dataclass(made) else ()
    if unknown := sorted(set(vars(metric)) - {f.name for f in fields}):
        raise ConfigError(
            f"metric {name} has the options {', '.join(unknown)}; make it a frozen dataclass, so that clients get them"
        )
    changed = [f for f in fields if f.init and not _is_default(metric, f)]
    options = ",".join(f"{f.name}={json.dumps(_plain(getattr(metric, f.name)))}" for f in changed)
    return f"{name}:{options}" if options else name


def _method(method: Any) -> tuple[dict[str, Any], Method[Any] | None]:
    """Return the fields of the configuration that name a method, and the method where it is an object."""
    if isinstance(method, str):
        spec = registry.parse("method", method)
        return {"method": spec.name, "options": spec.options}, None
    if isinstance(method, type) and issubclass(method, Method):
        method = method()
    if not isinstance(method, Method):
        hint = "; the method comes first, then the task" if isinstance(method, Task) else ""
        raise ConfigError(
            f"{_what(method)} is not a method; pass an object such as paceline.methods.FedAvg(), a name such as 'fedavg', or a "
            f"RunConfig{hint}"
        )
    changed = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init and not _is_default(method, f)}
    options = {name: _plain(value) for name, value in changed.items()}
    return {"method": _name(type(method)), "options": options}, method


def _name(method: type[Method[Any]]) -> str:
    """Return the name of a method's class; one that cannot be found again is given again to resume its run."""
    try:
        return registry.name_of("method", method)
    except ConfigError:
        return f"{method.__module__}:{method.__qualname__}"


def _is_default(method: Any, field: dataclasses.Field[Any]) -> bool:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    value = getattr(method, field.name)
    return type(value) is type(default) and bool(value == default)


def _plain(value: Any) -> Any:
    """Return a value as a configuration can hold it; what is no plain value becomes its name."""
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    named = getattr(value, "__qualname__", None)
    return repr(value) if named is None else f"{value.__module__}:{named}"


def as_task(task: Any, model: Any) -> Task:
    """Return a task object, or that of a pair of data sets (train, test) and a model."""
    if isinstance(task, Task):
        if model is not None:
            raise ConfigError("the model is part of the task: Task.from_datasets(train, test, model=...)")
        return task
    if not isinstance(task, tuple) or len(task) != 2:
        raise ConfigError(f"{_what(task)} is not a task; pass a Task, the name of one, or a pair (train, test) with model=...")
    if model is None:
        raise ConfigError("a pair (train, test) requires model=...: a module, a module's class, or a function that returns one")
    return Task.from_datasets(*task, model=model)


def _check_names(fields: Mapping[str, Any], method: type[Method[Any]] | None) -> None:
    """Raise `UnknownNameError` for a field that does not exist, or `ConfigError` where the method has it or a name is needed."""
    for name in ("aggregation", "engine"):
        if not isinstance(fields.get(name, ""), str):
            raise ConfigError(
                f"{name} is {_what(fields[name])}; pass a name ('module:Class' for your own class), or build the "
                f"run with paceline.prepare(config, {name}=...)"
            )
    for name in fields:
        if name in RunConfig.model_fields and name not in ("method", "task", "model"):
            continue
        if method is not None and name in {f.name for f in dataclasses.fields(method)}:
            raise ConfigError(
                f"{name} is a field of the method, not of the run: write {method.__name__}({_written({name: fields[name]})})"
            )
        raise UnknownNameError("option", name, RunConfig.model_fields)


def _what(value: Any) -> str:
    """Return what a value is, without its contents."""
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"


def _written(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
