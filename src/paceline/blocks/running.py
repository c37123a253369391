"""Running statistics (BatchNorm's buffers) aside: what is right for weights is not for them.

Methods that scale updates, add them up over rounds or count them from memory treat weights so; statistics are
averaged over those who trained now, and nothing else. Models without any cost nothing here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, cat

from paceline.core.params import Params
from paceline.core.update import Update

__all__ = ["averaged", "statistics", "weights"]


def statistics(params: Params) -> dict[str, Any]:
    """Return the field of an `Update` that carries a client's running statistics; none where there are none."""
    layout = params.layout
    return {} if layout.num_params == layout.size else {"statistics": params.vector[layout.num_params :]}


def weights(params: Params) -> Params:
    """Return `params` with zeros in place of statistics."""
    layout = params.layout
    if layout.num_params == layout.size:
        return params
    return _joined(params, params.vector.new_zeros(layout.size - layout.num_params))


def averaged(params: Params, mean: Update) -> Params:
    """Return `params` with the mean's statistics, where it has any."""
    return _joined(params, mean.statistics) if "statistics" in mean.fields else params


def _joined(params: Params, rest: Tensor) -> Params:
    return Params(cat([params.vector[: params.layout.num_params], rest]), params.layout)
