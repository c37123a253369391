"""Separate treatment of running statistics (BatchNorm's buffers), for which operations on weights are not valid.

Methods that scale updates, accumulate them over rounds or reuse them from memory do so for weights only; statistics are
averaged over the clients that trained in this round. Models without running statistics incur no cost. A client that took no
step sends zeros, and 0 in the field `trained`: divided by the mean of `trained`, the mean of `statistics` leaves it out,
whatever its weight in other fields.

Where a sum has a field ``delta`` or ``statistics``, the core sets the model's statistics after the round
(`paceline.core.statistics`). These functions serve methods with other fields, several models, or single replies.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, cat

from paceline.core.params import Params
from paceline.core.statistics import mean_statistics
from paceline.core.training import Trained
from paceline.core.update import Update

__all__ = ["averaged", "statistics", "stepped", "weights", "with_statistics"]


def statistics(local: Trained | Params) -> dict[str, Any]:
    """Return the fields of an `Update` with a client's running statistics; empty if there are none.

    Args:
        local: the result of local training; or the parameters alone, [d], where a client that did not train has weight 0.
    """
    params = local if isinstance(local, Params) else local.params
    layout = params.layout
    if layout.num_params == layout.size:
        return {}
    own = params.vector[layout.num_params :]
    if isinstance(local, Params):
        return {"statistics": own}
    return {"statistics": own if local.steps else own * 0.0, "trained": float(local.steps > 0)}


def weights(params: Params) -> Params:
    """Return `params` with statistics replaced by zeros."""
    layout = params.layout
    if layout.num_params == layout.size:
        return params
    return _joined(params, params.vector.new_zeros(layout.size - layout.num_params))


def with_statistics(params: Params, other: Params) -> Params:
    """Return `params` with the statistics of `other`, a model of the same layout."""
    layout = params.layout
    return params if layout.num_params == layout.size else _joined(params, other.vector[layout.num_params :])


def stepped(params: Params, delta: Params, rate: float) -> Params:
    """Return ``params + rate * delta``, in which statistics move by all of `delta`: to the mean that it leads to."""
    moved: Params = params + rate * delta
    return moved if rate == 1.0 else with_statistics(moved, params + delta)


def averaged(params: Params, mean: Update) -> Params:
    """Return `params` with the mean's statistics, if it has any and a client that trained contributed to them.

    Args:
        params: parameters and statistics, [d].
        mean: mean of updates that contain `statistics`.
    """
    own = mean_statistics(mean)
    return params if own is None else _joined(params, own)


def _joined(params: Params, rest: Tensor) -> Params:
    return Params(cat([params.vector[: params.layout.num_params], rest]), params.layout)
