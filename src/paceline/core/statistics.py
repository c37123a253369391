"""Running statistics of the global model: the weighted mean of the clients', whatever the server's step does to weights.

BatchNorm's running means and variances lie in the same vector as the weights (policy ``average``), but they are no
directions: scaled by a server's learning rate, or accumulated in a momentum, a variance becomes negative. A round
therefore ends with the statistics that the clients of its last sum had after training, averaged as that sum weights them.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from paceline.core.params import Params
from paceline.core.tree import Tree
from paceline.core.update import Update

__all__ = ["RunningStatistics", "mean_statistics", "params_in"]

_SLACK = 1e-6
"""Relative error of a sum of numbers."""


class RunningStatistics:
    """Statistics of the model after the current round, read from the sums over clients that started from the round's model.

    The clients' mean follows from the field ``delta`` of an `Update` (the change of the message's model), or from its field
    ``statistics`` (see `mean_statistics`). Sums of other fields, over clients with other models, or of single replies leave it
    open; then the method's own result stands.
    """

    def __init__(self) -> None:
        self._model: Params | None = None
        self._next: Tensor | None = None

    def begin(self, model: Params) -> None:
        """Begin a round with its model, shape [d]."""
        self._model = model if model.layout.num_params < model.layout.size else None
        self._next = None

    def see(self, message: Tree, mean: Any) -> None:
        """Read the clients' statistics from the mean of their replies to a message."""
        model = self._model
        if model is None or not isinstance(mean, Update) or not any(p.vector is model.vector for p in params_in(message)):
            return
        count, delta = model.layout.num_params, mean.fields.get("delta")
        if "statistics" in mean.fields:
            self._next = mean_statistics(mean)
        elif isinstance(delta, Params) and len(delta) == len(model):
            self._next = model.vector[count:] + delta.vector[count:]

    def settle(self, model: Params) -> None:
        """Write the statistics into the model that the round ended with, unless it is the one that the round began with."""
        if self._model is None or self._next is None or model.vector is self._model.vector or len(model) != len(self._model):
            return
        model.vector[model.layout.num_params :] = self._next


def mean_statistics(mean: Update) -> Tensor | None:
    """Return the mean running statistics of the clients that trained; None if there are none.

    Clients that all report 0 or 1 as ``trained``, with whole weights, sum to a number between 1 and the sum of weights, or
    to 0. Other sums are refused with a warning, since a false number could scale the statistics without limit.

    Args:
        mean: mean of updates. Its field ``trained``, if it has one, is the share of clients that trained, by weight; the
            others sent zeros as their statistics.
    """
    if "statistics" not in mean.fields:
        return None
    counted = mean.weight["statistics"] if isinstance(mean.weight, dict) else mean.weight
    share = mean.fields.get("trained", 1.0) if counted else 0.0
    if share == 0.0:
        return None
    if not (1.0 - _SLACK) / counted <= share <= 1.0 + _SLACK:
        warnings.warn(
            f"a client reported a false number of clients that trained: the sum is {share * counted:g}, of {counted:g}; running "
            "statistics remain those of the round before",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    own: Tensor = mean.statistics
    return own if share == 1.0 else own / share


def params_in(tree: Any) -> list[Params]:
    """Return the parameter vectors in a message."""
    if isinstance(tree, Params):
        return [tree]
    if isinstance(tree, dict):
        return [p for value in tree.values() for p in params_in(value)]
    if isinstance(tree, list | tuple):
        return [p for value in tree for p in params_in(value)]
    return [p for value in vars(tree).values() for p in params_in(value)] if hasattr(tree, "__dataclass_fields__") else []
