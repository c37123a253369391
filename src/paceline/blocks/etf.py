"""Fixed classifiers: simplex frames, whose classes are as far from each other as possible, dense or sparse."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from paceline.core.optimizers import AdamW
from paceline.core.random import torch_rng

__all__ = ["frame", "simplex", "sparse_frame"]


def simplex(basis: Tensor) -> Tensor:
    """Return the simplex frame [d, C] built from orthonormal columns [d, C]."""
    classes = basis.shape[1]
    centred = basis - basis.mean(1, keepdim=True)
    return math.sqrt(classes / (classes - 1)) * centred


@lru_cache(maxsize=8)
def frame(width: int, classes: int, seed: int) -> Tensor:
    """Return the run's frame [width, classes], drawn from its seed; the cached result must not be modified."""
    drawn = torch.rand(width, classes, dtype=torch.float64, generator=torch_rng(seed, "frame"))
    return simplex(torch.linalg.qr(drawn)[0]).float()


@lru_cache(maxsize=8)
def sparse_frame(
    width: int, classes: int, seed: int, zeros: float = 0.6, length: float = 0.1, steps: int = 10_000, lr: float = 1e-4
) -> Tensor:
    """Return a frame with floor(zeros d C) entries of 0, in which classes have one length and are far apart (FedLoGe).

    From the dense frame (from random unit vectors if d < C), with a fixed mask of zeros, Adam minimises
    ``sum_c (|m_c| - length)^2 - mean_c arccos(max over other classes of cos(m_c, m_c'))``.

    Args:
        width: length of the features d.
        classes: number of classes C.
        seed: of the frame and of the zeros.
        zeros: share of entries that are 0.
        length: of each class vector.
        steps, lr: of Adam.

    Returns:
        shape [width, classes]; the cached result must not be modified.
    """
    m = frame(width, classes, seed).double() if width >= classes else _random_directions(width, classes, seed)
    mask = torch.ones(width * classes, dtype=m.dtype)
    mask[torch.randperm(width * classes, generator=torch_rng(seed, "zeros"))[: int(zeros * width * classes)]] = 0
    mask = mask.view(width, classes)
    m, rule = m * mask, AdamW()
    moments = rule.state(m)
    for step in range(steps):
        m.requires_grad_(True)
        norms = m.square().sum(0).clamp(min=1e-24).sqrt()
        cosines = (m / norms).T @ (m / norms) - 2 * torch.eye(classes, dtype=m.dtype)
        apart = torch.arccos(cosines.amax(1).clamp(-0.99999, 0.99999)).mean()
        (slope,) = torch.autograd.grad((norms - length).square().sum() - apart, m)
        with torch.no_grad():
            m = m - lr * mask * rule.direction(step, mask * slope, m, moments)
    return m.detach().float()


def _random_directions(width: int, classes: int, seed: int) -> Tensor:
    drawn = torch.randn(width, classes, dtype=torch.float64, generator=torch_rng(seed, "frame"))
    unit: Tensor = drawn / drawn.norm(dim=0)
    return unit
