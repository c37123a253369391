"""A vision transformer pretrained on some classes, to be tuned on all of them."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch

from paceline.core.errors import ConfigError
from paceline.core.fields import Positive
from paceline.core.fingerprint import digest
from paceline.core.random import torch_rng
from paceline.core.task import Task
from paceline.models.pretraining import kept, pretrain, with_weights
from paceline.tasks.recipe import task_card

__all__ = ["load_tuning", "pretrained"]


def pretrained(task: Task, classes: int, epochs: int, seed: int = 0, share: float = 0.5, seen_groups: int | None = None) -> Task:
    """Return a task whose model was trained centrally on the first `classes` classes, and has a new head.

    A fraction `share` of these classes' training samples is used for that and removed from the task. The trained weights
    are cached on this machine (see `kept`).

    Args:
        task: the original task.
        classes: number of classes of the pretraining.
        epochs: epochs of the pretraining.
        seed: seed of the pretraining.
        share: fraction of the samples of these classes.
        seen_groups: use samples of the first so many groups only, for example of one style of three; all by default.

    Raises:
        ConfigError: a value is out of range.
    """
    if not 1 <= classes <= task.num_classes or epochs < 1 or not 0 < share < 1:
        raise ConfigError(
            f"classes={classes} must be at most {task.num_classes}, epochs={epochs} at least 1, and share={share} between 0 and 1"
        )
    seen = task.train.y < classes
    if seen_groups is not None:
        if task.train.owner is None:
            raise ConfigError(f"task {task.name!r} has no groups; leave out seen_groups={seen_groups}")
        if not 1 <= seen_groups <= len(task.train.owners):
            raise ConfigError(
                f"seen_groups={seen_groups} must be at least 1 and at most the task's {len(task.train.owners)} groups"
            )
        seen &= task.train.owner < seen_groups
    known = torch.nonzero(seen).flatten()
    known = known[torch.randperm(len(known), generator=torch_rng(seed, "pretrained"))[: int(share * len(known))]]
    if not len(known):
        raise ConfigError(
            f"no sample is left for pretraining: {share:.0%} of {int(seen.sum())} of these classes and groups; take more"
        )
    left = torch.ones(len(task.train), dtype=torch.bool)
    left[known] = False
    x, y = task.train.x[known], task.train.y[known]
    made = (task.model.args, sorted(task.model.keywords.items())) if isinstance(task.model, partial) else task.model.__qualname__
    key = repr((digest(x, y), made, classes, epochs, seed, share, "v2"))  # the samples say which groups were seen
    weights = kept(key, task.model, lambda module: pretrain(module, x, y, epochs=epochs, seed=seed), seed)
    return dataclasses.replace(
        task,
        name=f"{task.name} after {classes} classes" + (f" of {seen_groups} groups" if seen_groups else ""),
        train=task.train.subset(torch.nonzero(left).flatten()),
        model=partial(with_weights, task.model, weights),
    )


@task_card("a vision transformer pretrained on five classes, to be tuned on all", "vit", "digits")
def load_tuning(
    model: str | None = None,
    seed: int = 0,
    of: str = "digits",
    classes: Positive[int] = 5,
    epochs: Positive[int] = 30,
    patch: Positive[int] | None = None,
    seen_groups: Positive[int] | None = None,
    **options: Any,
) -> Task:
    """Return `pretrained` of a named task with the model ``vit`` (or another one); further options are its."""
    from paceline.tasks.load import load_task

    name = model or "vit"
    if name == "vit":
        side = load_task(of, limit=1).train.x.shape[-1]
        options["patch"] = patch or next(p for p in (7, 4, 2, 1) if side % p == 0)
    return pretrained(load_task(of, model=name, seed=seed, **options), classes, epochs, seed=0, seen_groups=seen_groups)
