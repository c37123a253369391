"""A tiny one-stage detector: objects are peaks of a heat map of centres (CenterNet; Zhou et al., arXiv 1904.07850)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["STRIDE", "CentreNet", "centre_loss"]

STRIDE = 4
"""Pixels of a cell of the heat map."""


class CentreNet(nn.Module):
    """Convolutions to cells of 4 x 4 pixels, and for each cell the scores of centres, their place in the cell and their size.

    In training it returns ``heat`` [N, classes, h, w] and ``shape`` [N, 4, h, w], in evaluation also the detections ``boxes`` [N, Q, 4],
    ``scores`` [N, Q] and ``labels`` [N, Q], as `DetectionMAP` reads them.

    Args:
        channels: of a picture.
        classes: number of classes.
        width: channels of the first stage.
        detections: Q, at most the number of cells times `classes`.
    """

    def __init__(self, channels: int, classes: int, width: int = 16, detections: int = 10) -> None:
        super().__init__()
        wide, layers = 2 * width, []
        for given, out, stride in ((channels, width, 2), (width, wide, 2), (wide, wide, 1), (wide, wide, 1)):
            layers += [nn.Conv2d(given, out, 3, stride, 1), nn.GroupNorm(4, out), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Conv2d(wide, classes + 4, 1)
        self.classes, self.detections = classes, detections
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias[:classes], -2.2)  # a tenth: centres are rare

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps, and in evaluation the detections."""
        heat, shape = self.head(self.body(x)).split([self.classes, 4], 1)
        return {"heat": heat, "shape": shape} | ({} if self.training else self.decode(heat, shape))

    def decode(self, heat: Tensor, shape: Tensor) -> dict[str, Tensor]:
        """Return the highest peaks as boxes in pixels."""
        score = heat.sigmoid()
        score = torch.where(F.max_pool2d(score, 3, 1, 1) == score, score, 0.0).flatten(1)
        top, place = score.topk(min(self.detections, score.shape[1]), 1)
        cells, width = heat.shape[2] * heat.shape[3], heat.shape[3]
        cell = place % cells
        dx, dy, wide, high = shape.flatten(2).gather(2, cell[:, None].expand(-1, 4, -1)).unbind(1)
        x, y = (cell % width + dx) * STRIDE, (cell // width + dy) * STRIDE
        half = wide.clamp(min=0) * STRIDE / 2, high.clamp(min=0) * STRIDE / 2
        return {
            "boxes": torch.stack([x - half[0], y - half[1], x + half[0], y + half[1]], 2),
            "scores": top,
            "labels": place // cells,
        }


def centre_loss(outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> Tensor:
    """Return the focal loss of centres plus a tenth of the L1 distance of places and sizes, over the number of objects.

    Args:
        outputs: of `CentreNet`.
        targets: ``boxes`` [N, G, 4] in pixels and ``labels`` [N, G]; a negative label is no object.
    """
    heat, shape = outputs["heat"], outputs["shape"]
    boxes, labels = targets["boxes"] / STRIDE, targets["labels"]
    there = labels >= 0
    classes, height, width = heat.shape[1:]
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    x = centre[..., 0].floor().clamp(0, width - 1)
    y = centre[..., 1].floor().clamp(0, height - 1)
    across, down = (torch.arange(n, device=heat.device) for n in (width, height))
    spread = (size.amin(-1) / 4).clamp(min=0.5)[..., None, None]
    distance = (across - x[..., None, None]) ** 2 + (down[:, None] - y[..., None, None]) ** 2
    near = torch.exp(-distance / (2 * spread**2)) * there[..., None, None]
    own = labels[..., None] == torch.arange(classes, device=heat.device)
    wanted = (near[:, :, None] * own[..., None, None]).amax(1)
    hit, log, other = wanted == 1, F.logsigmoid(heat), F.logsigmoid(-heat)
    chance = heat.sigmoid()
    focal = -torch.where(hit, (1 - chance) ** 2 * log, (1 - wanted) ** 4 * chance**2 * other).sum()
    cell = (y * width + x).long()
    found = shape.flatten(2).gather(2, cell[:, None].expand(-1, 4, -1)).transpose(1, 2)
    true = torch.cat([centre - torch.stack([x, y], -1), size], -1)
    apart = ((found - true).abs() * there[..., None]).sum()
    value: Tensor = (focal + 0.1 * apart) / there.sum().clamp(min=1)
    return value
