"""Robust aggregation rules for n updates g_i of which at most f are Byzantine; sums and sorts are per coordinate.

    median               of all g_i (Yin et al., ICML 2018)
    trimmed mean         without the f smallest and the f largest values (Yin et al., ICML 2018)
    geometric median     argmin_z sum_i |z - g_i|, by Weiszfeld's iteration (Pillutla et al., IEEE TSP 2022)
    Krum, Multi-Krum     s_i = sum over its n - f - 2 nearest of |g_i - g_j|^2; the g_i of least s_i, or the mean of
                         the n - f (Blanchard et al., NeurIPS 2017)
    Bulyan               pick n - 2f by repeated Krum; mean of the n - 4f values nearest their median
                         (El Mhamdi et al., ICML 2018)
    MeaMed, Phocas       mean of the n - f values nearest the median, or the trimmed mean (Xie et al., 2018)

Clients are weighted equally. The server sees every update. Clients store no state. Running statistics are combined by
their median. Updates with non-finite values are rejected first.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from paceline.blocks.running import stepped
from paceline.core.client import Client
from paceline.core.errors import NonFiniteError
from paceline.core.federation import Federation
from paceline.core.layout import Layout
from paceline.core.method import P, Share, on_client
from paceline.core.params import Params
from paceline.methods.optimisation.fedavg import FedAvg


def median(g: Tensor) -> Tensor:
    """Return the coordinate-wise median of the rows of [n, d]; for even n the mean of the middle two values."""
    return g.sort(0).values[(len(g) - 1) // 2 : len(g) // 2 + 1].mean(0)


def trimmed_mean(g: Tensor, f: int) -> Tensor:
    """Return the coordinate-wise mean without the f smallest and f largest values."""
    return g.sort(0).values[f : len(g) - f].mean(0)


def nearest_mean(g: Tensor, centre: Tensor, count: int) -> Tensor:
    """Return the coordinate-wise mean of the `count` values nearest `centre`."""
    return g.gather(0, (g - centre).abs().argsort(dim=0, stable=True)[:count]).mean(0)


def geometric_median(g: Tensor, iterations: int = 1000, tolerance: float = 1e-7) -> Tensor:
    """Return the point with the least sum of distances to the rows; stop at steps below `tolerance` x the median distance."""
    z = median(g)  # outliers, however far, leave it within the range of the others
    for _ in range(iterations):
        away = torch.linalg.vector_norm(g - z, dim=1)
        weights = torch.where(away > 1e-12 * away.median(), 1 / away.clamp(min=1e-30), 0.0)
        pull = weights @ (g - z)  # each row at z holds it with weight 1 (Vardi and Zhang, 2000)
        step = (1 - (weights == 0).sum() / pull.norm().clamp(min=1e-30)).clamp(min=0) * pull / weights.sum().clamp(min=1e-30)
        z = z + step
        if step.norm() <= tolerance * away.median():
            break
    return z


def krum_scores(square: Tensor, f: int) -> Tensor:
    """Return each row's sum of its n - f - 2 smallest squared distances to other rows, from `square` [n, n]."""
    others = square.clone().fill_diagonal_(torch.inf)
    return others.sort(1).values[:, : max(len(square) - f - 2, 1)].sum(1)


def bulyan(g: Tensor, f: int) -> Tensor:
    """Return Bulyan's mean."""
    square, left, picked = _squares(g), list(range(len(g))), list[int]()
    while len(picked) < len(g) - 2 * f:
        best = int(krum_scores(square[left][:, left], f).argmin()) if len(left) > 1 else 0
        picked.append(left.pop(best))
    chosen = g[sorted(picked)]
    return nearest_mean(chosen, median(chosen), len(g) - 4 * f)


def _squares(g: Tensor) -> Tensor:
    return torch.cdist(g, g, compute_mode="donot_use_mm_for_euclid_dist").square()


