"""Metrics: what a metric is, figures of summed evaluations, and quality of clusterings.

A metric has two halves. Its terms are computed where the samples are, and add up over batches and clients; its figures are
computed from the sum. So every metric works centrally, federated and under secure aggregation, and none needs a list of
predictions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor

from paceline.core.digits import digits, real
from paceline.core.errors import ConfigError, PacelineError, UnusableSumError
from paceline.core.failures import reason_of
from paceline.core.placement import download

__all__ = [
    "Judges",
    "Metric",
    "Primary",
    "added",
    "adjusted_rand",
    "chosen",
    "failed",
    "figures",
    "measured",
    "packed",
    "primary",
    "told_figures",
]


Judges = Literal["anything", "classes", "labels", "values"]
"""What targets a metric is for: no particular ones, class indices, labels from 0 to 1, or real values."""


class Metric:
    """A figure of merit whose terms add up over batches and clients.

    A subclass defines `terms` and `figures`. Its options are the fields of a frozen dataclass. For class
    indices, labels and values, the bases in `paceline.metrics` leave out targets that do not count.

    Example:
        >>> import torch
        >>> class Bias(Metric):
        ...     limits = (-math.inf, math.inf)
        ...     def terms(self, outputs, targets):
        ...         return {"error": (outputs - targets).sum(), "count": torch.tensor(targets.numel())}
        ...     def figures(self, total):
        ...         return {"bias": float(total["error"]) / max(int(total["count"]), 1)}
        >>> metric = Bias()
        >>> metric.figure, metric.figures(metric.terms(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])))
        ('bias', {'bias': 1.0})
    """

    higher_is_better: ClassVar[bool] = True
    """Whether a larger figure is better."""

    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """Range of the main figure; one between 0 and 1 is shown in percent."""

    whole: ClassVar[bool] = True
    """Whether `terms` takes outputs and targets as they are; otherwise the tensor of scores, and that of targets in which those
    that do not count are negative or NaN."""

    judges: ClassVar[Judges] = "anything"
    """What targets it is for; others are refused before a run."""

    @property
    def figure(self) -> str:
        """Name of the main figure, a key of `figures`: the class's name in snake case by default."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def counted(self) -> bool:
        """Whether the terms are ``class_correct`` and ``class_count``, which every evaluation of class indices has."""
        return False

    def terms(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Return the terms of a batch: whole tensors (counts) are summed as they are, real ones exactly by their digits.

        Shapes must not depend on the batch: every client sends the same.

        Args:
            outputs: outputs of the model, a tensor or a tree of tensors; see `whole`.
            targets: targets of the batch, likewise.
        """
        raise NotImplementedError

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return figures by name; NaN where nothing was counted.

        Args:
            total: summed terms: int64, or float64 for real terms.
        """
        raise NotImplementedError


def failed(metric: Metric, function: str, error: Exception) -> PacelineError:
    """Return the error for a metric whose function raised one: that itself if it is Paceline's, else where it was raised."""
    if isinstance(error, PacelineError):
        return error
    if isinstance(error, NotImplementedError):
        return ConfigError(f"{type(metric).__name__} has no function {function}; define terms and figures")
    return ConfigError(f"metric {metric.figure}: {type(metric).__name__}.{function} failed: {reason_of(error)}")


class Primary(NamedTuple):
    """The figure by which a run is judged: target, patience, tables and plots use it.

    Args:
        name: key of a round's record.
        higher_is_better: whether a larger value is better.
        limits: its range.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    limits: tuple[float, float] = (0.0, 1.0)

    @property
    def in_percent(self) -> bool:
        """Whether it is shown in percent."""
        return self.limits == (0.0, 1.0)

    def reached(self, value: float, target: float) -> bool:
        """Return whether a value is at least as good as a target."""
        return value >= target if self.higher_is_better else value <= target

    def better(self, value: float, other: float) -> bool:
        """Return whether a value is better than another."""
        return value > other if self.higher_is_better else value < other

    def best(self, values: Sequence[float]) -> float:
        """Return the best of some values."""
        return max(values) if self.higher_is_better else min(values)


def chosen(problem: Any) -> tuple[Metric, ...]:
    """Return the metrics of a problem; empty where it has only loss and correct answers."""
    return tuple(getattr(problem, "metrics", ()) or ())


def primary(metrics: Sequence[Metric], classes: bool = True) -> Primary:
    """Return the primary figure: that of the first metric, otherwise accuracy, or the loss where there are no classes.

    Args:
        metrics: metrics of the run.
        classes: whether targets are class indices.
    """
    if metrics:
        return Primary(metrics[0].figure, metrics[0].higher_is_better, metrics[0].limits)
    return Primary() if classes else Primary("loss", False, (0.0, math.inf))


def packed(terms: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return a metric's terms as whole tensors: counts as they are, real ones as digits."""
    fixed = dict(zip(terms, download([value.detach() for value in terms.values()]), strict=True))
    return {
        "counts": {name: value.long() for name, value in fixed.items() if not value.is_floating_point()},
        "values": {name: digits(value) for name, value in fixed.items() if value.is_floating_point()},
    }


def added(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sum of evaluations, entry by entry."""
    return {
        key: added([p[key] for p in parts]) if isinstance(v, Mapping) else sum(p[key] for p in parts) for key, v in parts[0].items()
    }


def measured(sums: Mapping[str, Any], metrics: Sequence[Metric]) -> dict[str, float]:
    """Return the figures of metrics from a summed evaluation.

    Raises:
        ConfigError: a metric does not return its main figure, or two metrics return one of the same name.
    """
    found: dict[str, float] = {}
    for metric in metrics:
        terms = sums.get("metrics", {}).get(metric.figure)
        if metric.counted and terms is None:
            total = {name: sums[name] for name in ("class_correct", "class_count")}
        elif terms is None:  # a method that evaluates something else than the model's outputs
            continue
        else:
            total = {**terms["counts"], **{name: real(value) for name, value in terms["values"].items()}}
        try:
            new = metric.figures(total)
        except Exception as error:
            raise failed(metric, "figures", error) from error
        if metric.figure not in new:
            raise ConfigError(f"{type(metric).__name__}.figures returned {sorted(new)} without its main figure {metric.figure!r}")
        found |= new
    return found


def figures(sums: Mapping[str, Any], metrics: Sequence[Metric] = ()) -> dict[str, Any]:
    """Return the figures of a summed evaluation: of the metrics, of correct answers, the mean loss, and of each part.

    Where nothing was classified (regression, a black-box objective), there are no accuracies.

    Args:
        sums: summed results of `paceline.core.evaluation.evaluate`.
        metrics: metrics whose terms were computed.

    Raises:
        ConfigError: as `measured`.
    """
    count = max(int(sums["count"]), 1)
    own = measured(sums, metrics)
    per_class = sums["class_correct"].double() / sums["class_count"].clamp(min=1)
    present = sums["class_count"] > 0
    if int(sums["count"]) and not bool(present.any()):
        return {**_of_parts(sums, metrics, ("loss",)), "loss": sums["loss"] / count, **own}
    return {
        **_of_parts(sums, metrics, ("accuracy", "loss")),
        "accuracy": sums["correct"] / count,
        "loss": sums["loss"] / count,
        "worst_class_accuracy": float(per_class[present].min()) if bool(present.any()) else math.nan,
        **own,
    }


def told_figures(sums: Mapping[str, Any], metrics: Sequence[Metric] = ()) -> dict[str, Any]:
    """Return the `figures` of sums that clients sent, whose values may be anything.

    Raises:
        UnusableSumError: there are none.
    """
    try:
        return figures(sums, metrics)
    except (ConfigError, ArithmeticError, ValueError) as error:
        raise UnusableSumError(f"the sums of the clients give no figures: {error}") from error


def _of_parts(sums: Mapping[str, Any], metrics: Sequence[Metric], names: Sequence[str]) -> dict[str, float]:
    """Return figures of each part of the test set, and those of the metrics."""
    found: dict[str, float] = {}
    for i, part in enumerate(sums.get("parts", ())):
        known = {"accuracy": part["correct"], "loss": part["loss"]}
        found |= {f"part_{i}_{name}": known[name] / max(part["count"], 1) for name in names}
        found |= {f"part_{i}_{name}": value for name, value in measured(part, metrics).items()}
    return found


def adjusted_rand(found: Sequence[int], true: Sequence[int]) -> float:
    """Return the adjusted Rand index of two labellings: 1 for equal partitions, about 0 by chance.

    Args:
        found, true: label of each item, in the same order; only equality of labels counts.

    Example:
        >>> adjusted_rand([0, 0, 1, 1], [5, 5, 3, 3])
        1.0
    """
    table = np.zeros((len(set(found)), len(set(true))))
    np.add.at(table, (np.unique(found, return_inverse=True)[1], np.unique(true, return_inverse=True)[1]), 1)

    def pairs(counts: Any) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = rows * columns / max(pairs(table.sum()), 1.0)
    most = (rows + columns) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)
