"""A task: data, a model, a loss and what counts as correct. Methods see nothing else of a problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.datasets import check_labels, model_maker, samples, try_model
from paceline.core.errors import DataFormatError
from paceline.core.fingerprint import digest
from paceline.core.generators import drawing
from paceline.core.layout import Buffers
from paceline.core.metrics import Metric

__all__ = ["Arrays", "Task"]

Loss = Callable[[Tensor, Tensor], Tensor]
Part = tuple[Tensor, Callable[[nn.Module, Tensor], Tensor] | None]


@dataclass(frozen=True)
class Arrays:
    """A data set in memory.

    Args:
        x: inputs, shape [N, ...].
        y: targets, shape [N, ...]; class indices (int64) in classification.
        owner: natural client of each sample, shape [N] (int64 codes), or None.
        owners: names of the natural clients, by code.
    """

    x: Tensor
    y: Tensor
    owner: Tensor | None = None
    owners: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.x)

    def subset(self, index: Tensor) -> Arrays:
        """Return the samples at `index` (copied)."""
        return Arrays(self.x[index], self.y[index], None if self.owner is None else self.owner[index], self.owners)


@dataclass(frozen=True)
class Task:
    """One learning problem.

    Args:
        name: as on the command line.
        train: samples that are partitioned over clients.
        test: the central test set.
        model: builds a fresh, seeded-by-the-caller module.
        loss: mean loss of (outputs, targets) as a scalar tensor.
        num_classes: number of classes, or of output symbols.
        lr, batch_size: defaults that suit the reference model.
        buffers: the policy for BatchNorm's statistics.
        trainable: glob patterns of the parameters that are trained, None for all.
        notes: a line for people.
        info: further figures and names, such as where the data come from.
        classes: names of the classes, by code; may be empty.
        in_time: whether the samples of a natural client follow in time.
        metrics: metrics, or their names with options; the first is primary. A run's own metrics replace them.
        overlap: number of following training samples that share content with a sample, such as overlapping windows of a text.

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
    num_classes: int
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

    @staticmethod
    def from_datasets(
        train: Any,
        test: Any,
        model: type[nn.Module] | nn.Module | Callable[[], nn.Module],
        *,
        loss: Loss = F.cross_entropy,
        num_classes: int | None = None,
        batch_size: int = 20,
        lr: float = 0.05,
        name: str = "data",
        classes: Sequence[str] = (),
        buffers: Buffers = "average",
        trainable: Sequence[str] | None = None,
    ) -> Task:
        """Return a classification task of your own data and model.

        Args:
            train: samples that are partitioned over clients: a map-style data set whose samples are pairs (x, y), or a
                pair of tensors or arrays. Each sample is read once.
            test: the central test set, likewise.
            model: a module's class, a function that makes one (both called without arguments, once the seed is set), or a
                module, whose weights are the start: it is copied once and never trained.
            loss: mean loss of (outputs, targets) as a scalar tensor.
            num_classes: number of classes; by default the largest target plus one.
            batch_size: default of the local training.
            lr: default learning rate of the local training.
            name: in configurations, tables and plots.
            classes: names of the classes.
            buffers: the policy for BatchNorm's statistics.
            trainable: glob patterns of the parameters that are trained, None for all.

        Raises:
            DataError: where there are no samples, or x and y have different lengths.
            DataFormatError: for samples that are no pairs, and targets that are no class indices.
            ConfigError: for a model that cannot be built or does not take a sample, which is tried at once.

        Example:
            >>> x, y = torch.randn(40, 6), torch.arange(40) % 3
            >>> task = Task.from_datasets((x, y), (x[:9], y[:9]), model=lambda: nn.Linear(6, 3))
            >>> len(task.train), task.num_classes
            (40, 3)
        """
        (x, y), (x_test, y_test) = samples(train, "train"), samples(test, "test")
        if x.shape[1:] != x_test.shape[1:] or x.dtype != x_test.dtype:
            raise DataFormatError(
                f"train samples are {x.dtype} of shape {list(x.shape[1:])}, but test samples are {x_test.dtype} of {list(x_test.shape[1:])}"
            )
        count = check_labels(y, y_test, num_classes or len(classes) or None, loss)
        make = model_maker(model)
        try_model(make, x, y, loss, count)
        return Task(
            name,
            Arrays(x, y),
            Arrays(x_test, y_test),
            make,
            count,
            loss,
            lr,
            batch_size,
            buffers,
            trainable,
            classes=tuple(classes),
        )

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


_NO_DATA = {f.name for f in fields(Task)} - {"train", "test"}
"""What of a task is no data, or counts under another name."""
