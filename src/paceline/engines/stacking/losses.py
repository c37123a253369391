"""The mean cross-entropy of stacked clients, sample by sample."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cross_entropies", "scored_cross_entropies"]

_FEW = 32
"""Up to this many classes, torch's softmax on a CPU takes three times as long as one of vectors over all samples."""


def cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss per sample, shape [K, B], of outputs [K, B, C, ...] and targets [K, B, ...]."""
    scores, classes = outputs.flatten(0, 1), targets.flatten(0, 1)
    narrow = scores.dim() == 2 and scores.shape[1] <= _FEW and classes.dim() == 1 and not classes.is_floating_point()
    if narrow and scores.device.type == "cpu" and scores.dtype is torch.float32:
        return _CrossEntropy.apply(scores, classes).view(targets.shape)  # type: ignore[no-untyped-call, no-any-return]
    each: Any = F.cross_entropy(scores, classes, reduction="none")
    return torch.as_tensor(each).view(*targets.shape[:2], -1).mean(2)


def scored_cross_entropies(outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Return each client's mean loss over the targets that count, shape [K]; samples of weight 0 are padding."""
    each: Any = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(0, 1), reduction="none")
    sums, counts = (t.view(*targets.shape[:2], -1).sum(2) for t in (torch.as_tensor(each), targets != -100))
    if weights is not None:
        sums, counts = sums * (weights > 0), counts * (weights > 0)
    return sums.sum(1) / counts.sum(1)


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of each of N samples. Shapes: scores [N, C], classes [N]."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, classes: Tensor) -> Tensor:
        shifted = scores - scores.amax(1, keepdim=True)
        picked = shifted.gather(1, classes[:, None])
        odds = shifted.exp_()
        total = odds.sum(1, keepdim=True)
        ctx.save_for_backward(odds.div_(total), classes)
        return (total.log() - picked)[:, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        odds, classes = ctx.saved_tensors
        slope = slopes[0][:, None]
        return (odds * slope).scatter_add_(1, classes[:, None], -slope), None
