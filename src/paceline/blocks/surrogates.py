"""Surrogates of a black-box function: Gaussian processes and random Fourier features, with gradients.

With k(x) the kernel to the points X [n, d] and a = (K + s^2 I)^-1 y:
    mean(x) = k(x) . a,   gradient(x) = (d k(x) / d x)^T a
    gradient variance = d^2 k(x, x') / dx dx' at x' = x  -  (d k / d x)^T (K + s^2 I)^-1 (d k / d x)
With features phi(x) = sqrt(2 / M) cos(W x + u), W ~ N(0, I / l^2), u ~ U[0, 2 pi]:
    nu = Phi (Phi^T Phi + s^2 I)^-1 y,   gradient(x) = -sqrt(2 / M) sum_m nu_m sin(W_m x + u_m) W_m
so surrogates of several parties add up as vectors nu. All computations are in float64, because cosines of large arguments
would lose their phase otherwise.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paceline.core.random import torch_rng

__all__ = ["Features", "GaussianProcess", "Kernel", "nearest", "rescaled"]

Kernel = Literal["rbf", "matern"]


def nearest(points: Tensor, values: Tensor, x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the points closest to x, and their values.

    Args:
        points: shape [m, d].
        values: shape [m].
        x: centre, shape [d].
        most: maximum number of points to return.
    """
    if len(points) <= most:
        return points, values
    rows = torch.argsort((points - x).square().sum(1), stable=True)[:most]
    return points[rows], values[rows]


def rescaled(values: Tensor) -> tuple[Tensor, float]:
    """Return values scaled to [0, 1] and their range; constant values become 0 with range 0."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low + 1e-20), high - low


class GaussianProcess:
    """Gaussian process conditioned on observed values.

    Args:
        points: shape [n, d].
        values: shape [n].
        length: length scale l of the kernel.
        jitter: s^2 on the diagonal.
        kernel: ``rbf``, or ``matern`` (5/2).
    """

    def __init__(self, points: Tensor, values: Tensor, length: float, jitter: float = 1e-6, kernel: Kernel = "rbf") -> None:
        self.points, self.length, self.kernel = points.double(), length, kernel
        k = self._k(torch.cdist(self.points, self.points))
        self._factor = torch.linalg.cholesky(k + jitter * torch.eye(len(k), dtype=torch.float64))
        self._weights = torch.cholesky_solve(values.double()[:, None], self._factor)[:, 0]
        self._inverse = torch.cholesky_inverse(self._factor)

    def _k(self, r: Tensor) -> Tensor:
        r = r / self.length
        if self.kernel == "rbf":
            return torch.exp(-0.5 * r**2)
        r = math.sqrt(5) * r
        return (1 + r + r**2 / 3) * torch.exp(-r)

    def _slope(self, r: Tensor) -> Tensor:
        """Return c with d k / d x = -c (x - x_j)."""
        if self.kernel == "rbf":
            return self._k(r) / self.length**2
        r = math.sqrt(5) * r / self.length
        return 5 / (3 * self.length**2) * (1 + r) * torch.exp(-r)

    def mean(self, x: Tensor) -> float:
        """Return the mean at x [d]."""
        r = torch.linalg.vector_norm(self.points - x, dim=1)
        return float(self._k(r) @ self._weights)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of the mean at x [d]."""
        apart = x - self.points
        c = self._slope(torch.linalg.vector_norm(apart, dim=1))
        out: Tensor = -(c * self._weights) @ apart
        return out

    def uncertainty(self, xs: Tensor) -> Tensor:
        """Return the trace of the gradient's variance at each of xs [m, d], shape [m]."""
        # sum_ij I_ij c_i c_j (x - x_i) . (x - x_j) with I the inverse: n^2 operations per x, independent of d
        middle = self.points.mean(0)
        near, x = self.points - middle, xs - middle
        c, inner = self._slope(torch.cdist(xs, self.points)), x @ near.T
        weighted = c @ self._inverse
        explained = x.square().sum(1) * (weighted * c).sum(1) - 2 * (weighted * c * inner).sum(1)
        explained = explained + ((c @ (self._inverse * (near @ near.T))) * c).sum(1)
        prior = (1.0 if self.kernel == "rbf" else 5 / 3) / self.length**2
        out: Tensor = prior * xs.shape[1] - explained
        return out


@dataclass(frozen=True)
class Features:
    """Random Fourier features that every party with the seed can generate.

    Args:
        count: number M.
        dim: d of the inputs.
        length: length scale l of the approximated kernel.
        seed: seed of W and u.
    """

    count: int
    dim: int
    length: float
    seed: int

    def drawn(self) -> tuple[Tensor, Tensor]:
        """Return W, shape [M, d], and u, shape [M]."""
        return _drawn(self)

    def __call__(self, xs: Tensor) -> Tensor:
        """Return the features of xs [n, d], shape [M, n]."""
        w, u = self.drawn()
        return math.sqrt(2 / len(u)) * torch.cos(w @ xs.double().T + u[:, None])

    def fit(self, points: Tensor, values: Tensor, jitter: float = 1e-5) -> Tensor:
        """Return nu, shape [M], fitted to values at points; the smaller of the two equivalent linear systems is solved."""
        phi = self(points)
        if phi.shape[1] <= phi.shape[0]:
            inner = phi.T @ phi + jitter * torch.eye(phi.shape[1], dtype=torch.float64)
            out: Tensor = phi @ torch.linalg.solve(inner, values.double())
            return out
        inner = phi @ phi.T + jitter * torch.eye(phi.shape[0], dtype=torch.float64)
        solved: Tensor = torch.linalg.solve(inner, phi @ values.double())
        return solved

    def gradient(self, nu: Tensor, x: Tensor) -> Tensor:
        """Return the gradient at x [d] of the surrogate nu."""
        w, u = self.drawn()
        out: Tensor = -math.sqrt(2 / len(u)) * (nu.double() * torch.sin(w @ x.double() + u)) @ w
        return out


@functools.lru_cache(maxsize=4)
def _drawn(features: Features) -> tuple[Tensor, Tensor]:
    rng = torch_rng(features.seed, "features", features.count, features.dim)
    w = torch.randn(features.count, features.dim, generator=rng, dtype=torch.float64) / features.length
    u = torch.rand(features.count, generator=rng, dtype=torch.float64) * 2 * math.pi
    return w, u
