"""ResNet-18 (He et al., 2016) with the parameter names of torchvision, and GroupNorm by default."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.models.card import model_card

__all__ = ["BasicBlock", "ResNet", "norm_layer", "resnet18"]

Norm = Literal["group", "batch"]


def norm_layer(norm: str, channels: int, groups: int, name: str) -> nn.Module:
    """Return GroupNorm or BatchNorm for a number of channels.

    Args:
        norm: ``group`` (no running statistics, therefore suited to secure runs) or ``batch``.
        channels: number of channels.
        groups: number of groups of GroupNorm; it must divide `channels`.
        name: of the model, for messages.

    Raises:
        ConfigError: unknown `norm`, or `groups` does not divide `channels`.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm != "group":
        raise ConfigError(f"norm={norm!r} of {name} must be group or batch")
    if groups < 1 or channels % groups:
        raise ConfigError(f"groups={groups} of {name} must divide {channels}, the width of a layer")
    return nn.GroupNorm(groups, channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection, which is a 1x1 convolution where the shape changes."""

    def __init__(self, given: int, channels: int, stride: int, norm: str, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, channels, 3, stride, padding=1, bias=False)
        self.bn1 = norm_layer(norm, channels, groups, "resnet18")
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm_layer(norm, channels, groups, "resnet18")
        self.downsample: nn.Module | None = None
        if stride > 1 or given != channels:
            across = nn.Conv2d(given, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(across, norm_layer(norm, channels, groups, "resnet18"))

    def forward(self, x: Tensor) -> Tensor:
        """Return shape [N, channels, H / stride, W / stride]."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stem, four stages of two blocks, global mean, and a linear head.

    Args:
        channels: channels of a picture.
        num_classes: number of outputs.
        width: channels of the first stage; each further stage doubles them.
        norm, groups: see `norm_layer`.
        stem: ``cifar`` (3x3, stride 1) or ``imagenet`` (7x7, stride 2, pooling).
    """

    head_name = "fc"

    def __init__(self, channels: int, num_classes: int, width: int, norm: str, groups: int, stem: str) -> None:
        super().__init__()
        small = stem == "cifar"
        self.conv1 = nn.Conv2d(channels, width, 3 if small else 7, 1 if small else 2, padding=1 if small else 3, bias=False)
        self.bn1 = norm_layer(norm, width, groups, "resnet18")
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for stage, (given, wide) in enumerate(pairwise(widths), 1):
            first = BasicBlock(given, wide, 1 if stage == 1 else 2, norm, groups)
            self.add_module(f"layer{stage}", nn.Sequential(first, BasicBlock(wide, wide, 1, norm, groups)))
        self.fc = nn.Linear(8 * width, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """Return the input of the head, shape [N, 8 width]."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, stage)(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape [N, classes]."""
        out: Tensor = self.fc(self.features(x))
        return out


@model_card("picture")
def resnet18(
    shape: Sequence[int] = (3, 32, 32),
    num_classes: int = 10,
    width: int = 64,
    norm: Norm = "group",
    groups: int = 32,
    stem: Literal["cifar", "imagenet"] = "cifar",
) -> nn.Module:
    """Return ResNet-18: 11,173,962 parameters on CIFAR-10, 11,689,512 with the ImageNet stem and 1,000 classes.

    Args:
        shape: shape of one picture, at least 8 x 8.
        num_classes: number of outputs.
        width: channels of the first stage.
        norm: ``group`` (GroupNorm) or ``batch`` (BatchNorm, as published).
        groups: number of groups of GroupNorm; it must divide `width`.
        stem: ``cifar`` for small pictures, or ``imagenet``, which divides the sides by 4 first.

    Raises:
        ConfigError: an invalid option, or the pictures are too small.
    """
    if len(shape) != 3 or min(shape[1:]) < 8:
        raise ConfigError(f"model resnet18 requires pictures [C, H, W] of at least 8 x 8, not {tuple(shape)}")
    if stem not in ("cifar", "imagenet") or width < 1:
        raise ConfigError(f"stem={stem!r} of resnet18 must be cifar or imagenet, and width={width} at least 1")
    return ResNet(shape[0], num_classes, width, norm, groups, stem)
