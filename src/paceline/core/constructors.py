"""Constructors of `Task` from data as users have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from paceline.core.arrays import Arrays
from paceline.core.checks import check_range, try_model
from paceline.core.columns import columns, first, kind_of, length
from paceline.core.datasets import joined, samples
from paceline.core.errors import ConfigError, DataFormatError, UnknownNameError
from paceline.core.frames import FrameColumns, check_frame, classes_of, codes
from paceline.core.hooks import Loss
from paceline.core.huggingface import RowDataset, check_dataset, class_names
from paceline.core.layout import Buffers
from paceline.core.losses import find_loss
from paceline.core.making import (
    QUANTITY_LOSSES,
    apart,
    are_indices,
    classes_in,
    held_out,
    maker,
    owners_of,
    reading_scores,
    rows_of,
    scaling_of,
    sized,
    told,
)
from paceline.core.metrics import Metric

__all__ = ["Constructors", "ReadOptions", "TaskOptions"]

ModelLike = type[nn.Module] | nn.Module | Callable[[], nn.Module]


class ReadOptions(TypedDict, total=False):
    """How map-style data sets are read.

    Args:
        resident: whether all samples are read into memory at once, or each when a batch needs it; by default up to 2 GiB.
        collate: makes a batch of a list of samples.
        workers: threads that read batches ahead.
    """

    resident: bool | None
    collate: Callable[[list[Any]], Any] | None
    workers: int


class TaskOptions(TypedDict, total=False):
    """What the constructors of a task have in common; see `Task` for what the fields mean.

    Args:
        loss: name of a loss, see `paceline.core.losses.LOSSES`, or a function (outputs, targets) -> scalar.
        num_classes: number of classes; by default the largest target plus one, and 0 for a loss without classes.
        ignore_index: target that does not count.
        mask: entry of the targets that is 0 where they do not count.
        output: entry of the outputs that holds the scores.
        batch_size, lr: defaults of the local training.
        name: in configurations, tables and plots.
        classes: names of the classes.
        buffers: treatment of running statistics.
        trainable: glob patterns of the parameters that are trained, None for all.
        notes: a line for people.
        metrics: metrics, or their names with options; the first is primary.
        target_scaling: mean and deviation by which the targets were standardised.
    """

    loss: Loss | str
    num_classes: int | None
    ignore_index: int | None
    mask: str | None
    output: str | int | None
    batch_size: int
    lr: float
    name: str
    classes: Sequence[str]
    buffers: Buffers
    trainable: Sequence[str] | None
    notes: str
    metrics: Sequence[Metric | str]
    target_scaling: tuple[float, float]


class _Options(TaskOptions, ReadOptions):
    """Options of a task, and of how its data are read."""


class Constructors:
    """The constructors of `Task`."""

    @classmethod
    def from_datasets(
        cls,
        train: Any,
        test: Any,
        model: ModelLike,
        *,
        resident: bool | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 2,
        **options: Unpack[TaskOptions],
    ) -> Self:
        """Return a task of your own data and model.

        Args:
            train: samples that are partitioned over clients: a map-style data set whose samples are pairs (inputs, targets), or
                a pair of columns. Inputs and targets are tensors, arrays, numbers, or tuples and dicts of them.
            test: the central test set, likewise.
            model: a module's class, a function that makes one (both called without arguments, once the seed is set), or a
                module, whose weights are the start: it is copied once and never trained.
            resident: whether all samples are read into memory at once, or each when a batch needs it; by default up to 2 GiB.
            collate: makes a batch (inputs, targets) of a list of samples, which are then read when a batch needs them.
            workers: threads that read batches ahead.
            options: see `TaskOptions`.

        Raises:
            DataError: there are no samples, inputs and targets have different lengths, or a value is NaN.
            DataFormatError: samples that are no pairs, and targets that the loss does not take.
            ConfigError: a model that cannot be built or does not take a sample, or a loss that is no scalar; all is tried at once.

        Example:
            >>> from paceline import Task
            >>> x, y = torch.randn(40, 6), torch.arange(40) % 3
            >>> task = Task.from_datasets((x, y), (x[:9], y[:9]), model=lambda: nn.Linear(6, 3))
            >>> len(task.train), task.num_classes
            (40, 3)
        """
        make, kind = maker(model)
        read = {"resident": resident, "collate": collate, "workers": workers}
        parts = [samples(data, which, kind, **read) for data, which in ((train, "train"), (test, "test"))]  # type: ignore[arg-type]
        return cls._of(parts[0], parts[1], make, None, (), options)

    @classmethod
    def from_tensors(cls, inputs: Any, targets: Any, model: ModelLike, *, test: Any = 0.2, **options: Unpack[TaskOptions]) -> Self:
        """Return a task of columns: tensors, arrays, `Ragged`, `Mapped`, or tuples and dicts of them.

        Args:
            inputs: what the model is called with: ``model(x)``, ``model(*inputs)`` for a tuple, ``model(**inputs)`` for a dict.
            targets: what the loss is called with.
            model: see `from_datasets`.
            test: the central test set as a pair (inputs, targets), or the share of the samples that is held out at random.
            options: see `TaskOptions`.

        Raises what `from_datasets` raises.

        Example:
            >>> from paceline import Task
            >>> x = torch.randn(40, 6)
            >>> task = Task.from_tensors(x, x.sum(1), model=lambda: nn.Linear(6, 1), loss="mse")
            >>> len(task.train), len(task.test), task.num_classes
            (32, 8, 0)
        """
        make, kind = maker(model)
        train = samples((inputs, targets), "train", kind)
        if isinstance(test, int | float):
            train, held = apart(train, held_out(length(train[0]), test))
        else:
            held = samples(test, "test", kind)
        return cls._of(train, held, make, None, (), options)

    @classmethod
    def from_clients(cls, clients: Mapping[str, Any], model: ModelLike, *, test: Any = 0.2, **options: Unpack[_Options]) -> Self:
        """Return a task whose clients are given: run it with ``partition="natural"`` and as many clients.

        Args:
            clients: data set of each client, by its name; each as `from_datasets` takes them.
            model: see `from_datasets`.
            test: the central test set, or the share of each client's samples that goes to it.
            options: see `TaskOptions` and `ReadOptions`.

        Raises what `from_datasets` raises.

        Example:
            >>> from paceline import Task
            >>> data = {name: (torch.randn(10, 4), torch.arange(10) % 2) for name in ("north", "south")}
            >>> task = Task.from_clients(data, model=lambda: nn.Linear(4, 2))
            >>> task.train.owners, len(task.train), len(task.test)
            (('north', 'south'), 16, 4)
        """
        if not isinstance(clients, Mapping) or not clients:
            raise ConfigError("from_clients takes a dict with the data set of each client by its name, such as {'north': (x, y)}")
        make, kind = maker(model)
        read: Any = {key: options.pop(key) for key in ("resident", "collate", "workers") if key in options}
        parts = [samples(data, f"client {name!r}", kind, **read) for name, data in clients.items()]
        held = None
        if isinstance(test, int | float):
            rows = [held_out(length(part[0]), test, k) for k, part in enumerate(parts)]
            pairs = [apart(part, some) for part, some in zip(parts, rows, strict=True) if len(some)] or [apart(parts[0], rows[0])]
            kept = iter([pair[0] for pair in pairs])
            parts = [
                next(kept) if len(some) else part for part, some in zip(parts, rows, strict=True)
            ]  # one sample is for training
            held = joined([pair[1] for pair in pairs], "test")
        owner = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([length(x) for x, _ in parts]))
        found = samples(test, "test", kind, **read) if held is None else held
        return cls._of(joined(parts, "train"), found, make, owner, tuple(map(str, clients)), options)

    @classmethod
    def from_dataframe(
        cls,
        frame: Any,
        target: str,
        model: Callable[[int], nn.Module] | nn.Module,
        *,
        test: Any = 0.2,
        columns: Sequence[str] | None = None,
        client: str | None = None,
        standardize: bool = True,
        **options: Unpack[TaskOptions],
    ) -> Self:
        """Return a task of a data frame of pandas or polars: one row per sample.

        Texts, categories and truth values in `target` are classes. Up to 20 whole numbers from 0 without gaps are class indices.
        Any other numbers are a quantity, learnt with the loss ``mse`` unless another one is named. A quantity is standardised for
        the losses ``mse``, ``l1`` and ``huber``; metrics and predictions are in its own unit.

        Args:
            frame: the samples.
            target: column to predict.
            model: a module, or a function of the number of inputs that makes one: text columns become one input per category.
            test: the central test set as a data frame, or the share of the rows that is held out at random.
            columns: the inputs; by default all columns but `target` and `client`.
            client: column with the natural client of each row; run the task with ``partition="natural"``.
            standardize: subtract the mean of numeric columns, and of a quantity in `target`, and divide by their deviation, both of
                the training rows.
            options: see `TaskOptions`.

        Raises:
            UnknownNameError: there is no such column; lists the nearest names.
            DataError: a value is missing; names column and row.
            DataFormatError: a column that is neither numeric nor has few texts.

        Example:
            >>> import pandas as pd
            >>> from paceline import Task
            >>> frame = pd.DataFrame({"age": [30, 40, 50, 60] * 5, "sex": ["f", "m"] * 10, "price": [1.5, 2.5, 3.5, 4.5] * 5})
            >>> task = Task.from_dataframe(frame, "price", model=lambda inputs: nn.Linear(inputs, 1))
            >>> task.info["inputs"], task.loss.name
            ('age, sex=f, sex=m', 'mse')
        """
        check_frame(frame)
        whole, rest = frame, test
        if isinstance(test, int | float):
            held = held_out(len(frame), test).numpy()
            whole, rest = rows_of(frame, np.setdiff1d(np.arange(len(frame)), held)), rows_of(frame, held)
        names = [str(c) for c in frame.columns if c not in (target, client)] if columns is None else list(columns)
        made = FrameColumns(whole, names, standardize)
        classes = classes_of(frame, target)
        pairs = [(made.matrix(part), codes(part, target, classes)) for part in (whole, rest)]
        if classes is not None:
            options.setdefault("classes", classes)
        elif "loss" not in options and not are_indices(pairs[0][1], options.get("num_classes")):
            options["loss"] = "mse"
        if classes is None and options.get("loss") in QUANTITY_LOSSES:
            pairs = [(x, y.double()) for x, y in pairs]
            if standardize and "target_scaling" not in options:
                mean, deviation = options["target_scaling"] = scaling_of(pairs[0][1])
                pairs = [(x, (y - mean) / deviation) for x, y in pairs]
        owner, owners = (None, ()) if client is None else owners_of(whole[client].to_numpy())
        make, kind = maker(model if isinstance(model, nn.Module) else sized(model, len(made.inputs)))
        options.setdefault("name", "frame")
        task = cls._of(samples(pairs[0], "train", kind), samples(pairs[1], "test", kind), make, owner, owners, options)
        count = task.num_classes  # type: ignore[attr-defined]
        named = classes or options.get("classes") or list(range(count))
        schema = made.schema(target, named, task.target_scaling)  # type: ignore[attr-defined]
        task.info.update({"inputs": ", ".join(made.inputs), "schema": schema})  # type: ignore[attr-defined]
        return task

    @classmethod
    def from_huggingface(
        cls,
        dataset: Any,
        model: ModelLike,
        *,
        inputs: str | Sequence[str],
        targets: str | Sequence[str],
        test: Any = 0.2,
        client: str | None = None,
        **options: Unpack[_Options],
    ) -> Self:
        """Return a task of a data set of the `datasets` library (``pip install datasets``).

        Args:
            dataset: a ``datasets.Dataset`` with numbers, sequences of one length, or images in the columns that are used.
            model: see `from_datasets`; called with the input columns by name where there are several.
            inputs: column of the inputs, or several.
            targets: column of the targets, or several.
            test: the central test set as another such data set, or the share of the samples that is held out at random.
            client: column with the natural client of each sample.
            options: see `TaskOptions` and `ReadOptions`; a data set that is not read into memory is decoded batch by batch.

        Raises what `from_datasets` raises; `DataFormatError` for a dict of data sets.
        """

        check_dataset(dataset, [inputs, targets, *([client] if client else [])])
        rest = test
        if isinstance(test, int | float):
            held = held_out(len(dataset), test).numpy()
            kept = np.setdiff1d(np.arange(len(dataset)), held)
            dataset, rest = dataset.select(kept), dataset.select(held)
        make, kind = maker(model)
        read: Any = {key: options.pop(key) for key in ("resident", "collate", "workers") if key in options}
        if isinstance(targets, str) and (names := class_names(dataset, targets)):
            options.setdefault("classes", names)
        owner, owners = (None, ()) if client is None else owners_of(dataset[client])
        parts = [
            samples(RowDataset(data, inputs, targets), which, kind, **read) for data, which in ((dataset, "train"), (rest, "test"))
        ]
        return cls._of(parts[0], parts[1], make, owner, owners, options)

    @classmethod
    def _of(
        cls,
        train: tuple[Any, Any],
        test: tuple[Any, Any],
        make: Callable[[], nn.Module],
        owner: Tensor | None,
        owners: Sequence[str],
        options: Mapping[str, Any],
    ) -> Self:
        """Make the task, and try a sample of it."""
        (x, y), (x_test, y_test), given = train, test, dict(options)
        for name in given:
            if name not in TaskOptions.__annotations__:
                raise UnknownNameError("option", name, TaskOptions.__annotations__)
        kind, other = kind_of(first(x)), kind_of(first(x_test))
        if kind != other and not any(not getattr(column, "uniform", True) for _, column in columns(x)):
            raise DataFormatError(f"train samples are {told(kind)}, but test samples are {told(other)}")
        classes = tuple(given.pop("classes", ()))
        loss = find_loss(given.pop("loss", "cross_entropy"), given.get("ignore_index"), given.get("mask"), given.get("output"), y)
        wanted = given.pop("num_classes", None)
        count = classes_in(make, x, y, y_test, loss, wanted if wanted is not None else len(classes) or None, given)
        loss = reading_scores(make, x, loss, given)
        check_range(y, "train", loss, given.get("ignore_index"))
        check_range(y_test, "test", loss, given.get("ignore_index"))
        try_model(make, first(x, 2), first(y, 2), loss, count, given.get("output"))
        made: Any = cls
        task: Self = made(
            given.pop("name", "data"),
            Arrays(x, y, owner, owners),
            Arrays(x_test, y_test),
            make,
            count,
            loss,
            classes=classes if count or getattr(loss, "name", "") == "bce" else (),
            **given,
        )
        return task
