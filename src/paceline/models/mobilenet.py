"""MobileNetV2 (Sandler et al., 2018), with weights pretrained on ImageNet if they have been fetched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.models.card import model_card
from paceline.models.resnet import Norm, norm_layer

__all__ = ["InvertedResidual", "MobileNetV2", "mobilenet_v2"]

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each stage."""

_LAST = 1280


def _unit(given: int, channels: int, kernel: int, stride: int, blocks: int, norm: str) -> nn.Sequential:
    conv = nn.Conv2d(given, channels, kernel, stride, kernel // 2, groups=blocks, bias=False)
    return nn.Sequential(conv, norm_layer(norm, channels, 8, "mobilenet_v2"), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection, with a residual connection where the shape is kept."""

    def __init__(self, given: int, channels: int, stride: int, expand: int, norm: str) -> None:
        super().__init__()
        inner = given * expand
        layers: list[nn.Module] = [_unit(given, inner, 1, 1, 1, norm)] if expand > 1 else []
        layers += [
            _unit(inner, inner, 3, stride, inner, norm),
            nn.Conv2d(inner, channels, 1, bias=False),
            norm_layer(norm, channels, 8, "mobilenet_v2"),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and given == channels

    def forward(self, x: Tensor) -> Tensor:
        """Return shape [N, channels, H / stride, W / stride]."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Stem, 17 inverted residuals, a 1x1 convolution, global mean, and a linear head.

    Args:
        channels: channels of a picture.
        num_classes: number of outputs.
        norm: see `norm_layer`.
        stride: of the stem.
    """

    head_name = "head"

    def __init__(self, channels: int, num_classes: int, norm: str, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_unit(channels, 32, 3, stride, 1, norm)]
        given = 32
        for expand, wide, count, first in _STAGES:
            for number in range(count):
                layers.append(InvertedResidual(given, wide, first if number == 0 else 1, expand, norm))
                given = wide
        self.body = nn.Sequential(*layers, _unit(given, _LAST, 1, 1, 1, norm))
        self.head = nn.Linear(_LAST, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    def features(self, x: Tensor) -> Tensor:
        """Return the input of the head, shape [N, 1280]."""
        out: Tensor = self.body(x).mean((2, 3))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape [N, classes]."""
        out: Tensor = self.head(self.features(x))
        return out


@model_card("picture", weights="mobilenet-v2")
def mobilenet_v2(
    shape: Sequence[int] = (3, 32, 32),
    num_classes: int = 10,
    norm: Norm = "batch",
    stem: Literal["cifar", "imagenet"] = "cifar",
    pretrained: bool = False,
) -> nn.Module:
    """Return MobileNetV2: 3,504,872 parameters with 1,000 classes, 2,236,682 with 10.

    Args:
        shape: shape of one picture, at least 16 x 16.
        num_classes: number of outputs.
        norm: ``batch`` (BatchNorm, as published) or ``group`` (GroupNorm of 8 groups).
        stem: stride of the first convolution: 1 for ``cifar``, 2 for ``imagenet``, as published.
        pretrained: begin with the weights of ImageNet, which ``paceline data fetch mobilenet-v2`` brings; the head is new unless
            there are 1,000 classes.

    Raises:
        ConfigError: an invalid option, or pictures that are too small or do not fit the weights.
        MissingDataError: the weights have not been fetched; names the command.
    """
    if len(shape) != 3 or min(shape[1:]) < 16:
        raise ConfigError(f"model mobilenet_v2 requires pictures [C, H, W] of at least 16 x 16, not {tuple(shape)}")
    if stem not in ("cifar", "imagenet"):
        raise ConfigError(f"stem={stem!r} of mobilenet_v2 must be cifar or imagenet")
    made = MobileNetV2(shape[0], num_classes, norm, 1 if stem == "cifar" else 2)
    if pretrained:
        if norm != "batch" or shape[0] != 3:
            raise ConfigError("pretrained=True of mobilenet_v2 requires norm=batch and pictures of three channels")
        _load(made, num_classes)
    return made


def _load(module: nn.Module, num_classes: int) -> None:
    """Copy the fetched weights into a module; the head stays as it is unless it has their number of classes."""
    from safetensors.torch import load_file

    from paceline.data.sources import find_source

    weights = load_file(find_source("mobilenet-v2").cached() / "model.safetensors", device="cpu")
    if num_classes != len(weights["head.bias"]):
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
    if not any(p.is_meta for p in module.parameters()):
        module.load_state_dict({name: value for name, value in module.state_dict().items() if name.startswith("head.")} | weights)
