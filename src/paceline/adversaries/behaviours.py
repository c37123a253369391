"""Byzantine clients for tests and simulations: their selection, and their attacks on replies or data.

    signflip:0.2           send minus the honest update (``scale=10``: ten times as long)
    gaussian:0.2           noise instead of the update, ``scale`` times as long
    random:0.2             ``scale`` times numbers from U(0, 1)
    drop:0.2               a fraction `part` of the coordinates is 0
    alie:0.2               mean - z * deviation over the colluders' updates ("A little is enough", Baruch et al. 2019)
    ipm:0.2                -scale * mean over the colluders' updates ("Fall of empires", Xie et al. 2019)
    minmax:0.2             as far along -deviation as the colluders' spread permits (Shejwalkar & Houmansadr 2021)
    ranks:0.2              votes: the colluders' positions added up, and the least important edge ranked first
    labelflip:0.2          honest training on labels C - 1 - y

The number is the fraction of the population; further options follow as in ``alie:0.2,z=1.5``. Colluders know each
other's honest updates of a call, never those of honest clients. Scalars and weights remain honest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor

from paceline import registry
from paceline.core.errors import ConfigError
from paceline.core.parsing import value
from paceline.core.random import numpy_rng

__all__ = ["Adversary", "load_adversary", "members"]


@dataclass(frozen=True)
class Adversary:
    """Base class of the attacks of Byzantine clients.

    Args:
        share: fraction of the population that is Byzantine.
    """

    name: ClassVar[str] = ""
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"adversary {self.name}: share={self.share:g} must be above 0 and below 1")
        for option in dataclasses.fields(self):
            if getattr(self, option.name) in (math.inf, -math.inf):
                raise ConfigError(f"adversary {self.name}: {option.name} must be finite")

    def craft(self, honest: Tensor, cohort: int, rng: Callable[[int], torch.Generator]) -> Tensor:
        """Return the updates sent by the Byzantine clients of a call.

        Args:
            honest: their honest updates, shape [f, d].
            cohort: number of clients called.
            rng: returns the random generator of the i-th of them.
        """
        return honest

    def craft_votes(self, honest: Tensor) -> Tensor:
        """Return the replacement of integer tensors of shape [n], given as [f, n]; unchanged by default."""
        return honest

    def labels(self, y: Tensor, num_classes: int) -> Tensor:
        """Return the labels on which a Byzantine client trains."""
        return y

    @property
    def poisons_data(self) -> bool:
        """Whether labels are changed instead of replies."""
        return type(self).labels is not Adversary.labels


@dataclass(frozen=True)
class SignFlip(Adversary):
    """Send -scale * update."""

    name: ClassVar[str] = "signflip"
    scale: float = 1.0

    def craft(self, honest: Tensor, cohort: int, rng: Callable[[int], torch.Generator]) -> Tensor:
        """Invert every update."""
        return -self.scale * honest


@dataclass(frozen=True)
class Gaussian(Adversary):
    """Send noise with `scale` times the update's norm."""

    name: ClassVar[str] = "gaussian"
    scale: float = 10.0

    def craft(self, honest: Tensor, cohort: int, rng: Callable[[int], torch.Generator]) -> Tensor:
        """Draw normally distributed directions."""
        noise = torch.stack([torch.randn(honest.shape[1], generator=rng(i)) for i in range(len(honest))])
        noise = noise.to(honest.device)
        length = torch.linalg.vector_norm(honest, dim=1) / torch.linalg.vector_norm(noise, dim=1).clamp(min=1e-12)
        sent: Tensor = self.scale * noise * length.unsqueeze(1)
        return sent


@dataclass(frozen=True)
class Random(Adversary):
    """Send `scale` times numbers drawn from U(0, 1)."""

    name: ClassVar[str] = "random"
    scale: float = 1.0

    def craft(self, honest: Tensor, cohort: int, rng: Callable[[int], torch.Generator]) -> Tensor:
        """Draw uniform numbers."""
        drawn = [torch.rand(honest.shape[1], generator=rng(i)) for i in range(len(honest))]
        return self.scale * torch.stack(drawn).to(honest.device)


@dataclass(frozen=True)
class Drop(Adversary):
    """Set a fraction `part` of the coordinates to zero."""

    name: ClassVar[str] = "drop"
    part: float = 0.1

    def craft(self, honest: Tensor, cohort: int, rng: Callable[[int], torch.Generator]) -> Tensor:
        """Set random coordinates to zero."""
        keep = torch.stack([torch.rand(honest.shape[1], generator=rng(i)) >= self.part for i in range(len(honest))])
        return honest * keep.to(honest.device)


