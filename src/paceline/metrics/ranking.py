"""Metrics of rankings from histograms of scores, with the resolution of their bins.

Scores are placed in bins by the distance z of their log-odds from those of C equally likely classes, evenly in asinh(20 z) for
|z| <= 40. So bins are narrow where a model that has learned little has its scores, and scores near 0 and 1 keep their order
too. Scores of one bin count as ties. How far the figure can be off is known from the counts, and is returned beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from paceline.core.errors import ConfigError
from paceline.core.metrics import Judges, Metric
from paceline.core.terms import leading
from paceline.metrics.base import ClassMetric, LabelMetric, mean_of, ratio

__all__ = ["AUROC", "AveragePrecision", "Youden", "bins_of", "histogram", "log_odds"]

_STEEP, _WIDEST = 20.0, 40.0


@dataclass(frozen=True)
class _Binned(Metric):
    """Base of metrics that are computed from histograms of positive and negative scores.

    Args:
        bins: bins of each class's scores.
        average: over classes, one against the rest: ``macro`` or ``weighted`` by their targets. With two classes, class 1
            counts; labels of a multi-label task are classes.
    """

    whole: ClassVar[bool] = False
    judges: ClassVar[Judges] = "classes"

    bins: int = 1000
    average: Literal["macro", "weighted"] = "macro"

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ConfigError(f"metric {self.figure!r}: bins={self.bins} is below 2")

    def terms(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Return the histograms of positive and negative scores, int64 [C, bins]."""
        scores, y = leading(outputs), leading(targets)
        several = scores.shape == y.shape and y.dim() > 1 and y.shape[1] > 1
        return (_Labels if several else _Classes)(self.bins).terms(outputs, targets)

    def each(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and largest error of each class, from float64 histograms [C, bins], highest scores first."""
        raise NotImplementedError

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the average, and ``..._resolution``: how much the order within bins can change it."""
        positive, negative = total["positive"].double().flip(1), total["negative"].double().flip(1)
        there = (positive.sum(1) > 0) & (negative.sum(1) > 0)
        value, off = self.each(positive, negative)
        weight = torch.where(there, positive.sum(1) if self.average == "weighted" else torch.ones_like(value), 0.0)
        whole = float(weight.sum())
        mean, error = (float((torch.where(there, v, 0.0) * weight).sum()) / whole if whole else math.nan for v in (value, off))
        return {self.figure: mean, f"{self.figure}_resolution": error}


@dataclass(frozen=True)
class AUROC(_Binned):
    """Area under the ROC curve: probability that a positive scores above a negative, ties counted half."""

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return "auroc"

    def each(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Return the area; pairs within a bin are worth half, so they can be off by half their share."""
        pairs = (positive.sum(1) * negative.sum(1)).clamp(min=1)
        above = positive.cumsum(1) - positive / 2
        return (negative * above).sum(1) / pairs, (positive * negative).sum(1) / 2 / pairs


@dataclass(frozen=True)
class AveragePrecision(_Binned):
    """Average precision: sum over thresholds of (R_n - R_n-1) P_n."""

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return "average_precision"

    def each(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Return the precision averaged over bins, and its largest distance to any order within them."""
        tp, fp = positive.cumsum(1), negative.cumsum(1)
        whole = positive.sum(1).clamp(min=1)
        value = (positive * tp / (tp + fp).clamp(min=1)).sum(1) / whole
        best = _within(positive, tp - positive, fp - negative).sum(1) / whole
        worst = _within(positive, tp - positive, fp).sum(1) / whole
        return value, torch.maximum(best - value, value - worst)


@dataclass(frozen=True)
class Youden(_Binned):
    """Youden's index: the largest difference of true and false positive rates; precision, recall and F1 at that threshold."""

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return "youden"

    def each(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Return the index at the best edge of a bin; another threshold within a bin could gain at most its share of positives."""
        index, best = self._best(positive, negative)
        return index, positive.gather(1, best).squeeze(1) / positive.sum(1).clamp(min=1)

    def _best(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        rates = [counts.cumsum(1) / counts.sum(1, keepdim=True).clamp(min=1) for counts in (positive, negative)]
        index, best = (rates[0] - rates[1]).max(1, keepdim=True)
        return index.squeeze(1), best

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the index, and ``youden_precision``, ``youden_recall`` and ``youden_f1``, averaged over classes."""
        positive, negative = total["positive"].double().flip(1), total["negative"].double().flip(1)
        _, best = self._best(positive, negative)
        true, false = (counts.cumsum(1).gather(1, best).squeeze(1) for counts in (positive, negative))
        whole = positive.sum(1)
        there = (whole > 0) & (negative.sum(1) > 0)
        rates = {"precision": ratio(true, true + false), "recall": ratio(true, whole), "f1": ratio(2 * true, true + false + whole)}
        return super().figures(total) | {f"youden_{name}": mean_of(rate, there) for name, rate in rates.items()}


def _within(count: Tensor, before: Tensor, false: Tensor) -> Tensor:
    """Return the sum over j = 1 .. count of (before + j) / (before + j + false)."""
    start = before + false + 1
    return count - false * (torch.digamma(start + count) - torch.digamma(start))


@dataclass(frozen=True)
class _Classes(ClassMetric):
    bins: int

    def count(self, scores: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        hot = torch.nn.functional.one_hot(targets, scores.shape[1]) > 0
        known = torch.ones_like(hot)
        last = slice(1 if scores.shape[1] == 2 else 0, None)  # of two classes, class 1
        distance = log_odds(scores) + math.log(max(scores.shape[1] - 1, 1))
        return _histograms(distance[:, last], hot[:, last], known[:, last], self.bins)


@dataclass(frozen=True)
class _Labels(LabelMetric):
    bins: int

    def count(self, scores: Tensor, targets: Tensor, known: Tensor) -> Mapping[str, Tensor]:
        return _histograms(scores, targets, known, self.bins)


def _histograms(scores: Tensor, positive: Tensor, known: Tensor, bins: int) -> dict[str, Tensor]:
    places = bins_of(scores, bins)
    return {
        "positive": histogram(places, positive & known, bins),
        "negative": histogram(places, ~positive & known, bins),
    }


def log_odds(scores: Tensor) -> Tensor:
    """Return the log-odds of each class against all others from logits [M, C], float64."""
    logs = scores.double().log_softmax(1)
    top = logs.argmax(1, keepdim=True)
    rest = logs.scatter(1, top, -math.inf).logsumexp(1, keepdim=True)  # 1 - p loses its digits where p is near 1
    others = torch.log1p(-logs.exp()).scatter(1, top, rest)
    return logs - others


def bins_of(values: Tensor, bins: int) -> Tensor:
    """Return the bin of each value, of as many bins even in asinh(20 z) for z from -40 to 40; NaN is in the first (int64)."""
    part = (values.double() * _STEEP).asinh() / math.asinh(_STEEP * _WIDEST)
    return ((part + 1) / 2 * bins).nan_to_num(0.0).clamp(0, bins - 1).long()


def histogram(places: Tensor, chosen: Tensor, bins: int) -> Tensor:
    """Return how many of the chosen places are each bin.

    Args:
        places: bins, shape [M, C] (int64).
        chosen: which of them count, shape [M, C] (bool).
        bins: number of bins.

    Returns:
        int64 [C, bins].
    """
    cell = places + bins * torch.arange(places.shape[1], device=places.device)
    return torch.bincount(cell[chosen], minlength=bins * places.shape[1]).view(-1, bins)
