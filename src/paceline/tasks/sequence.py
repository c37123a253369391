"""Sequences of tasks (continual learning): data by round, and measures of forgetting.

A sequence is one `Task` whose samples each belong to a stage. In round r clients have only the samples of stage
``(r - 1) // rounds_each``; the test set is evaluated stage by stage. Every method therefore runs on a sequence, whether
or not it supports stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.core.random import torch_rng
from paceline.core.task import Arrays, Part, Task
from paceline.tasks.recipe import task_card

__all__ = [
    "TaskSequence",
    "forgetting",
    "load_permuted",
    "load_split",
    "permuted",
    "split_classes",
    "stage_accuracies",
]


@dataclass(frozen=True, kw_only=True)
class TaskSequence(Task):
    """A sequence of tasks.

    Args:
        stage: stage of each training sample, shape [N] (int64).
        test_stage: stage of each test sample.
        rounds_each: number of rounds of each stage; the last one continues.
        heads: outputs used by each stage, shape [stages, classes] (bool), if each has its own head.
    """

    stage: Tensor
    test_stage: Tensor
    rounds_each: int
    heads: Tensor | None = None

    @property
    def stages(self) -> int:
        """Number of stages."""
        return int(self.stage.max()) + 1

    def stage_at(self, round: int) -> int:
        """Return the stage of a round (from 1)."""
        return min((round - 1) // self.rounds_each, self.stages - 1)

    def ends_stage(self, round: int) -> bool:
        """Return whether a round is the last one of its stage."""
        return round % self.rounds_each == 0 and round <= self.stages * self.rounds_each

    steady: ClassVar[bool] = False

    def present(self, rows: Tensor, round: int) -> Tensor:
        """Return the rows that belong to the round's stage."""
        return rows[self.stage[rows] == self.stage_at(round)]

    def parts(self) -> Sequence[Part]:
        """Return each stage's test rows, and the scores of its own head."""
        found: list[Part] = []
        for stage in range(self.stages):
            head = None if self.heads is None else _only(self.heads[stage])
            found.append((torch.nonzero(self.test_stage == stage).flatten(), head))
        return found