@dataclass(frozen=True)
class Alie(Adversary):
    """Send mean - z * deviation of the colluders' updates.

    Args:
        z: distance in deviations; NaN selects the paper's: the quantile at (n - f - s) / (n - f) with s = n // 2 + 1 - f.
    """

    name: ClassVar[str] = "alie"
    z: float = math.nan

    def craft(self, honest: Tensor, cohort: int, rng: Callable[[int], torch.Generator]) -> Tensor:
        """Shift the mean within the spread of the updates."""
        z, f = self.z, len(honest)
        if math.isnan(z):
            z = little(cohort, f)
        return (honest.mean(0) - z * honest.std(0, correction=0)).expand_as(honest)


def little(cohort: int, colluders: int) -> float:
    """Return ALIE's z for `colluders` of a cohort; 0.21 for 3 of 15."""
    others = cohort - colluders
    quantile = (others - (cohort // 2 + 1 - colluders)) / max(others, 1)
    return NormalDist().inv_cdf(min(max(quantile, 1e-6), 1 - 1e-6))


@dataclass(frozen=True)
class InnerProduct(Adversary):
    """Send -scale * mean of the colluders' updates."""

    name: ClassVar[str] = "ipm"
    scale: float = 0.1

    def craft(self, honest: Tensor, cohort: int, rng: Callable[[int], torch.Generator]) -> Tensor:
        """Invert the mean."""
        return (-self.scale * honest.mean(0)).expand_as(honest)


@dataclass(frozen=True)
class MinMax(Adversary):
    """Send mean - gamma * deviation with the largest undetectable gamma.

    This is the largest gamma for which the distance to any honest update of the colluders is at most the largest distance
    between two of them (0 if there is only one).
    """

    name: ClassVar[str] = "minmax"

    def craft(self, honest: Tensor, cohort: int, rng: Callable[[int], torch.Generator]) -> Tensor:
        """Solve |mean + gamma p - g_i| = D for gamma, and return the smallest solution over i."""
        g = honest.double()
        mean, p = g.mean(0), -g.std(0, correction=0)
        far = torch.cdist(g, g).max()
        a, offset = p.dot(p), mean - g
        if not float(a):
            return mean.float().expand_as(honest)
        b, c = offset @ p, offset.square().sum(1) - far**2
        gamma = ((-b + (b * b - a * c).clamp(min=0).sqrt()) / a).min()
        return (mean + gamma * p).to(honest.dtype).expand_as(honest)


@dataclass(frozen=True)
class Ranks(Adversary):
    """Send the reverse of the ranking obtained from the colluders' summed positions; it is a valid permutation."""

    name: ClassVar[str] = "ranks"

    def craft_votes(self, honest: Tensor) -> Tensor:
        """Reverse the colluders' common ranking."""
        order = torch.argsort(honest.sum(0), descending=True, stable=True)
        places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return places.to(honest.dtype).expand_as(honest)


@dataclass(frozen=True)
class LabelFlip(Adversary):
    """Train on C - 1 - y."""

    name: ClassVar[str] = "labelflip"

    def labels(self, y: Tensor, num_classes: int) -> Tensor:
        """Return the opposite classes."""
        return num_classes - 1 - y


def load_adversary(spec: str) -> Adversary:
    """Return the adversary described by a text such as ``"signflip:0.2,scale=10"``.

    Raises:
        UnknownNameError: unknown name or option.
        ConfigError: invalid value.

    Example:
        >>> load_adversary("signflip:0.2,scale=10")
        SignFlip(share=0.2, scale=10.0)
    """
    read = registry.parse("adversary", spec)
    if not read.value and "share" not in read.options:
        registry.describe("adversary", read.name)
        raise ConfigError(f"adversary {spec!r}: the share of Byzantine clients is missing; write it as in {read.name}:0.2")
    made = registry.build("adversary", read, {}, {"share": value(read.value)} if read.value else {})
    if not isinstance(made, Adversary):
        raise ConfigError(
            f"adversary {spec!r} is not an Adversary; derive its class from paceline.adversaries.behaviours.Adversary"
        )
    return made


def members(share: float, clients: int, seed: int) -> Collection[int]:
    """Return the Byzantine clients: a fraction `share` of the population, at least one, drawn by the seed."""
    count = max(round(share * clients), 1)
    return frozenset(numpy_rng(seed, "adversary").permutation(clients)[:count].tolist())
