"""Losses of distillation: a student's outputs, features or relations are drawn to a teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["feature_loss", "relation_loss", "soft_cross_entropy", "soft_targets_loss"]


def soft_targets_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0, weight: Tensor | None = None) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over a batch (Hinton et al., 2015).

    Args:
        student: scores, shape [B, C].
        teacher: scores, shape [B, C]; a constant.
        temperature: T.
        weight: factor of each sample, shape [B]; 1 by default.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0]])
        >>> round(float(soft_targets_loss(student, teacher, 2.0)), 6)
        0.354652
    """
    known, guess = (teacher.detach() / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)
    apart = (known.exp() * (known - guess)).sum(-1)
    return temperature**2 * (apart if weight is None else weight * apart).mean()


def soft_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of -sum_c targets_c log softmax(scores)_c.

    Args:
        scores: shape [B, C].
        targets: weights or probabilities of the classes, shape [B, C].
    """
    return -(targets * scores.log_softmax(-1)).sum(-1).mean()


def feature_loss(student: Tensor, teacher: Tensor, normalise: bool = False) -> Tensor:
    """Return the mean squared difference of features.

    Args:
        student: shape [B, d].
        teacher: shape [B, d]; a constant.
        normalise: scale all features to length 1 before.
    """
    teacher = teacher.detach()
    return F.mse_loss(F.normalize(student), F.normalize(teacher)) if normalise else F.mse_loss(student, teacher)


def relation_loss(student: Tensor, teacher: Tensor, angle: float = 0.0) -> Tensor:
    """Return the loss of relational distillation (Park et al., CVPR 2019); the widths of the features may differ.

    Distances between samples, divided by their mean, and cosines of the angles of all triples are compared by the Huber loss.

    Args:
        student: features, shape [B, d].
        teacher: features, shape [B, e]; a constant.
        angle: weight of the angles; 0 compares distances alone.
    """
    teacher = teacher.detach()
    loss = F.smooth_l1_loss(_distances(student), _distances(teacher))
    return loss + angle * F.smooth_l1_loss(_angles(student), _angles(teacher)) if angle else loss


def _distances(x: Tensor) -> Tensor:
    between = (x.unsqueeze(1) - x).square().sum(2).clamp(min=1e-12).sqrt()
    count = len(x) * (len(x) - 1)
    between = between * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    return between / (between.sum() / max(count, 1)).clamp(min=1e-12)


def _angles(x: Tensor) -> Tensor:
    """Return the cosine of the angle at j between i and k, shape [B, B, B]."""
    towards = F.normalize(x.unsqueeze(0) - x.unsqueeze(1), dim=2)
    return torch.einsum("jid,jkd->jik", towards, towards)
