"""Objectives on embeddings: contrastive, self-supervised, and assignments to prototypes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.blocks.adversarial import evaluating
from paceline.core.hooks import Loss, Objective
from paceline.models.split import features, scored

__all__ = ["contrast_with", "info_nce", "koleo", "model_contrast", "negative_cosine", "sinkhorn", "supervised_contrast"]


def supervised_contrast(z: Tensor, y: Tensor, temperature: float = 0.07) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al., NeurIPS 2020), the mean over all anchors.

    For anchor i with positives P of its class: -1/|P| sum_{j in P} log(exp(z_i.z_j / T) / sum_{k != i} exp(z_i.z_k / T)). Anchors
    without positives contribute 0.

    Args:
        z: embeddings, shape [N, d]; they are scaled to length 1.
        y: labels, shape [N].
        temperature: T.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> round(float(supervised_contrast(z, torch.tensor([0, 0, 1]))), 6)
        0.971059
    """
    z = F.normalize(z)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(own, -torch.inf)
    positive = (y.unsqueeze(0) == y.unsqueeze(1)) & ~own
    share = torch.where(positive, logits - logits.logsumexp(1, keepdim=True), 0.0).sum(1)
    return (-share / positive.sum(1).clamp(min=1)).mean()


def contrast_with(loss: Loss, anchors: Tensor, classes: Tensor, strength: float, temperature: float = 0.07) -> Objective:
    """Return the objective that adds `strength` times the supervised contrast of a batch's features and those of anchors.

    Args:
        loss: mean loss of the scores.
        anchors: samples [M, ...] that pass through the model in each step.
        classes: their classes [M].
        strength: weight of the contrast.
        temperature: of the contrast.
    """

    def objective(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        h = features(module, x)
        with evaluating(module, when=len(anchors) < 2):  # a single sample has no variance
            g = features(module, anchors)
        return loss(scored(module, h), y) + strength * supervised_contrast(torch.cat([h, g]), torch.cat([y, classes]), temperature)

    return objective


def info_nce(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    """Return the NT-Xent loss of SimCLR (Chen et al., ICML 2020) between two views.

    Args:
        a, b: embeddings of two views of the same samples, shape [B, d].
        temperature: T.
    """
    return supervised_contrast(torch.cat([a, b]), torch.arange(len(a), device=a.device).repeat(2), temperature)


def model_contrast(z: Tensor, near: Tensor, far: Tensor, temperature: float = 0.5) -> Tensor:
    """Return the model-contrastive loss of MOON (Li et al., CVPR 2021).

    Args:
        z: features of the local model, shape [B, d].
        near: those of the global model; constants.
        far: those of the previous local model; constants.
        temperature: T.
    """
    scores = torch.stack([F.cosine_similarity(z, near.detach()), F.cosine_similarity(z, far.detach())], 1) / temperature
    return -scores.log_softmax(1)[:, 0].mean()


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Return -cos(p, z), z a constant: the loss of SimSiam (Chen and He, CVPR 2021), and of BYOL up to scale and shift."""
    return -F.cosine_similarity(p, z.detach()).mean()


def koleo(z: Tensor) -> Tensor:
    """Return the Kozachenko-Leonenko regulariser: the mean of -log(distance to the nearest other embedding + 1e-8).

    Args:
        z: shape [B, d]; they are scaled to length 1.

    Example:
        >>> round(float(koleo(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))), 6)
        0.342621
    """
    z = F.normalize(z)
    with torch.no_grad():
        which = (z @ z.T - 4 * torch.eye(len(z), device=z.device)).argmax(1)
    return -((z - z[which]).square().sum(1).clamp(min=1e-24).sqrt() + 1e-8).log().mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, iterations: int = 3, kept: Tensor | None = None) -> Tensor:
    """Return balanced assignments to prototypes (Caron et al., NeurIPS 2020), shape [B, K]; each row sums to 1.

    Args:
        scores: shape [B, K].
        temperature: of the scores.
        iterations: alternations between prototypes of equal mass and samples of equal mass.
        kept: which samples count, shape [B] (bool); the rows of others are 0.
    """
    q = (scores.double() / temperature).T  # logarithms, as differences of large scores overflow
    if kept is not None:  # not minus infinity, whose differences are not defined
        q = torch.where(kept, q, -1e30)
    for _ in range(iterations):
        q = q - q.logsumexp(1, keepdim=True) - math.log(len(q))
        q = q - q.logsumexp(0, keepdim=True) if kept is None else torch.where(kept, q - q.logsumexp(0, keepdim=True), -1e30)
    found = q.exp().T.to(scores.dtype)
    return found if kept is None else torch.where(kept.unsqueeze(1), found, 0.0)
