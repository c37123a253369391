"""Importance of single parameters from exploration of the loss surface: sums of squared displacements, scaled by tensor."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from paceline.core.params import Params

__all__ = ["SaliencyScale", "quantile_mask", "scaled_saliency"]

SaliencyScale = Literal["minmax", "robust"]


def scaled_saliency(displacement: Params, scale: SaliencyScale = "minmax", unit_mean: bool = False) -> Params:
    """Return the guidance of each parameter, scaled within its tensor; 1 for running statistics and where all are equal.

    Args:
        displacement: mean over clients of the squared displacement of each parameter, [d].
        scale: ``minmax``: (D - min) / (max - min); ``robust``: (D - median) / (third - first quartile), which may be negative.
        unit_mean: divide by the mean of the tensor.
    """
    found = displacement.zeros() + 1.0
    for entry in displacement.layout.entries:
        if entry.kind != "param":
            continue
        values = displacement[entry.name].double()
        low, high = (values.min(), values.max()) if scale == "minmax" else _quartiles(values)
        if high > low:
            middle = low if scale == "minmax" else _quantile(values, 0.5)
            guide = (values - middle) / (high - low)
            mean = guide.mean()
            found[entry.name].copy_(guide / mean if unit_mean and mean > 0 else guide)
    return found


def quantile_mask(guidance: Params, share: float) -> Params:
    """Return 1 for parameters above the quantile `share` of all parameters' guidance, else 0; 1 for running statistics.

    Args:
        guidance: [d].
        share: fraction of parameters to be masked, by linear interpolation between them.
    """
    count, mask = guidance.layout.num_params, guidance.zeros() + 1.0
    values = guidance.vector[:count]
    if share > 0:
        mask.vector[:count] = (values.double() > _quantile(values.double(), share)).to(mask.vector.dtype)
    return mask


def _quartiles(values: Tensor) -> tuple[Tensor, Tensor]:
    return _quantile(values, 0.25), _quantile(values, 0.75)


def _quantile(values: Tensor, share: float) -> Tensor:
    """Return the linearly interpolated quantile; `torch.quantile` refuses large tensors."""
    return torch.as_tensor(np.quantile(values.cpu().numpy(), share), dtype=values.dtype, device=values.device)
