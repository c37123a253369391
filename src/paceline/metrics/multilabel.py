"""Metrics of several labels per sample; a label is predicted where its logit is above the threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from paceline.metrics.base import LabelMetric, mean_of, ratio

__all__ = ["ExactMatch", "Hamming", "MultilabelF1"]


@dataclass(frozen=True)
class ExactMatch(LabelMetric):
    """Share of samples of which all labels are right (subset accuracy).

    Args:
        threshold: logit above which a label is predicted.
    """

    threshold: float = 0.0

    def count(self, scores: Tensor, targets: Tensor, known: Tensor) -> Mapping[str, Tensor]:
        """Return samples that are right, and samples with labels."""
        wrong = ((scores > self.threshold) != targets) & known
        return {"right": (~wrong.any(1) & known.any(1)).sum(), "count": known.any(1).sum()}

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the share."""
        count = int(total["count"])
        return {"exact_match": int(total["right"]) / count if count else math.nan}


@dataclass(frozen=True)
class Hamming(LabelMetric):
    """Share of labels that are wrong.

    Args:
        threshold: logit above which a label is predicted.
    """

    threshold: float = 0.0
    higher_is_better: ClassVar[bool] = False

    def count(self, scores: Tensor, targets: Tensor, known: Tensor) -> Mapping[str, Tensor]:
        """Return labels that are wrong, and labels."""
        return {"wrong": (((scores > self.threshold) != targets) & known).sum(), "count": known.sum()}

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the share."""
        count = int(total["count"])
        return {"hamming": int(total["wrong"]) / count if count else math.nan}


@dataclass(frozen=True)
class MultilabelF1(LabelMetric):
    """F1 of labels.

    Args:
        average: ``macro`` (mean over all labels) or ``micro`` (over all decisions).
        threshold: logit above which a label is predicted.
    """

    average: Literal["macro", "micro"] = "macro"
    threshold: float = 0.0

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return f"multilabel_{self.average}_f1"

    def count(self, scores: Tensor, targets: Tensor, known: Tensor) -> Mapping[str, Tensor]:
        """Return hits, and predictions plus targets, of each label."""
        found = (scores > self.threshold) & known
        return {"hits": (found & targets).sum(0), "marked": found.sum(0) + targets.sum(0), "count": known.sum(0)}

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return F1; a label that neither occurs nor is predicted has 0."""
        hits, marked, known = total["hits"], total["marked"], total["count"] > 0
        if self.average == "micro":
            return {self.figure: float(ratio(2 * hits.sum(), marked.sum())) if bool(known.any()) else math.nan}
        return {self.figure: mean_of(ratio(2 * hits, marked), known)}
