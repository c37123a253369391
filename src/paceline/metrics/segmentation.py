"""Metrics of segmentations: overlap of predicted and true regions, pooled over all pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paceline.metrics.base import ClassMetric, mean_of, ratio
from paceline.metrics.classification import F1

__all__ = ["Dice", "IoU"]


@dataclass(frozen=True)
class _Overlap(ClassMetric):
    """Base of overlaps: mean over the classes that occur or are predicted.

    Args:
        background: also count class 0; without it, it is left out as background.
        per_class: also return the value of each class.
    """

    background: bool = False
    per_class: bool = False
    name: ClassVar[str] = ""

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return self.name

    def count(self, scores: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return hits, predicted and true pixels of each class, int64 [C]."""
        return F1().count(scores, targets)

    def value(self, hits: Tensor, pixels: Tensor) -> Tensor:
        """Return the overlap of each class.

        Args:
            hits: pixels in both regions.
            pixels: pixels of both regions, added.
        """
        raise NotImplementedError

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean overlap, and if asked for that of each class."""
        pixels = total["predicted"] + total["targets"]
        each, present = self.value(total["hits"], pixels), pixels > 0
        there = present & (torch.arange(len(each)) >= (0 if self.background else 1))
        found = {self.name: mean_of(each, there)}
        shares = zip(each.tolist(), present.tolist(), strict=True)
        return found | (
            {f"class_{i}_{self.name}": v if known else math.nan for i, (v, known) in enumerate(shares)} if self.per_class else {}
        )


@dataclass(frozen=True)
class Dice(_Overlap):
    """Dice coefficient 2 |A and B| / (|A| + |B|)."""

    name: ClassVar[str] = "dice"

    def value(self, hits: Tensor, pixels: Tensor) -> Tensor:
        """Return the coefficient."""
        return ratio(2 * hits, pixels)


@dataclass(frozen=True)
class IoU(_Overlap):
    """Intersection over union |A and B| / |A or B| (Jaccard index)."""

    name: ClassVar[str] = "iou"

    def value(self, hits: Tensor, pixels: Tensor) -> Tensor:
        """Return the index."""
        return ratio(hits, pixels - hits)
