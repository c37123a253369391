"""Models for vectors and small images: a linear classifier and a multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from paceline.core.errors import ConfigError
from paceline.models.card import model_card

__all__ = ["logistic", "mlp"]


@model_card("any", shape=(1, 28, 28))
def logistic(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return multinomial logistic regression on the flattened input; its loss is convex.

    Args:
        shape: of one input, such as (1, 28, 28).
        num_classes: number of outputs.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_classes))


@model_card("any", shape=(1, 28, 28))
def mlp(
    shape: Sequence[int],
    num_classes: int,
    hidden: Sequence[int] | int = (128, 64),
    end: Literal["relu", "batch", "none"] = "relu",
    bias: bool = True,
) -> nn.Module:
    """Return a perceptron with ReLU between its layers.

    Args:
        shape: shape of one input.
        num_classes: number of outputs.
        hidden: widths of the hidden layers, or the width of a single one.
        end: layer after the last hidden layer, which produces the features: ``relu``, ``batch`` (BatchNorm) or ``none``.
        bias: whether the linear layers have biases.

    Raises:
        ConfigError: unknown `end`.
    """
    if end not in ("relu", "batch", "none"):
        raise ConfigError(f"end={end!r} of mlp must be relu, batch or none")
    layers: list[nn.Module] = [nn.Flatten()]
    widths = [math.prod(shape), *((hidden,) if isinstance(hidden, int) else hidden)]
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    if end != "relu":
        layers[-1:] = [nn.BatchNorm1d(widths[-1])] if end == "batch" else []
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes, bias=bias))
