"""Server-side merge of scattered updates: two choices of denominator, coverage and inclusion probabilities of coordinates.

Updates are differences on the kept coordinates and zero elsewhere; all forms need only sums, so they
work under secure aggregation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from paceline.core.params import Params
from paceline.submodels.graph import UnitGraph

__all__ = ["coverage", "filled", "inclusion", "masked_mean", "zero_fill"]


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


def inclusion(graph: UnitGraph, like: Params, counts: Mapping[str, int]) -> Params:
    """Return the probability with which each coordinate is in a sub-model whose units are drawn at random.

    Of each group, k of n units are drawn without replacement, and those of different groups independently. A coordinate that
    belongs to one unit of a group is included with k / n, one that belongs to two of them (a recurrent weight) with
    k (k - 1) / (n (n - 1)). The mean of a scattered update divided by it is the update that training all parts would give
    (Horvitz and Thompson, 1952). Running statistics have 1: a variance must not be multiplied.

    Args:
        graph: units of the model.
        like: provides layout and device.
        counts: number k of units drawn, by group (`Cutter.keep`).

    Returns:
        probabilities, [d]; 1 where the probability is 0.

    Example:
        >>> from paceline.core.layout import Layout
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph, params = UnitGraph.trace(net, torch.zeros(1, 4)), Params.of(net, Layout.of(net))
        >>> inclusion(graph, params, {"0": 2})["2.weight"][0, 0]
        tensor(0.2500)
    """
    out = like.zeros() + 1.0
    for entry in like.layout.entries:
        if entry.kind != "param":
            continue
        axes, view = graph.axes[entry.name], out[entry.name]
        for dim, axis in enumerate(axes):
            if axis.group is None:
                continue
            n, k = graph.groups[axis.group], counts[axis.group]
            units = _along(axis.units, dim, len(axes))
            chance = torch.full_like(units, k / n, dtype=view.dtype)
            for before in range(dim):
                if axes[before].group == axis.group:
                    same = _along(axes[before].units, before, len(axes)) == units
                    chance = torch.where(same, 1.0, (k - 1) / max(n - 1, 1))
            view *= chance.to(view)
    return out.map(lambda p: torch.where(p > 0, p, 1.0))


def filled(update: Params, mask: Params, last: Params) -> Params:
    """Return a scattered update with the last known update on the parameters that were not trained.

    The result is what a client sends, and its next `last`. Running statistics that were not trained remain 0.

    Args:
        update: the update, [d], zero where `mask` is 0.
        mask: 1 on the trained coordinates (`SubModel.mask`).
        last: latest update of each coordinate.
    """
    out = update.clone()
    for entry in update.layout.entries:
        if entry.kind == "param":
            out[entry.name].copy_(torch.where(mask[entry.name] > 0, update[entry.name], last[entry.name]))
    return out


def _along(units: Tensor, dim: int, dims: int) -> Tensor:
    return units.view([-1 if d == dim else 1 for d in range(dims)])
