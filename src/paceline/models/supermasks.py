"""Frozen random networks of which only a mask is learnt: the edges with the highest scores are kept."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.core.random import torch_rng

__all__ = ["MaskOn", "Ranks", "mask", "network", "placed", "slope", "without_offsets"]

MaskOn = Literal["signed", "abs", "released"]
"""Input of the mask: scores, absolute scores, or absolute scores ranked by their signed values."""

Ranks = dict[str, Tensor]
"""Edges of each layer from the least to the most important one."""


@functools.lru_cache(maxsize=4)
def network(layout: Layout, seed: int, on: MaskOn = "signed") -> tuple[Params, dict[str, Tensor], Ranks]:
    """Return the frozen weights, the sorted initial scores of each layer, and the initial ranking."""
    frozen, sorted_scores, ranks = Params(torch.zeros(layout.size), layout), {}, {}
    for entry in layout.entries:
        rng, fan_in = torch_rng(seed, "frl", entry.name), max(entry.size // entry.shape[0], 1)
        signs = torch.randint(2, (entry.size,), generator=rng) * 2.0 - 1.0
        frozen[entry.name].copy_((signs * math.sqrt(2 / fan_in)).view(entry.shape))
        scores = (torch.rand(entry.size, generator=rng) * 2 - 1) / math.sqrt(fan_in)
        scores = scores.abs() if on == "abs" else scores
        ranks[entry.name] = torch.argsort(scores, stable=True)
        sorted_scores[entry.name] = scores[ranks[entry.name]]
    return frozen, sorted_scores, ranks


def placed(layout: Layout, ranks: Ranks, sorted_scores: dict[str, Tensor]) -> Params:
    """Return scores in the order of a ranking: s[R_j] = q_j."""
    parts = [torch.empty_like(sorted_scores[n]).scatter_(0, ranks[n], sorted_scores[n]) for n in layout.by_name]
    return Params(torch.cat(parts), layout)


def mask(scores: Params, keep: float, on: MaskOn = "signed") -> Params:
    """Return 1 for the kept edges of each layer, else 0; a pure function, so that clients can be stacked."""
    parts = []
    for name in scores:
        flat = scores[name].reshape(-1)
        order = torch.argsort(flat if on == "signed" else flat.abs(), stable=True)
        parts.append(torch.ones_like(flat).scatter(0, order[: int((1 - keep) * len(flat))], 0.0))
    return Params(torch.cat(parts), scores.layout)


def without_offsets(model: Callable[[], nn.Module]) -> nn.Module:
    """Build a module with all biases fixed at 0 and all norm scales at 1."""
    module = model()
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            parameter.data.fill_(float(name.endswith("weight")))
    return module


def slope(scores: Params, on: MaskOn) -> Params | float:
    """Return the straight-through gradient of the mask with respect to the scores."""
    return 1.0 if on == "signed" else scores.map(torch.sign)
