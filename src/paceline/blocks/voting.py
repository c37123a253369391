"""Pseudo-labels by votes: each client votes with one-hot rows, which add up, so a vote can be summed securely."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["elected", "votes"]


def votes(scores: Tensor, least: float = 0.0) -> Tensor:
    """Return a client's votes, shape [N, C] (float32): 1 for the best class of each sample.

    Args:
        scores: shape [N, C].
        least: smallest probability of a vote; samples below it get none.
    """
    best = F.one_hot(scores.argmax(1), scores.shape[1]).float()
    return best * (scores.softmax(1).amax(1, keepdim=True) >= least) if least > 0 else best


def elected(total: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the most frequent class of each sample, shape [N] (the lowest one of equals), and which samples have one.

    Args:
        total: summed votes, shape [N, C].
        least: smallest share of the votes of the elected class.

    Example:
        >>> total = votes(torch.eye(3)[[2, 2, 1, 0]]).sum(0, keepdim=True)
        >>> elected(total)
        (tensor([2]), tensor([True]))
    """
    count, most = total.sum(1), total.amax(1)
    return total.argmax(1), (most > 0) & (most >= least * count.clamp(min=torch.finfo(total.dtype).tiny))
