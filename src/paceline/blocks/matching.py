"""Distances between distributions of features, and between gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["gradient_distance", "mean_covariance_distance", "mmd", "reverse_gradient"]


def mmd(x: Tensor, y: Tensor, kernels: int = 5, ratio: float = 2.0) -> Tensor:
    """Return the maximum mean discrepancy of two batches with Gaussian kernels: mean(K_xx + K_yy - K_xy - K_yx).

    K = sum_k exp(-|a - b|^2 / (s ratio^k)) with k from 0, and s = (mean squared distance of all pairs) / ratio^(kernels // 2), a
    constant.

    Args:
        x, y: features, shape [N, d] both.
        kernels: number of kernels.
        ratio: between their widths.

    Example:
        >>> a, b = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
        >>> round(float(mmd(a, b)), 4), float(mmd(a, a))
        (3.5649, 0.0)
    """
    both, n = torch.cat([x, y]), len(x)
    square = (both.unsqueeze(0) - both.unsqueeze(1)).square().sum(2)
    base = square.detach().sum() / (len(both) ** 2 - len(both)) / ratio ** (kernels // 2)
    kernel = torch.stack([torch.exp(-square / (base.clamp(min=1e-12) * ratio**k)) for k in range(kernels)]).sum(0)
    return (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()


def mean_covariance_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared differences of the means and of the unbiased covariances.

    Args:
        x, y: features, shapes [N, d] and [M, d]; N and M at least 2.
    """
    return (x.mean(0) - y.mean(0)).square().mean() + (x.T.cov() - y.T.cov()).square().mean()


def gradient_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the sum of 1 - cosine over the output rows of all weights; tensors of one dimension do not count.

    Args:
        a, b: gradients of the same parameters, in the same order.

    Example:
        >>> a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
        >>> round(float(gradient_distance([a], [b])), 4)
        0.2929
    """
    found = []
    for one, other in zip(a, b, strict=True):
        if one.dim() >= 2:
            u, v = one.flatten(1), other.flatten(1)
            found.append((1 - (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1) + 1e-6)).sum())
    return torch.stack(found).sum() if found else torch.zeros(())


def reverse_gradient(x: Tensor, alpha: float) -> Tensor:
    """Return x; its gradient is multiplied by -alpha (Ganin and Lempitsky, ICML 2015)."""
    return x.detach() + alpha * (x.detach() - x)
