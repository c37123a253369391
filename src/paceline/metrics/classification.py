"""Metrics of class indices, from hits, predictions and targets of each class (and a few sums for ordered classes)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from paceline.core.errors import ConfigError
from paceline.metrics.base import ClassMetric, mean_of, ratio

__all__ = ["F1", "Accuracy", "BalancedAccuracy", "Kappa", "Matthews", "Precision", "Recall"]

Average = Literal["macro", "micro", "weighted"]


@dataclass(frozen=True)
class Accuracy(ClassMetric):
    """Share of targets whose class is among the `top` highest scores; also for the worst class.

    Args:
        top: number of highest scores.
        per_class: also return the accuracy of each class.
    """

    top: int = 1
    per_class: bool = False

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ConfigError(f"metric 'accuracy': top={self.top} is below 1")

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return "accuracy" if self.top == 1 else f"top{self.top}_accuracy"

    @property
    def counted(self) -> bool:
        """Whether every evaluation has the terms."""
        return self.top == 1

    def count(self, scores: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return hits and targets of each class, int64 [C]."""
        best = scores.topk(min(self.top, scores.shape[1]), 1).indices if self.top > 1 else scores.argmax(1, keepdim=True)
        right = (best == targets[:, None]).any(1)
        return {"class_correct": _of_each(targets[right], scores), "class_count": _of_each(targets, scores)}

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return accuracy, that of the worst class, and if asked for that of each class."""
        hits, counts = total["class_correct"], total["class_count"]
        each, present = ratio(hits, counts), counts > 0
        found = {self.figure: float(hits.sum()) / float(counts.sum()) if bool(present.any()) else math.nan}
        found[f"worst_class_{self.figure}"] = float(each[present].min()) if bool(present.any()) else math.nan
        if self.per_class:
            shares = zip(each.tolist(), present.tolist(), strict=True)
            found |= {f"class_{i}_{self.figure}": value if known else math.nan for i, (value, known) in enumerate(shares)}
        return found


@dataclass(frozen=True)
class BalancedAccuracy(ClassMetric):
    """Mean accuracy over the classes that occur."""

    @property
    def counted(self) -> bool:
        """Whether every evaluation has the terms."""
        return True

    def count(self, scores: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return hits and targets of each class, int64 [C]."""
        return Accuracy().count(scores, targets)

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the balanced accuracy."""
        counts = total["class_count"]
        return {"balanced_accuracy": mean_of(ratio(total["class_correct"], counts), counts > 0)}


@dataclass(frozen=True)
class _Averaged(ClassMetric):
    """Base of precision, recall and F1.

    Args:
        average: ``macro`` (mean over classes that occur or are predicted), ``micro`` (over all targets) or ``weighted`` (by
            the targets of each class).
        per_class: also return the value of each class.
    """

    average: Average = "macro"
    per_class: bool = False
    name: ClassVar[str] = ""

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return f"{self.average}_{self.name}"

    def count(self, scores: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return hits, predictions and targets of each class, int64 [C]."""
        found = scores.argmax(1)
        return {
            "hits": _of_each(targets[found == targets], scores),
            "predicted": _of_each(found, scores),
            "targets": _of_each(targets, scores),
        }

    def value(self, hits: Tensor, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the value of each class from its hits, predictions and targets."""
        raise NotImplementedError

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the average, and if asked for the value of each class."""
        hits, predicted, targets = total["hits"], total["predicted"], total["targets"]
        each, present = self.value(hits, predicted, targets), (predicted + targets) > 0
        if self.average == "micro":
            whole = self.value(hits.sum(), predicted.sum(), targets.sum())
            mean = float(whole) if bool(present.any()) else math.nan
        elif self.average == "weighted":
            mean = float((each * targets).sum() / targets.sum()) if bool(present.any()) else math.nan
        else:
            mean = mean_of(each, present)
        found = {self.figure: mean}
        return found | ({f"class_{i}_{self.name}": v for i, v in enumerate(each.tolist())} if self.per_class else {})


@dataclass(frozen=True)
class Precision(_Averaged):
    """Share of the predictions of a class that are right."""

    name: ClassVar[str] = "precision"

    def value(self, hits: Tensor, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return precision."""
        return ratio(hits, predicted)


@dataclass(frozen=True)
class Recall(_Averaged):
    """Share of the targets of a class that are found."""

    name: ClassVar[str] = "recall"

    def value(self, hits: Tensor, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return recall."""
        return ratio(hits, targets)


@dataclass(frozen=True)
class F1(_Averaged):
    """Harmonic mean of precision and recall."""

    name: ClassVar[str] = "f1"

    def value(self, hits: Tensor, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return F1."""
        return ratio(2 * hits, predicted + targets)


@dataclass(frozen=True)
class Matthews(ClassMetric):
    """Matthews correlation coefficient, for any number of classes (R_K of Gorodkin, 2004)."""

    limits: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def count(self, scores: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return hits, predictions and targets of each class, int64 [C]."""
        return F1().count(scores, targets)

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the coefficient; 0 if targets or predictions are all of one class."""
        hits, p, t = (total[name].double() for name in ("hits", "predicted", "targets"))
        n = t.sum()
        if not n:
            return {"matthews": math.nan}
        spread = (n**2 - p.square().sum()) * (n**2 - t.square().sum())
        return {"matthews": float((hits.sum() * n - (p * t).sum()) / spread.sqrt()) if spread > 0 else 0.0}


@dataclass(frozen=True)
class Kappa(ClassMetric):
    """Cohen's kappa: agreement beyond chance.

    Args:
        weights: of a disagreement between classes i and j: ``none`` (1), ``linear`` (|i - j|) or ``quadratic`` ((i - j)^2).
    """

    weights: Literal["none", "linear", "quadratic"] = "none"
    limits: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return "kappa" if self.weights == "none" else f"{self.weights}_kappa"

    def count(self, scores: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return the summed weights of disagreements, and predictions and targets of each class."""
        found = scores.argmax(1)
        return {
            "disagreement": self._weight(found - targets).sum(),
            "predicted": _of_each(found, scores),
            "targets": _of_each(targets, scores),
        }

    def _weight(self, distance: Tensor) -> Tensor:
        return {"none": distance != 0, "linear": distance.abs(), "quadratic": distance**2}[self.weights].long()

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return kappa; NaN if targets and predictions are all of one class."""
        p, t = total["predicted"].double(), total["targets"].double()
        place = torch.arange(len(p))
        chance = float((self._weight(place[:, None] - place) * torch.outer(p, t)).sum()) / max(float(t.sum()), 1.0)
        return {self.figure: 1 - float(total["disagreement"]) / chance if chance > 0 else math.nan}


def _of_each(classes: Tensor, scores: Tensor) -> Tensor:
    """Return how often each class occurs, int64 [C]."""
    return torch.bincount(classes, minlength=scores.shape[1])