@dataclass(frozen=True)
class Robust(FedAvg[P]):
    """FedAvg with a robust rule instead of the mean.

    Args:
        byzantine: share of a cohort that may be Byzantine; f = floor(byzantine * n).
    """

    family: ClassVar[str] = "robust"
    reveals: ClassVar[str] = "every update"
    needs: ClassVar[tuple[int, int]] = (2, 1)
    """(a, b): the rule is valid for n >= a f + b."""

    byzantine: Share = 0.2

    @abstractmethod
    def combine(self, g: Tensor, f: int) -> Tensor:
        """Return the aggregate of the updates of n clients, shape [n, d] (float64)."""

    def check(self, fed: Federation) -> list[str]:
        """Require cohorts that are large enough for their share of Byzantine clients."""
        n, f, (a, b) = fed.cohort_size, self.faults(fed.cohort_size), self.needs
        return [] if n >= a * f + b else [f"{self.slug()} with f = {f} needs cohorts of at least {a * f + b} clients, not {n}"]

    def faults(self, n: int) -> int:
        """Return f for n updates."""
        return int(self.byzantine * n + 1e-9)

    def round(self, fed: Federation, state: P) -> P:
        """Collect the updates and step along their robust aggregate."""
        _, g, layout = self.collect(fed, state.params)
        f, (a, b), split = self.faults(len(g)), self.needs, layout.num_params
        if len(g) < a * f + b:
            raise fed.too_few(f"round {fed.round}: {len(g)} updates are too few for {self.slug()} with f = {f}")
        delta = torch.cat([self.combine(g[:, :split], f), median(g[:, split:])]).float()
        return replace(state, params=stepped(state.params, Params(delta, layout), self.server_lr))

    def collect(self, fed: Federation, params: Params) -> tuple[list[int], Tensor, Layout]:
        """Train a cohort; return the clients with finite updates, the updates, shape [n, d] (float64), and their layout.

        Updates of zero, as clients without samples send them, have no say unless all are zero.
        """
        replies = fed.each(self.submit, params, over=fed.sample())
        fine = {c: r for c, r in sorted(replies.items()) if r.finite}
        fed.last.notes["refused"] = float(len(replies) - len(fine))
        if not fine:
            raise NonFiniteError(f"round {fed.round}: none of {len(replies)} updates is finite; lower the learning rates")
        fine = {c: r for c, r in fine.items() if bool(r.vector.any())} or fine
        return list(fine), torch.stack([r.vector for r in fine.values()]).double(), params.layout

    @on_client(each=True)
    def submit(self, client: Client, message: Params) -> Params:
        """Train locally; return the change."""
        return client.sgd(message, **self.local(client)).params - message


@dataclass(frozen=True)
class Median(Robust):
    """Coordinate-wise median."""

    paper: ClassVar[str] = "Yin et al., ICML 2018"
    headline: ClassVar[str] = "statistical error of optimal order for strongly convex losses, if fewer than half are Byzantine"

    def combine(self, g: Tensor, f: int) -> Tensor:
        """Return the median."""
        return median(g)


@dataclass(frozen=True)
class TrimmedMean(Robust):
    """Coordinate-wise mean without the f smallest and largest values."""

    paper: ClassVar[str] = "Yin et al., ICML 2018"
    headline: ClassVar[str] = "statistical error of optimal order for strongly convex losses, with proven rates for other losses"

    def combine(self, g: Tensor, f: int) -> Tensor:
        """Return the trimmed mean."""
        return trimmed_mean(g, f)


@dataclass(frozen=True)
class GeometricMedian(Robust):
    """Geometric median: the point with the least summed distance to the updates."""

    paper: ClassVar[str] = "Pillutla et al., IEEE TSP 2022"
    headline: ClassVar[str] = "as accurate as the mean under low corruption, more robust under high corruption"

    def combine(self, g: Tensor, f: int) -> Tensor:
        """Return the geometric median."""
        return geometric_median(g)


@dataclass(frozen=True)
class Krum(Robust):
    """The update with the least summed squared distance to its n - f - 2 nearest others."""

    paper: ClassVar[str] = "Blanchard et al., NeurIPS 2017"
    headline: ClassVar[str] = "the first rule for distributed SGD proven to withstand Byzantine clients"
    needs: ClassVar[tuple[int, int]] = (2, 3)

    def combine(self, g: Tensor, f: int) -> Tensor:
        """Return the update with the best Krum score."""
        return g[krum_scores(_squares(g), f).argmin()]


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the n - f updates with the best Krum scores."""

    headline: ClassVar[str] = "withstands Byzantine clients like Krum, and converges nearly as fast as the mean without attackers"

    def combine(self, g: Tensor, f: int) -> Tensor:
        """Return the mean of the n - f updates with the best scores."""
        return g[krum_scores(_squares(g), f).argsort(stable=True)[: len(g) - f]].mean(0)


@dataclass(frozen=True)
class Bulyan(Robust):
    """Repeated Krum selection, then a mean around the median."""

    paper: ClassVar[str] = "El Mhamdi et al., ICML 2018"
    headline: ClassVar[str] = "limits an attacker's leeway to O(1 / sqrt(d)), where it grows like sqrt(d) under earlier rules"
    needs: ClassVar[tuple[int, int]] = (4, 3)

    def combine(self, g: Tensor, f: int) -> Tensor:
        """Return Bulyan's mean."""
        return bulyan(g, f)


@dataclass(frozen=True)
class MeaMed(Robust):
    """Coordinate-wise mean of the n - f values nearest the median."""

    paper: ClassVar[str] = "Xie et al., arXiv 1802.10116"
    headline: ClassVar[str] = "proven to withstand attackers even if the Byzantine set differs per coordinate"

    def combine(self, g: Tensor, f: int) -> Tensor:
        """Return the mean of the n - f values nearest the median."""
        return nearest_mean(g, median(g), len(g) - f)


@dataclass(frozen=True)
class Phocas(Robust):
    """Coordinate-wise mean of the n - f values nearest the trimmed mean."""

    paper: ClassVar[str] = "Xie et al., arXiv 1805.09682"
    headline: ClassVar[str] = "proven to withstand attackers even if the Byzantine set differs per coordinate"

    def combine(self, g: Tensor, f: int) -> Tensor:
        """Return the mean of the n - f values nearest the trimmed mean."""
        return nearest_mean(g, trimmed_mean(g, f), len(g) - f)
