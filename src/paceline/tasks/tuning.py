"""Parameter-efficient tuning of a task's model: the same task for any method, with only these parameters in its vector."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.parsing import Spec
from paceline.core.task import Task
from paceline.models.pool import pooled
from paceline.models.tuning import Tuning, tuned

__all__ = ["parse_tuning", "tune", "tune_pool"]


def parse_tuning(text: str) -> Tuning:
    """Parse ``bias``, ``adapter:width=16`` or ``lora:rank=8,alpha=16,targets=q_proj/v_proj``.

    Raises:
        UnknownNameError: unknown option.
        ConfigError: invalid value.

    Example:
        >>> parse_tuning("adapter:width=16").width
        16
    """
    spec = Spec.parse(text, "peft", modules=False)
    known = {f.name for f in dataclasses.fields(Tuning)} - {"prototype"}
    values: dict[str, Any] = {"prototype": spec.name}
    for key, value in spec.options.items():
        if key not in known:
            raise UnknownNameError(f"option of peft={spec.name!r}:", key, known)
        values[key] = str(value).split("/") if key == "targets" else value
    try:
        made: Tuning = TypeAdapter(Tuning).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"peft={text!r}: {': '.join([*map(str, first['loc'][:1]), first['msg']])}") from None
    return made


def tune(task: Task, tuning: Tuning) -> Task:
    """Return the task with its model frozen except for the parameters of a tuning; ``full`` returns the task itself.

    Frozen parameters are never sent, so they must be identical on every client: a pretrained model, or one initialised from
    the run's seed.

    Raises:
        ConfigError: the task is already tuned, or the model does not support the tuning.
    """
    if tuning.prototype == "full":
        return task
    _untuned(task)
    model = partial(tuned, task.model, tuning)
    changed = dataclasses.replace(task, model=model)
    module = changed.build(0)
    names = tuning.names(module)
    sizes = {n: p.numel() for n, p in module.named_parameters()}
    if not names:
        raise ConfigError(f"peft={tuning.prototype} matches no parameter of {type(module).__name__}; it has {list(sizes)}")
    summary = f"{tuning.prototype}, {sum(sizes[n] for n in names):,} of {sum(sizes.values()):,} parameters"
    return dataclasses.replace(changed, trainable=names, info={**task.info, "tuned": summary})


def tune_pool(task: Task, members: int, selected: int, spread: float = 0.02) -> Task:
    """Return the task with its model frozen and a pool around it (`paceline.models.pool`), which alone is trained.

    Args:
        task: the task.
        members: number of members of the pool.
        selected: members that a sample uses.
        spread: deviation of the initial scales and shifts.

    Raises:
        ConfigError: the task is already tuned, its model has no head, or `selected` is above `members`.
    """
    _untuned(task)
    changed = dataclasses.replace(task, model=partial(pooled, task.model, members, selected, spread))
    names = [name for name, _ in changed.build(0).named_parameters() if ".ssf." in name or not name.startswith("backbone.")]
    return dataclasses.replace(changed, trainable=names, info={**task.info, "tuned": f"pool, {selected} of {members} members"})


def _untuned(task: Task) -> None:
    if task.trainable is not None:
        raise ConfigError(f"task {task.name!r} already trains only a part of its model ({task.info.get('tuned', task.trainable)})")
