"""A frozen backbone with a pool of scales, shifts, keys and heads, of which every sample uses the members with the nearest keys.

q = F*(x),   s_j = cos(q, k_j),   J = the K members of largest s_j
every output of a linear layer, convolution or norm:  h <- h mean_J gamma_j + mean_J beta_j
scores = mean_J (W_j F(x) + b_j),   match = sum_J s_j
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.columns import Samples
from paceline.core.errors import ConfigError
from paceline.models.split import features, head
from paceline.models.tuning import freeze_statistics, put_scales

__all__ = ["PoolScaleShift", "Pooled", "pooled"]


class PoolScaleShift(nn.Module):
    """h * gamma + beta, with the mean of the members that each sample chose; the identity while none is chosen.

    Args:
        members: number of members M.
        spread: standard deviation of the initial values around 1 and 0.
        width: number of outputs, or of channels.
        channels_first: outputs are [N, width, H, W].
    """

    def __init__(self, members: int, spread: float, width: int, channels_first: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + spread * torch.randn(members, width))
        self.shift = nn.Parameter(spread * torch.randn(members, width))
        self.channels_first = channels_first
        self.chosen: Tensor | None = None
        """Weight of each member for each sample, [N, M]."""

    def forward(self, h: Tensor) -> Tensor:
        """Return the shape of `h`, [N, ...]."""
        if self.chosen is None:
            return h
        scale, shift = self.chosen @ self.scale, self.chosen @ self.shift
        between = (1,) * (h.dim() - 2)
        shape = (*scale.shape, *between) if self.channels_first else (scale.shape[0], *between, scale.shape[1])
        return (h * scale.view(shape) + shift.view(shape)).to(h.dtype)


class Pooled(nn.Module):
    """A frozen model with a pool; called as the model is.

    Args:
        backbone: a module with a head, which the pool's heads replace.
        members: M.
        selected: K.
        spread: standard deviation of the initial scales, shifts and keys.
    """

    def __init__(self, backbone: nn.Module, members: int, selected: int, spread: float = 0.02) -> None:
        super().__init__()
        layer = head(backbone)
        classes, width = layer.out_features, layer.in_features
        self.selected = selected
        freeze_statistics(backbone)
        put_scales(backbone, lambda *shape: PoolScaleShift(members, spread, *shape))
        self.backbone = backbone
        self.places = [part for part in backbone.modules() if isinstance(part, PoolScaleShift)]
        self.keys = nn.Parameter(nn.init.trunc_normal_(torch.empty(members, width), std=0.02))
        self.weight = nn.Parameter(math.sqrt(2 / width) * torch.randn(members, classes, width))
        self.bias = nn.Parameter(torch.zeros(members, classes))

    def choose(self, x: Samples) -> tuple[Tensor, Tensor]:
        """Return the weight of each member for each sample, [N, M], and the sum of the chosen cosines, [N]."""
        with torch.no_grad():
            query = self._features(x, None)
        near = F.normalize(query, dim=1) @ F.normalize(self.keys, dim=1).T
        first = torch.sort(near.detach(), dim=1, descending=True, stable=True).indices[:, : self.selected]
        chosen = F.one_hot(first, near.shape[1]).sum(1).to(near.dtype)
        return chosen / self.selected, (near * chosen).sum(1)

    def matched(self, x: Samples) -> tuple[Tensor, Tensor]:
        """Return scores [N, C] and the sum of the chosen cosines [N]."""
        chosen, match = self.choose(x)
        found = self._features(x, chosen)
        each = torch.einsum("nl,mcl->nmc", found, self.weight) + self.bias
        return torch.einsum("nm,nmc->nc", chosen, each), match

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Return scores, shape [N, C]."""
        return self.matched(named or (inputs[0] if len(inputs) == 1 else inputs))[0]

    def _features(self, x: Samples, chosen: Tensor | None) -> Tensor:
        try:
            for place in self.places:
                place.chosen = chosen
            return features(self.backbone, x)
        finally:
            for place in self.places:
                place.chosen = None


def pooled(model: Callable[[], nn.Module], members: int, selected: int, spread: float = 0.02) -> nn.Module:
    """Build a model and put a pool around it, with torch's global random state.

    Raises:
        ConfigError: the model has no head, or more members are to be selected than there are.
    """
    if not 1 <= selected <= members:
        raise ConfigError(f"selected={selected} must be from 1 to the number of members, {members}")
    return Pooled(model(), members, selected, spread)
