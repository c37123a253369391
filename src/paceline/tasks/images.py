"""Pictures as tensors, and their scaling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paceline.data.raw import Part
from paceline.data.schema import PictureForm, Schema

__all__ = ["channels_first", "measured", "scaled"]


def scaled(schema: Schema, train: Part) -> Schema:
    """Return a schema with the scaling of pictures, measured on the samples `train` where it is not known."""
    if schema.picture is None or schema.picture.mean:
        return schema
    return schema.model_copy(update={"picture": measured(schema.picture, channels_first(train.x, schema.picture.top))})


def measured(picture: PictureForm, x: Tensor) -> PictureForm:
    """Return the form of pictures with mean and deviation of each channel, measured on `x` where they are not known.

    Args:
        picture: the form.
        x: pictures, shape [N, C, H, W].
    """
    if picture.mean:
        return picture
    deviation, mean = torch.std_mean(x.double(), dim=(0, 2, 3), correction=0)
    found = {"mean": mean.float(), "deviation": deviation.float().clamp(min=1e-6)}
    return picture.model_copy(update={name: tuple(value.tolist()) for name, value in found.items()})


def channels_first(images: Any, top: float) -> Tensor:
    """Return pictures as float32 [N, C, H, W], divided by the value of full brightness.

    Args:
        images: array of shape [N, H, W] or [N, H, W, C].
        top: value of full brightness.
    """
    x = torch.from_numpy(images)
    x = x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2)
    return x.float().div_(top).contiguous()
