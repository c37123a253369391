"""Flag Aggregator ("Flag Aggregator: Scalable Distributed Training under Failures and Augmented Losses using Convex
Optimization", ICLR 2024, arXiv 2302.05865): average the updates' projections onto the subspace that explains them best.

With u_i = g_i / |g_i|, Y an orthonormal basis of m directions and v_i = |Y' u_i|^2 the explained share of client i,
    min_Y  sum_i sqrt(1 - v_i) + lambda / (p (p - 1)) * sum_{i != j} sqrt(1 - |Y' (u_i - u_j)|^2)
by re-weighted SVD: w_i = (|1 - v_i| + eps)^(-1/4);  Y <- the first m left singular vectors of [w_i u_i, pairs]
    a = (1/m) sum_i Y Y' u_i,   applied like a gradient: SGD with momentum on the server

Nothing of size d x d or d x p^2 is allocated: the columns are U W with U = [u_1 .. u_p], so Y and a follow from the Gram
matrix C = U'U. With Z the leading eigenvectors of C^(1/2) W W' C^(1/2): Y' U = Z' C^(1/2), a = U C^(-1/2) Z Y' U 1 / m.

The server sees every update, and logs v_i as each client's quality. Clients store no state. The option to rescale a to
the length of an update is our addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, Share, State
from paceline.core.params import Params
from paceline.core.random import torch_rng
from paceline.core.tree import node
from paceline.methods.robust.robust import Robust, median


@node
class FlagState(State):
    """The model and the velocity of the server's SGD."""

    velocity: Params


def flag(
    g: Tensor, rank: int, start: Tensor | None = None, *, pairs: float = 0.0, iterations: int = 1, eps: float = 1e-7
) -> tuple[Tensor, Tensor]:
    """Return (a, v) for updates g, shape [p, d] (float64): the aggregate and each client's explained share.

    Args:
        g: updates, none of them zero.
        rank: m, the dimension of the subspace.
        start: orthonormal basis of the initial subspace, shape [d, m]; None weights all clients equally at first.
        pairs: lambda, weight of the pairwise terms.
        iterations: number of re-weighting steps.
        eps: keeps the weights finite.
    """
    u = g / torch.linalg.vector_norm(g, dim=1, keepdim=True)
    p = len(u)
    values, vectors = torch.linalg.eigh(u @ u.T)
    root = values.clamp(min=0).sqrt()
    half = vectors * root @ vectors.T
    inverse = vectors * torch.where(root > 1e-7 * root.max(), 1 / root, 0.0) @ vectors.T
    seen = None if start is None else start.T @ u.T  # Y'U, shape [m, p]
    best = torch.inf if seen is None else _objective(seen)
    accepted: Tensor | None = None
    for step in range(max(iterations, 1)):
        z = torch.linalg.eigh(half @ _weights(seen, p, pairs, eps) @ half).eigenvectors[:, -rank:]
        now = z.T @ half
        value = _objective(now)
        if step and value >= best:
            break
        gain, best, seen, accepted = best - value, value, now, z
        if gain < 1e-10:
            break
    assert accepted is not None
    assert seen is not None
    return (inverse @ (accepted @ seen.sum(1))) @ u / rank, seen.square().sum(0)


def _objective(seen: Tensor) -> float:
    return float((1 - seen.square().sum(0)).clamp(min=0).sqrt().sum())


def _weights(seen: Tensor | None, p: int, pairs: float, eps: float) -> Tensor:
    """Return W W', shape [p, p]: w_i^2 on the diagonal, plus the contribution of the pairs' columns."""

    def squared(share: Tensor) -> Tensor:
        return ((1 - share).abs() + eps) ** -0.5

    single = torch.ones(p, dtype=torch.float64) if seen is None else squared(seen.square().sum(0))
    total = torch.diag(single)
    if pairs and p > 1:
        between = torch.zeros(p, p, dtype=torch.float64) if seen is None else torch.cdist(seen.T, seen.T).square()
        w = (torch.ones(p, p, dtype=torch.float64) if seen is None else squared(between)).fill_diagonal_(0)
        w = w * (pairs / (p * (p - 1))) ** 2
        total = total + 2 * (torch.diag(w.sum(1)) - w)  # both orders of each pair
    return total


@dataclass(frozen=True)
class Flag(Robust[FlagState]):
    """Average updates projected onto their best common subspace.

    Args:
        rank: m; 0 uses half of the cohort, rounded up.
        pairs: lambda, weight of the pairwise terms.
        iterations: number of re-weighting steps.
        begin: initial subspace: ``random`` (as published) or ``mean`` (all clients are weighted equally).
        rescale: ``none`` (as published: the length of a step does not depend on the updates'), or ``median``: multiply it by
            m / p * median |g_i|.
        server_lr, server_momentum, server_decay: of the server's SGD.
    """

    paper: ClassVar[str] = "arXiv 2302.05865 (ICLR 2024)"
    headline: ClassVar[str] = "more accurate than Multi-Krum, Bulyan, medians and trimmed means under attack, at less communication"
    needs: ClassVar[tuple[int, int]] = (2, 1)

    rank: NonNegative[int] = 0
    pairs: NonNegative[float] = 0.0
    iterations: Positive[int] = 1
    begin: Literal["random", "mean"] = "random"
    rescale: Literal["none", "median"] = "none"
    server_lr: NonNegative[float] = 0.2
    server_momentum: Share = 0.9
    server_decay: NonNegative[float] = 5e-4

    def init(self, fed: Federation) -> FlagState:
        """Start with zero velocity."""
        params = fed.init_params()
        return FlagState(params=params, velocity=params.zeros())

    def round(self, fed: Federation, state: FlagState) -> FlagState:
        """Aggregate the updates, log each client's quality, and take one SGD step."""
        who, g, layout = self.collect(fed, state.params)
        split, step = layout.num_params, state.params.zeros()
        moved = torch.linalg.vector_norm(g[:, :split], dim=1) > 1e-12
        if bool(moved.any()):
            step.vector[:split], quality = self._aggregate(fed, g[moved, :split])
            named = zip([c for c, here in zip(who, moved, strict=True) if here], quality, strict=True)
            fed.last.notes.update({f"quality_{client}": float(v) for client, v in named})
        weights = state.params.clone()
        weights.vector[split:] = 0  # no weight decay or momentum for running statistics
        velocity = self.server_momentum * state.velocity + step - self.server_decay * weights
        params = state.params + self.server_lr * velocity
        params.vector[split:] += median(g[:, split:]).float()
        return FlagState(params=params, velocity=velocity)

    def _aggregate(self, fed: Federation, g: Tensor) -> tuple[Tensor, Tensor]:
        p = len(g)
        rank = min(self.rank or (p + 1) // 2, p)
        a, quality = flag(g, rank, self._start(fed, g.shape[1], rank), pairs=self.pairs, iterations=self.iterations)
        if self.rescale == "median":
            a = a * (rank / p) * torch.linalg.vector_norm(g, dim=1).median()
        return a.float(), quality

    def _start(self, fed: Federation, d: int, rank: int) -> Tensor | None:
        if self.begin == "mean":
            return None
        drawn = torch.rand(d, rank, generator=torch_rng(fed.seed, "flag")) - 0.5
        basis: Tensor = torch.linalg.qr(drawn)[0]
        return basis.double()

    def combine(self, g: Tensor, f: int) -> Tensor:
        """Return the aggregate of updates, without the server's momentum."""
        return flag(g, min(self.rank or (len(g) + 1) // 2, len(g)), pairs=self.pairs, iterations=self.iterations)[0]
