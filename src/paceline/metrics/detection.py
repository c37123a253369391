"""Mean average precision of detected boxes, from histograms of the scores of true and false detections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.core.errors import ConfigError, DataFormatError
from paceline.core.metrics import Metric
from paceline.metrics.ranking import histogram

__all__ = ["DetectionMAP", "box_iou"]


@dataclass(frozen=True)
class DetectionMAP(Metric):
    """Mean average precision: area below the precision-recall envelope, averaged over classes and thresholds of overlap.

    COCO's figure is the mean of the envelope at 101 points of recall: ``recall_points=101`` with ``overlap`` 0.5, 0.55, ..., 0.95.

    In each image, detections take the free box of their class with the largest overlap, highest scores first. Precision is
    computed at the edges of the bins of scores, which is the least value of any order within them;
    ``..._resolution`` is how much larger the exact figure can be.

    Args:
        classes: number of classes.
        overlap: thresholds of the intersection over union.
        bins: bins of scores, even between 0 and 1.
        recall_points: number of points of recall, evenly from 0 to 1, at which the envelope is averaged; 0 for the whole area.
    """

    classes: int
    overlap: Sequence[float] = (0.5,)
    bins: int = 1000
    recall_points: int = 0

    def __post_init__(self) -> None:
        if self.classes < 1 or self.bins < 2 or not self.overlap or not all(0 < t <= 1 for t in self.overlap):
            raise ConfigError("metric 'detection_map' needs classes of at least 1, bins of at least 2 and overlap in (0, 1]")
        if self.recall_points < 0 or self.recall_points == 1:
            raise ConfigError(
                f"metric 'detection_map': recall_points={self.recall_points} must be 0 or at least 2, such as COCO's 101"
            )

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
        most = total["boxes"].clamp(min=1)[:, None].double()
        found = []
        for before in (fp, fp - false):
            envelope = _envelope(tp / (tp + before).clamp(min=1))
            area = _at_points(envelope, tp / most, self.recall_points) if self.recall_points else (true * envelope / most).sum(-1)
            found.append(float(area[:, there].mean()))
        return {"map": found[0], "map_resolution": found[1] - found[0]}


def _at_points(envelope: Tensor, recall: Tensor, points: int) -> Tensor:
    """Return the mean of the envelope at evenly spaced points of recall, [thresholds, C]; 0 at a recall that is not reached."""
    wanted = torch.from_numpy(np.linspace(0, 1, points)).to(recall.device)  # as COCO's own program rounds them
    place = torch.searchsorted(recall.contiguous(), wanted.expand(*recall.shape[:-1], points).contiguous())
    reached = place < recall.shape[-1]
    values = envelope.gather(-1, place.clamp(max=recall.shape[-1] - 1))
    return torch.where(reached, values, 0.0).mean(-1)


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
