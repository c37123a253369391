"""Tasks whose samples come from domains with one set of classes: clients differ in their inputs (feature shift).

A domain is a natural client of the data: ``partition=natural`` is one client for each, ``partition=domains`` a group of clients for each,
which ``by_group`` evaluates apart. The central evaluation gives the figures of each domain's test samples (``part_0_accuracy``, ...), in
the order of ``task.train.owners``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from paceline.core.arrays import Arrays
from paceline.core.errors import ConfigError
from paceline.core.random import numpy_rng
from paceline.core.task import Part, Task
from paceline.data.corruptions import corrupt
from paceline.data.raw import Part as RawPart
from paceline.data.raw import RawData
from paceline.data.sources import find_source
from paceline.tasks.datasets import DataRecipe
from paceline.tasks.from_data import Defaults, apart, make_task
from paceline.tasks.recipe import find_recipe, task_card

__all__ = ["DomainRecipe", "DomainTask", "TargetTask", "corrupted", "held_out", "load_corrupted"]


@dataclass(frozen=True)
class DomainTask(Task):
    """A task whose test samples are judged by domain too; the domains are the owners of the samples."""

    @staticmethod
    def of(task: Task) -> DomainTask:
        """Return a task with owners as a `DomainTask`."""
        return DomainTask(**{f.name: getattr(task, f.name) for f in fields(Task)})

    def parts(self) -> Sequence[Part]:
        """Return the rows of each domain's test samples."""
        assert self.test.owner is not None
        return [(torch.nonzero(self.test.owner == domain).flatten(), None) for domain in range(len(self.test.owners))]


@dataclass(frozen=True)
class TargetTask(Task):
    """A task whose server has unlabelled samples of the domain that is judged.

    Args:
        target: the samples. Their labels only measure how good pseudo-labels are.
    """

    target: Arrays = field(kw_only=True)


def held_out(task: Task, domain: str | None) -> TargetTask:
    """Return a task of which one domain is the target: no client has its training samples, and its test samples are the test set.

    Args:
        task: the task; for a named domain its samples have owners.
        domain: name of the domain; None leaves clients and test set as they are, and the target is the inputs of the test set.

    Raises:
        ConfigError: the task has no domain of this name, or no other one, or it has no test samples.
    """
    given = {f.name: getattr(task, f.name) for f in fields(Task)}
    if domain is None:
        return TargetTask(**given, target=task.test)
    train, test = task.train, task.test
    if train.owner is None or test.owner is None or domain not in train.owners or len(train.owners) < 2:
        known = ", ".join(train.owners) if train.owner is not None and test.owner is not None else "none"
        raise ConfigError(
            f"target={domain}: task {task.name!r} has these domains: {known}; name one of several, or leave target out"
        )
    code = list(train.owners).index(domain)
    own = train.owner == code
    rest = train.subset(torch.nonzero(~own).flatten())
    assert rest.owner is not None
    owners = tuple(name for name in train.owners if name != domain)
    given["train"] = Arrays(rest.x, rest.y, rest.owner - (rest.owner > code).long(), owners)
    judged = test.subset(torch.nonzero(test.owner == code).flatten())
    if not len(judged):
        raise ConfigError(f"target={domain}: task {task.name!r} has no test samples of this domain; name another one")
    given["test"] = Arrays(judged.x, judged.y)
    found = train.subset(torch.nonzero(own).flatten())
    return TargetTask(**given, target=Arrays(found.x, found.y))


@dataclass(frozen=True)
class DomainRecipe(DataRecipe):
    """A named data set with domains."""

    def load(self, name: str, model: str | None, seed: int, options: Mapping[str, Any]) -> Task:
        """Read the data."""
        return DomainTask.of(super().load(name, model, seed, options))


def corrupted(raw: RawData, kinds: Sequence[str], severity: int) -> RawData:
    """Return pictures in which each kind of corruption is a domain with an equal share of each class.

    The result depends on the data, the kinds and the severity alone, not on a run's seed. Every picture is in one domain.

    Args:
        raw: pictures (uint8) with classes.
        kinds: names of `paceline.data.corruptions.CORRUPTIONS`, ``clean``, ``inverted``, and ``turned-N`` for N degrees.
        severity: from 1 to 5.
    """

    def spread(part: RawPart, which: str) -> RawPart:
        rng, owner, x = numpy_rng(0, "domain", which), np.empty(len(part), dtype=np.int64), part.x.copy()
        for value in np.unique(part.y):
            rows = rng.permutation(np.flatnonzero(part.y == value))
            owner[rows] = (np.arange(len(rows)) + value) % len(kinds)
        for number, kind in enumerate(kinds):
            rows = np.flatnonzero(owner == number)
            x[rows] = corrupt(part.x[rows], kind, severity, numpy_rng(0, "corruption", which, kind))
        return RawPart(x, part.y, owner)

    assert raw.test is not None
    return RawData(spread(raw.train, "train"), spread(raw.test, "test"), raw.classes, tuple(kinds))


@task_card("pictures with common corruptions; client = corruption", "its data's own", "cifar10-test-split")
def load_corrupted(
    model: str | None = None,
    seed: int = 0,
    of: str = "cifar10-test-split",
    kinds: str = "clean/gaussian-noise/defocus-blur/contrast/colour",
    severity: int = 3,
    **options: Any,
) -> DomainTask:
    """Return the pictures of a named data set as domains: one for each of `kinds`, see `corrupted`; further options are its data's."""
    recipe, names = find_recipe(of), kinds.split("/")
    if not isinstance(recipe, DataRecipe) or recipe.defaults.content != "image":
        raise ConfigError(f"of={of} must be a data set of pictures, such as cifar10-test-split or fashion-mnist")
    if len(set(names)) < len(names):
        raise ConfigError(f"kinds={kinds} names a corruption twice")
    limit, for_model, for_data = apart(options, model or recipe.model)
    source = find_source(recipe.source)
    raw = corrupted(source.load(**for_data), names, severity)
    chosen = model or recipe.model
    defaults = replace(recipe.defaults, lr=0.02) if chosen == "vgg9" else recipe.defaults  # diverges at the rate for clean pictures
    about = f"{source.about}; domains of severity {severity}: {', '.join(names)}"
    return DomainTask.of(make_task(f"corrupted {of}", chosen, for_model, defaults, raw, about, limit, seed))


FOUR_DIGITS = DomainRecipe("tiny_cnn", "four-digits", Defaults(batch_size=20, lr=0.1))
EMOJI_VENDORS = DomainRecipe("tiny_cnn", "emoji-vendors", Defaults(batch_size=20, lr=0.05))
MRI_TISSUE = DomainRecipe("unet", "mri-tissue", Defaults("image", 8, lr=0.3))
