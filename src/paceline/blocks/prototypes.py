"""Class prototypes as sums and counts, so that their mean over clients is an ordinary sum."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.core.client import ClientData
from paceline.core.columns import first
from paceline.core.params import Params, Resident
from paceline.core.samples import Problem, labelled
from paceline.core.tree import node
from paceline.models.split import features

__all__ = ["ClassSums", "apart", "class_sums", "distances", "nearest"]


@node
class ClassSums:
    """Feature sums and sample counts per class; they add up over clients.

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
        """Classes with samples, shape [C] (bool)."""
        return self.counts > 0

    def unweighted(self) -> ClassSums:
        """Return the same means with weight 1 for every present class, so that their sum yields a mean over clients."""
        return ClassSums(self.means(), self.present.long())


@torch.no_grad()
def class_sums(model: Resident, params: Params, data: ClientData, problem: Problem, by_batch: int | None = None) -> ClassSums:
    """Return the sums of `params`' features over `data` by class (evaluation mode).

    Args:
        model: the module.
        params: parameters to load.
        data: samples.
        problem: which labels count, and the number of classes C.
        by_batch: if given, each batch of this size contributes its mean with weight 1 to every class in it.
    """
    model.load(params)
    model.module.eval()
    num_classes, width = problem.num_classes, features(model.module, first(data.x)).shape[1]
    sums = torch.zeros(num_classes, width, device=model.device)
    counts = torch.zeros(num_classes, dtype=torch.int64, device=model.device)
    for x, y in data.batches(by_batch or 500):
        known, z = labelled(problem, y), features(model.module, x)
        part = ClassSums(torch.zeros_like(sums).index_add_(0, y[known], z[known]), torch.bincount(y[known], minlength=num_classes))
        part = part if by_batch is None else part.unweighted()
        sums += part.sums
        counts += part.counts
    return ClassSums(sums, counts)


def apart(directions: Tensor, counts: Tensor) -> float:
    """Return how far the clients' class means point apart: the mean over classes of 1 - |mean direction|^2.

    Args:
        directions: mean over clients of their class means of length 1, shape [C, d].
        counts: clients that have the class, shape [C]; classes of fewer than two do not count.

    Example:
        >>> apart(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([2, 2]))
        0.25
    """
    several = directions[counts > 1]
    return float((1 - several.square().sum(1)).mean()) if len(several) else 0.0


def distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return Euclidean distances, shape [N, C]; their gradient is finite even at distance 0."""
    square = (points.unsqueeze(1) - centres.unsqueeze(0)).square().sum(2)
    return square.clamp(min=1e-12).sqrt()


def nearest(points: Tensor, centres: Tensor, known: Tensor) -> Tensor:
    """Return scores whose arg-max is the nearest centre: negative distances, shape [N, C].

    Args:
        points: features, shape [N, F].
        centres: one centre per class, shape [C, F].
        known: whether a class has a centre, bool [C]; others never have the largest score.
    """
    return -distances(points, centres) - FAR * (~known).float()


FAR = 1e6
"""A distance larger than all others, but finite, so that losses remain finite."""
