"""A task: data, a model, a loss and what counts as correct. Methods see nothing else of a problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.arrays import Arrays
from paceline.core.constructors import Constructors
from paceline.core.errors import ConfigError
from paceline.core.fingerprint import digest
from paceline.core.generators import drawing
from paceline.core.hooks import Loss
from paceline.core.layout import Buffers
from paceline.core.losses import find_loss
from paceline.core.metrics import Metric

__all__ = ["Arrays", "Task"]

Part = tuple[Tensor, Callable[[nn.Module, Tensor], Tensor] | None]


@dataclass(frozen=True)
class Task(Constructors):
    """One learning problem.

    The model is called as ``model(x)``, ``model(*inputs)`` for a tuple, or ``model(**inputs)`` for a dict, and may return a
    tensor, a tuple, a dict or an object with attributes.

    Args:
        name: as on the command line.
        train: samples that are partitioned over clients.
        test: the central test set.
        model: builds a fresh, seeded-by-the-caller module.
        loss: name of a loss, see `paceline.core.losses.LOSSES`, or a function: mean loss of (outputs, targets) as a scalar.
        num_classes: number of classes, or of output symbols; 0 where there are none, as in regression.
        lr, batch_size: defaults that suit the reference model.
        buffers: the policy for BatchNorm's statistics.
        trainable: glob patterns of the parameters that are trained, None for all.
        notes: a line for people.
        info: further figures and names, such as where the data come from.
        classes: names of the classes, by code; may be empty.
        in_time: whether the samples of a natural client follow in time.
        metrics: metrics, or their names with options; the first is primary. A run's own metrics replace them.
        overlap: number of following training samples that share content with a sample, such as overlapping windows of a text.
        ignore_index: target that does not count, such as 255 in segmentation; for losses by name and for accuracies.
        mask: entry of a dict of targets that is 0 where they do not count; for losses by name.
        target_scaling: mean and deviation by which targets of floats were standardised: metrics are in the unit that they had before.
        server: labelled samples of the server's own, on which a method trains there (`paceline.blocks.server_data`).
        output: entry of the outputs that holds the scores, where it is not ``logits``, ``out`` or ``scores``.

    Example:
        >>> import paceline as pl
        >>> import torch
        >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
        >>> task = pl.Task.from_datasets((x[:60], y[:60]), (x[60:], y[60:]), model=lambda: torch.nn.Linear(4, 3))
        >>> task.num_classes, len(task.train), len(task.test)
        (3, 60, 30)
    """

    name: str
    train: Arrays
    test: Arrays
    model: Callable[[], nn.Module]
    num_classes: int = 0
    loss: Loss = F.cross_entropy
    lr: float = 0.05
    batch_size: int = 20
    buffers: Buffers = "average"
    trainable: Sequence[str] | None = None
    notes: str = ""
    info: dict[str, str] = field(default_factory=dict)
    classes: Sequence[str] = ()
    in_time: bool = False
    overlap: int = 0
    metrics: Sequence[Metric | str] = ()
    ignore_index: int | None = None
    mask: str | None = None
    output: str | int | None = None
    target_scaling: tuple[float, float] = (0.0, 1.0)
    server: Arrays | None = None

    def __post_init__(self) -> None:
        loss = find_loss(self.loss, self.ignore_index, self.mask, self.output, self.train.y)
        if loss is not self.loss:
            object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "target_scaling", _scaling(self.target_scaling))

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of the samples, wherever they come from: of ``train``, of ``test``, and of what a kind of task adds.

        Values, types, shapes, owners and class names count; model, loss, hyperparameters and texts for people do not.
        """
        added = [f.name for f in fields(self) if f.name not in _NO_DATA]
        return {name: digest(getattr(self, name)) for name in added} | {"classes": digest(self.num_classes, list(self.classes))}

    def build(self, seed: int) -> nn.Module:
        """Return a module initialised from `seed` alone; the global random generators are left as they were."""
        with drawing(seed):
            if torch.cuda.is_available():
                torch.manual_seed(seed)  # a module that begins on a GPU too
            return self.model()

    steady: ClassVar[bool] = True
    """Whether all of a client's rows are there in every round."""

    def present(self, rows: Tensor, round: int) -> Tensor:
        """Return which of a client's rows are available in a round: all of them, unless tasks follow each other.

        Args:
            rows: rows of the client, int64 [n].
            round: number of the round, from 1.

        Returns:
            a subset of the rows, int64.
        """
        return rows

    def parts(self) -> Sequence[Part]:
        """Return what of the test set is judged by itself too: rows, and ``(module, inputs) -> scores`` or None."""
        return ()


def _scaling(given: Any) -> tuple[float, float]:
    """Return mean and deviation of the targets as two numbers."""
    try:
        mean, deviation = (float(value) for value in given)
        if math.isfinite(mean) and 0 < deviation < math.inf:
            return mean, deviation
    except (TypeError, ValueError, RuntimeError):
        pass
    raise ConfigError(
        f"target_scaling={given!r} must be the mean and the deviation of all targets, two numbers with a deviation above 0; where columns "
        "of targets have scalings of their own, leave it out: metrics are then in standardised units"
    )


_NO_DATA = {f.name for f in fields(Task)} - {"train", "test"}
"""What of a task is no data, or counts under another name."""
