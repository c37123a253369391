"""A small U-Net (Ronneberger et al., 2015): scores for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.models.card import model_card
from paceline.models.resnet import Norm, norm_layer

__all__ = ["UNet", "unet"]


def _double(given: int, channels: int, norm: str, groups: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in ((given, channels), (channels, channels)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), norm_layer(norm, b, groups, "unet"), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Encoder that halves the sides `depth` times, and a decoder that doubles them and reads the encoder's stage of its size.

    Args:
        channels: channels of a picture.
        num_classes: number of scores of each pixel.
        width: channels of the first stage; each further stage doubles them.
        depth: number of halvings.
        norm, groups: see `norm_layer`.
        skip: whether the encoder's stage is concatenated (``cat``, as published) or added (``add``).
    """

    head_name = "head"

    def __init__(self, channels: int, num_classes: int, width: int, depth: int, norm: str, groups: int, skip: str) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in range(depth + 1)]
        ways = 2 if skip == "cat" else 1
        self.skip = skip
        self.down = nn.ModuleList(_double(a, b, norm, groups) for a, b in zip([channels, *widths], widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.grow = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2 * wide, wide, 3, padding=1)) for wide in widths[-2::-1]
        )
        self.up = nn.ModuleList(_double(ways * wide, wide, norm, groups) for wide in widths[-2::-1])
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape [N, classes, H, W]."""
        stages = []
        for number, stage in enumerate(self.down):
            x = stage(x if number == 0 else self.pool(x))
            stages.append(x)
        for number, (grow, stage) in enumerate(zip(self.grow, self.up, strict=True)):
            x, left = grow(x), stages[-2 - number]
            x = stage(torch.cat([left, x], 1) if self.skip == "cat" else left + x)
        out: Tensor = self.head(x)
        return out


@model_card("picture", "pixel")
def unet(
    shape: Sequence[int] = (1, 64, 64),
    num_classes: int = 4,
    width: int = 8,
    depth: int = 3,
    norm: Norm = "group",
    groups: int = 4,
    skip: Literal["cat", "add"] = "cat",
) -> nn.Module:
    """Return a small U-Net for segmentation: 134,500 parameters for grey pictures and 4 classes.

    Args:
        shape: shape of one picture; the sides are multiples of 2^depth.
        num_classes: number of classes of a pixel.
        width: channels of the first stage; each further stage doubles them.
        depth: how often the sides are halved.
        norm: ``group`` (GroupNorm) or ``batch`` (BatchNorm).
        groups: number of groups of GroupNorm; it must divide `width`.
        skip: ``cat`` as published, or ``add``, which lets sub-models cut all layers.

    Raises:
        ConfigError: an invalid option, or pictures of other sides.
    """
    if skip not in ("cat", "add") or min(width, depth) < 1:
        raise ConfigError(f"skip={skip!r} of unet must be cat or add, and width={width} and depth={depth} at least 1")
    if len(shape) != 3 or any(side % 2**depth for side in shape[1:]):
        raise ConfigError(
            f"model unet with depth={depth} requires pictures [C, H, W] whose sides are multiples of {2**depth}, not {tuple(shape)}; "
            "choose another size= or depth="
        )
    return UNet(shape[0], num_classes, width, depth, norm, groups, skip)
