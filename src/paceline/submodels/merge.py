"""Server-side merge of scattered updates: two choices of denominator, and coverage of coordinates.

Updates are differences on the kept coordinates and zero elsewhere; both forms need only sums, so they
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
    """Return the step of option Z: Σ n_u Δ_u / Σ n_u, with one denominator for all coordinates.

    A coordinate dropped by some clients takes a smaller step, by the fraction of weight that trained it.

    Args:
        total: Σ n_u Δ_u, with zeros at coordinates that a client did not train.
        weight: Σ n_u over all clients.
    """
    return total / weight


def masked_mean(total: Params, weights: Params) -> Params:
    """Return the step of option M: Σ n_u Δ_u / Σ n_u m_u per coordinate; 0 (θ unchanged) where no client trained.

    Args:
        total: Σ n_u Δ_u.
        weights: Σ n_u m_u with the clients' masks m_u (`SubModel.mask`), or the result of `coverage` for weights by unit.
    """
    trained = weights.vector > 0
    return Params(torch.where(trained, total.vector / weights.vector, 0.0), total.layout)


def coverage(graph: UnitGraph, like: Params, units: Mapping[str, Tensor], weight: Tensor | float) -> Params:
    """Return the weight that trained each coordinate, from the weight that trained each unit.

    A coordinate is trained by the clients that kept all units it belongs to; this is approximated by the minimum of their
    weights. The result is exact if the kept sets are nested, else an upper bound; it costs one number per unit to send.

    Args:
        graph: units of the model.
        like: provides layout and device.
        units: for each group, Σ of n_u over the clients that kept the unit, shape [n].
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