def _only(classes: Tensor) -> Callable[[nn.Module, Tensor], Tensor]:
    """Return scores in which outputs of other heads cannot win."""

    def scores(module: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = module(x)
        return out.masked_fill(~classes.to(out.device), -1e9)

    return scores


def _head_loss(head_of: Tensor, heads: Tensor, out: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy over the outputs of the head to which a target's class belongs."""
    mine = heads.to(out.device)[head_of.to(out.device)[y]]
    return F.cross_entropy(torch.where(mine, out, -1e9), y)


def permuted(task: Task, stages: int = 4, rounds_each: int = 25, seed: int = 0) -> TaskSequence:
    """Return a sequence in which each stage has the same samples with inputs shuffled by its own permutation.

    The outputs are shared. Stage 0 preserves the order; permutations depend only on the seed.
    """
    _check(stages, rounds_each)
    width = task.train.tensors("a task sequence")[0][0].numel()
    orders = [torch.arange(width)]
    orders += [torch.randperm(width, generator=torch_rng(seed, "permuted", s)) for s in range(1, stages)]

    def shown(part: Arrays) -> tuple[Arrays, Tensor]:
        x = torch.cat([part.x.flatten(1)[:, order].view_as(part.x) for order in orders])
        owner = None if part.owner is None else part.owner.repeat(stages)
        return Arrays(x, part.y.repeat(stages), owner, part.owners), torch.arange(stages).repeat_interleave(len(part))

    (train, stage), (test, test_stage) = shown(task.train), shown(task.test)
    return TaskSequence(
        **_fields(task, f"permuted {task.name}"),
        train=train,
        test=test,
        stage=stage,
        test_stage=test_stage,
        rounds_each=rounds_each,
    )


def split_classes(task: Task, stages: int = 5, rounds_each: int = 25, heads: bool = True) -> TaskSequence:
    """Return a sequence in which each stage has its own classes, in order.

    Args:
        task: task to split.
        stages: number of stages, at most the number of classes.
        rounds_each: rounds of each stage.
        heads: each stage has its own outputs (task-incremental); otherwise all compete (class-incremental).

    Raises:
        ConfigError: a value is out of range.
    """
    _check(stages, rounds_each)
    if stages > task.num_classes:
        raise ConfigError(f"stages={stages}: {task.name} has only {task.num_classes} classes")
    head_of = torch.arange(task.num_classes) * stages // task.num_classes
    own = torch.stack([head_of == s for s in range(stages)])
    fields = _fields(task, f"split {task.name}")
    if heads:
        fields["loss"] = partial(_head_loss, head_of, own)
    return TaskSequence(
        **fields,
        train=task.train,
        test=task.test,
        stage=head_of[task.train.y],
        test_stage=head_of[task.test.y],
        rounds_each=rounds_each,
        heads=own if heads else None,
    )


def _check(stages: int, rounds_each: int) -> None:
    if stages < 1 or rounds_each < 1:
        raise ConfigError(f"stages={stages} and rounds_each={rounds_each} must be at least 1")


def _fields(task: Task, name: str) -> dict[str, Any]:
    """Return a plain task's fields except its samples."""
    known = {f.name: getattr(task, f.name) for f in dataclasses.fields(Task)}
    return {k: v for k, v in known.items() if k not in ("train", "test")} | {"name": name}


def stage_accuracies(record: Mapping[str, float]) -> list[float]:
    """Return each stage's test accuracy from a round's record."""
    found: list[float] = []
    while f"part_{len(found)}_accuracy" in record:
        found.append(float(record[f"part_{len(found)}_accuracy"]))
    return found


def forgetting(history: Sequence[Mapping[str, float]], rounds_each: int) -> tuple[float, float]:
    """Return (ACC, FGT) of a run.

    ACC is the mean over stages of the final accuracy. FGT is the mean, over all stages except the last, of the accuracy
    directly after the stage minus the final accuracy.

    Raises:
        ConfigError: the run was not evaluated at the end of every stage.
    """
    by_round = {int(r["round"]): stage_accuracies(r) for r in history if "part_0_accuracy" in r}
    last = by_round[max(by_round)] if by_round else []
    ends = [(s + 1) * rounds_each for s in range(len(last))]
    missing = [r for r in ends if r not in by_round]
    if missing or not last:
        raise ConfigError(
            f"rounds {missing or ends} were not evaluated; forgetting requires an evaluation at the end of each of {len(last)} stages"
        )
    drops = [by_round[end][s] - last[s] for s, end in enumerate(ends[:-1])]
    return sum(last) / len(last), sum(drops) / max(len(drops), 1)


@task_card("the same samples in each stage, with the inputs permuted anew", "mlp", "digits")
def load_permuted(
    model: str | None = None,
    seed: int = 0,
    of: str = "digits",
    stages: int = 4,
    rounds_each: int = 25,
    **options: Any,
) -> TaskSequence:
    """Return `permuted` of a named task; further options are passed to that task."""
    return permuted(_load(of, model, seed, options), stages, rounds_each, seed)


@task_card("a few classes per stage, each with its own outputs", "mlp", "digits")
def load_split(
    model: str | None = None,
    seed: int = 0,
    of: str = "digits",
    stages: int = 5,
    rounds_each: int = 25,
    heads: bool = True,
    **options: Any,
) -> TaskSequence:
    """Return `split_classes` of a named task; further options are passed to that task."""
    return split_classes(_load(of, model, seed, options), stages, rounds_each, heads)


def _load(of: str, model: str | None, seed: int, options: Mapping[str, Any]) -> Task:
    from paceline.tasks.load import load_task

    return load_task(of, model=model, seed=seed, **options)
