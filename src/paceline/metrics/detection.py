"""Mean average precision of detected boxes, from histograms of the scores of true and false detections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.core.errors import ConfigError, DataFormatError
from paceline.core.metrics import Metric
from paceline.metrics.ranking import histogram

__all__ = ["DetectionMAP", "box_iou"]


@dataclass(frozen=True)
class DetectionMAP(Metric):
    """Mean average precision: area below the precision-recall envelope, averaged over classes and thresholds of overlap.

    In each image, detections take the free box of their class with the largest overlap, highest scores first. Precision is
    computed at the edges of the bins of scores, which is the least value of any order within them;
    ``..._resolution`` is how much larger the exact figure can be.

    Args:
        classes: number of classes.
        overlap: thresholds of the intersection over union.
        bins: bins of scores, even between 0 and 1.
    """

    classes: int
    overlap: Sequence[float] = (0.5,)
    bins: int = 1000

    def __post_init__(self) -> None:
        if self.classes < 1 or self.bins < 2 or not self.overlap or not all(0 < t <= 1 for t in self.overlap):
            raise ConfigError("metric 'detection_map' needs classes of at least 1, bins of at least 2 and overlap in (0, 1]")

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return "map"

    def terms(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Return the histograms of true and false detections, int64 [thresholds, C, bins], and the boxes of each class.

        Args:
            outputs: dict of ``boxes`` [N, Q, 4] (x1, y1, x2, y2), ``scores`` [N, Q] between 0 and 1, and ``labels`` [N, Q];
                a negative label is no detection.
            targets: dict of ``boxes`` [N, G, 4] and ``labels`` [N, G]; a negative label is no box.
        """
        if not all(isinstance(t, Mapping) and {"boxes", "labels"} <= set(t) for t in (outputs, targets)) or "scores" not in outputs:
            raise DataFormatError("map needs outputs with boxes, scores and labels, and targets with boxes and labels, as dicts")
        order = outputs["scores"].argsort(dim=1, descending=True, stable=True)
        scores, labels = outputs["scores"].gather(1, order), outputs["labels"].gather(1, order)
        boxes = outputs["boxes"].gather(1, order[..., None].expand(*order.shape, 4))
        fits = (labels[:, :, None] == targets["labels"][:, None]) & (labels[:, :, None] >= 0)
        overlap = torch.where(fits, box_iou(boxes, targets["boxes"]), -1.0)
        kinds = torch.where(labels >= 0, labels, self.classes)[..., None] == torch.arange(self.classes, device=labels.device)
        even = (scores.double() * self.bins).nan_to_num(0.0).clamp(0, self.bins - 1).long()
        places = even[..., None].expand_as(kinds).reshape(-1, self.classes)
        hits, misses = [], []
        for least in self.overlap:
            true = _taken(overlap, least)[..., None]
            hits.append(histogram(places, (kinds & true).reshape(-1, self.classes), self.bins))
            misses.append(histogram(places, (kinds & ~true).reshape(-1, self.classes), self.bins))
        there = targets["labels"][targets["labels"] >= 0]
        return {"true": torch.stack(hits), "false": torch.stack(misses), "boxes": there.bincount(minlength=self.classes)}

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean over classes with boxes, and its resolution."""
        there = total["boxes"] > 0
        if not bool(there.any()):
            return {"map": math.nan, "map_resolution": math.nan}
        true, false = total["true"].double().flip(-1), total["false"].double().flip(-1)
        tp, fp = true.cumsum(-1), false.cumsum(-1)
        most = total["boxes"].clamp(min=1)
        least, best = (
            ((true * _envelope(tp / (tp + before).clamp(min=1))).sum(-1) / most)[:, there].mean() for before in (fp, fp - false)
        )
        return {"map": float(least), "map_resolution": float(best - least)}


def _envelope(precision: Tensor) -> Tensor:
    """Return the largest precision at this or a later threshold."""
    return precision.flip(-1).cummax(-1).values.flip(-1)


def _taken(overlap: Tensor, least: float) -> Tensor:
    """Return which detections take a free box, [N, Q], one detection of each image after another."""
    free = torch.ones_like(overlap[:, 0], dtype=torch.bool)
    found = (
        torch.zeros_like(overlap[:, :, 0], dtype=torch.bool) if overlap.shape[2] else overlap.new_zeros(overlap.shape[:2]).bool()
    )
    for q in range(overlap.shape[1] if overlap.shape[2] else 0):
        value, place = torch.where(free, overlap[:, q], -1.0).max(1)
        found[:, q] = value >= least
        free &= ~(found[:, q, None] & (torch.arange(free.shape[1], device=free.device) == place[:, None]))
    return found


def box_iou(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return intersection over union of boxes [N, Q, 4] and [N, G, 4], shape [N, Q, G]."""
    a, b = ours[:, :, None].double(), theirs[:, None].double()
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    both = sides.prod(-1)
    whole = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    return torch.where(whole > 0, both / whole.clamp(min=1e-300), 0.0)
