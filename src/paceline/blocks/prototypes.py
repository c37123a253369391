"""Class prototypes as sums and counts, so that the mean over clients is an ordinary sum."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.core.client import ClientData
from paceline.core.params import Params, Resident
from paceline.core.tree import node
from paceline.models.split import features

__all__ = ["ClassSums", "class_sums", "distances", "nearest"]


@node
class ClassSums:
    """Feature sums and sample counts of each class; they add up over clients.

    Args:
        sums: shape [C, d] (float32), zero for absent classes.
        counts: shape [C] (int64).
    """

    sums: Tensor
    counts: Tensor

    def means(self) -> Tensor:
        """Return sum / count of each class, shape [C, d]; zero for absent classes."""
        return self.sums / self.counts.clamp(min=1).unsqueeze(1)

    @property
    def present(self) -> Tensor:
        """Which classes have samples, shape [C] (bool)."""
        return self.counts > 0

    def unweighted(self) -> ClassSums:
        """Return the same means with every present class counting once: a sum of these is a mean over clients."""
        return ClassSums(self.means(), self.present.long())


@torch.no_grad()
def class_sums(model: Resident, params: Params, data: ClientData, num_classes: int, by_batch: int | None = None) -> ClassSums:
    """Return the sums of `params`' features over `data`, class by class (evaluation mode).

    With `by_batch`, each batch of so many samples adds its mean, and counts once, in every class that it has.
    """
    model.load(params)
    model.module.eval()
    width = features(model.module, data.x[:1]).shape[1]
    sums = torch.zeros(num_classes, width, device=model.device)
    counts = torch.zeros(num_classes, dtype=torch.int64, device=model.device)
    for x, y in data.batches(by_batch or 500):
        part = ClassSums(
            torch.zeros_like(sums).index_add_(0, y, features(model.module, x)), torch.bincount(y, minlength=num_classes)
        )
        part = part if by_batch is None else part.unweighted()
        sums += part.sums
        counts += part.counts
    return ClassSums(sums, counts)


def distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return Euclidean distances, shape [N, C]; their gradient is finite also where a distance is 0."""
    square = (points.unsqueeze(1) - centres.unsqueeze(0)).square().sum(2)
    return square.clamp(min=1e-12).sqrt()


def nearest(points: Tensor, centres: Tensor, known: Tensor) -> Tensor:
    """Return scores whose arg-max is the nearest centre, shape [N, C]: -distance; centres that are not `known` lose."""
    return -distances(points, centres) - FAR * (~known).float()


FAR = 1e6
"""A distance above all others, and yet finite, so that losses stay finite."""
