"""Memories of features by class: moving means, and a bounded store."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.core.tree import node

__all__ = ["FeatureBank", "moving_means"]


def moving_means(means: Tensor, features: Tensor, y: Tensor, rate: float) -> Tensor:
    """Return class means moved by `rate` towards those of a batch; absent classes keep theirs.

    Args:
        means: shape [C, d].
        features: shape [B, d].
        y: labels, shape [B].
        rate: share of the batch's mean.

    Example:
        >>> f, y = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([0, 0, 2])
        >>> moved = moving_means(torch.zeros(3, 2), f, y, 0.3)
        >>> [[round(v, 4) for v in row] for row in moved.tolist()]
        [[0.6, 0.9], [0.0, 0.0], [1.5, 1.8]]
    """
    features = features.detach().to(means.dtype)
    count = torch.zeros(len(means), dtype=means.dtype, device=means.device).index_add(0, y, torch.ones_like(features[:, 0]))
    batch = torch.zeros_like(means).index_add(0, y, features) / count.clamp(min=1).unsqueeze(1)
    return torch.where(count.unsqueeze(1) > 0, (1 - rate) * means + rate * batch, means)


@node
class FeatureBank:
    """The last features of each class, at most `limit` of each; a value of a client's memory.

    Args:
        features: shape [N, d].
        labels: shape [N] (int64).
        limit: most features of a class.
    """

    features: Tensor
    labels: Tensor
    limit: int

    @staticmethod
    def empty(width: int, limit: int) -> FeatureBank:
        """Return a bank without features of length `width`."""
        return FeatureBank(torch.zeros(0, width), torch.zeros(0, dtype=torch.int64), limit)

    def added(self, features: Tensor, labels: Tensor) -> FeatureBank:
        """Return the bank with further features; the oldest of a class make room."""
        x, y = torch.cat([self.features, features.detach().to(self.features)]), torch.cat([self.labels, labels.to(self.labels)])
        same = (y.unsqueeze(0) == y.unsqueeze(1)).triu(1).sum(1)  # later features of the same class
        kept = same < self.limit
        return FeatureBank(x[kept], y[kept], self.limit)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `count` features drawn with replacement, shape [count, d], and their labels; none of an empty bank."""
        if not len(self.labels):
            return self.features, self.labels
        rows = torch.randint(len(self.labels), (count,), generator=generator).to(self.labels.device)
        return self.features[rows], self.labels[rows]
