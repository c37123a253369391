"""What the server does with sums of scattered updates: the two denominators, and who trained what.

Updates are differences on the kept coordinates and zero elsewhere; both forms need sums only, so they
work under secure aggregation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from paceline.core.params import Params
from paceline.submodels.graph import UnitGraph

__all__ = ["coverage", "masked_mean", "zero_fill"]


def zero_fill(total: Params, weight: Tensor | float) -> Params:
    """Return the step of option Z: Σ n_u Δ_u / Σ n_u, one denominator for all coordinates.

    A coordinate that some clients dropped takes a smaller step, by the share of weight that trained it.

    Args:
        total: Σ n_u Δ_u, with zeros where a client did not train.
        weight: Σ n_u over all clients.
    """
    return total / weight


def masked_mean(total: Params, weights: Params) -> Params:
    """Return the step of option M: Σ n_u Δ_u / Σ n_u m_u by coordinate; 0 (θ stays) where nobody trained.

    Args:
        total: Σ n_u Δ_u.
        weights: Σ n_u m_u with the clients' masks m_u (`SubModel.mask`), or what `coverage` makes of
            weights by unit.
    """
    trained = weights.vector > 0
    return Params(torch.where(trained, total.vector / weights.vector, 0.0), total.layout)


def coverage(graph: UnitGraph, like: Params, units: Mapping[str, Tensor], weight: Tensor | float) -> Params:
    """Return the weight that trained each coordinate, from the weight that trained each unit.

    A coordinate is trained by those who kept all the units it belongs to; taken here as the least of their
    weights. Exact when the kept sets are nested, else an upper bound; costs one number per unit to send.

    Args:
        graph: the model's units.
        like: gives layout and device.
        units: for each group Σ of n_u over the clients that kept the unit, shape [n].
        weight: Σ n_u over all clients, for coordinates that belong to no unit.
    """
    out = like.zeros()
    for entry in like.layout.entries:
        view = out[entry.name]
        view.fill_(weight)
        for dim, axis in enumerate(graph.axes[entry.name]):
            if axis.group is not None:
                here = units[axis.group].to(view)[axis.units.to(view.device)]
                shape = [-1 if d == dim else 1 for d in range(view.dim())]
                torch.minimum(view, here.view(shape), out=view)
    return out
