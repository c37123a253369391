"""Norms that compute statistics of a batch: those of each stacked client's own batch, and its own running statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from paceline.engines.stacking.layers.mode import Handler, StackedLayers

__all__ = ["NORMS"]


def _batch_norm(
    layers: StackedLayers,
    func: Any,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if not training:
        mean, var = layers.running(running_mean), layers.running(running_var)
        return func(x, mean, var, weight, bias, training, momentum, eps)
    count = x.numel() // x.shape[1]
    if count < 2:
        return func(x, running_mean, running_var, weight, bias, training, momentum, eps)  # raises what it raises alone
    out, mean, inverse = torch.native_batch_norm(x, weight, bias, None, None, True, momentum, eps)
    if running_mean is not None and running_var is not None:
        variance = (inverse.detach().square().reciprocal() - eps) * (count / (count - 1))
        layers.move(running_mean, mean.detach(), momentum)
        layers.move(running_var, variance, momentum)
    return out


def _instance_norm(
    layers: StackedLayers,
    func: Any,
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if not use_input_stats:
        mean, var = layers.running(running_mean), layers.running(running_var)
        return func(x, mean, var, weight, bias, False, momentum, eps)
    out = func(x, None, None, weight, bias, True, momentum, eps)
    if running_mean is not None and running_var is not None:
        values = x.detach().flatten(2)
        layers.move(running_mean, values.mean(2).mean(0), momentum)
        layers.move(running_var, values.var(2).mean(0), momentum)
    return out


NORMS: dict[Any, Handler] = {F.batch_norm: _batch_norm, F.instance_norm: _instance_norm}
