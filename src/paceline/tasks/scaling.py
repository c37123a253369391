"""Scaling of inputs by a sum over the clients: mean and deviation of each column or channel, measured before round 1.

The scaling is the first layer of the model. So it travels with the model, is part of what is saved, and no client needs to
change its data. Values arrive there already scaled by the schema, hence of moderate size; the sums are bounded by that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.core.params import Params
from paceline.data.schema import Schema
from paceline.tasks.schemas import schema_of

if TYPE_CHECKING:
    from paceline.core.federation import Federation
    from paceline.core.method import Method
    from paceline.core.task import Task

__all__ = ["LIMIT", "InputScaling", "measured_scaling", "with_scaling"]

LIMIT = 16.0
"""Largest magnitude of a value in the sums, in deviations of the schema; larger ones count as this. `Method.moments` declares it."""

_LEAST = 1e-3
"""Smallest deviation of an input, in deviations of the schema; below it an input is left unscaled."""


class InputScaling(nn.Module):
    """Returns ``(x - mean) / deviation``.

    Args:
        shape: of mean and deviation, such as [F] for tables and [C, 1, 1] for pictures.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled inputs, of the shape of `x`."""
        return (x - self.mean) / self.deviation


def with_scaling(make: Callable[[], nn.Module], schema: Schema) -> Callable[[], nn.Module]:
    """Return what makes a model that begins with an `InputScaling`.

    Args:
        make: makes the model without it.
        schema: the schema, of a table or of pictures.

    Raises:
        ConfigError: the inputs are codes of texts.
    """
    if schema.content == "text":
        raise ConfigError("standardize=federated: texts are codes without a scale; leave it out")
    shape = (schema.width,) if schema.picture is None else (schema.picture.channels, 1, 1)
    return partial(_scaled, make, shape)


def _scaled(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    inner = make()
    return nn.Sequential(InputScaling(shape), *(inner if type(inner) is nn.Sequential else [inner]))


def measured_scaling(fed: Federation, method: Method[Any], task: Task) -> Params | None:
    """Return the initial model with mean and deviation of the clients' inputs; None for a task without federated scaling.

    One sum over all clients, formed like the sums of a round. Categories, and inputs that are nearly constant, stay as they are.

    Args:
        fed: the federation.
        method: the method of the run.
        task: its task.
    """
    schema = schema_of(task)
    if schema is None or schema.standardize != "federated":
        return None
    before = fed.round
    fed.start_round(before + 1)  # clients answer calls of a round alone
    total = fed.mean(method.moments, LIMIT, over=range(fed.num_clients))
    fed.start_round(before)
    mean, square = total.mean, total.square
    deviation = (square - mean**2).clamp(min=0).sqrt()
    keep = deviation < _LEAST
    if schema.content == "table":
        start = 0
        for column in schema.columns:
            keep[start : start + column.width] |= column.kind == "category"
            start += column.width
    params = fed.init_params()
    for name, value in (("0.mean", mean.masked_fill(keep, 0.0)), ("0.deviation", deviation.masked_fill(keep, 1.0))):
        if name not in params:
            raise ConfigError(f"method {method.slug()!r} changes the first layer of the model; use standardize=schema with it")
        params[name].copy_(value.view_as(params[name]))
    return params
