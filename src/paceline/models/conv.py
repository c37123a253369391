"""Convolutional models. Each is a plain chain of modules, which `torch.fx` can trace and sub-models can be cut from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from paceline.core.errors import ConfigError
from paceline.models.card import model_card

__all__ = ["cnn", "convnet", "femnist_cnn", "tiny_cnn", "vgg9"]

Norm = Literal["none", "group", "batch"]


def _picture(shape: Sequence[int], least: int, name: str) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ConfigError(f"model {name} requires pictures [C, H, W] of at least {least} x {least}, not {tuple(shape)}")
    return shape[0], shape[1], shape[2]


def _two_layer(
    name: str, shape: Sequence[int], num_classes: int, channels: tuple[int, int], hidden: int, norm: str = "none"
) -> nn.Module:
    """Return conv 5x5, pool, conv 5x5, pool, dense, dense; the convolutions preserve the size."""
    given, height, width = _picture(shape, 4, name)
    first, second = channels
    if norm not in ("none", "batch"):
        raise ConfigError(f"norm={norm!r} of {name} must be none or batch")
    plain = norm == "none"
    return nn.Sequential(
        nn.Conv2d(given, first, 5, padding=2),
        *(() if plain else (nn.BatchNorm2d(first),)),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5, padding=2),
        *(() if plain else (nn.BatchNorm2d(second),)),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (height // 4) * (width // 4), hidden),
        *(() if plain else (nn.BatchNorm1d(hidden),)),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


@model_card("picture")
def tiny_cnn(shape: Sequence[int] = (1, 28, 28), num_classes: int = 10, norm: Literal["none", "batch"] = "none") -> nn.Module:
    """Return a small network (8 and 16 filters, 64 hidden): 54,314 parameters on 28 x 28, fast on a CPU.

    Args:
        shape: shape of one image, at least 4 x 4.
        num_classes: number of outputs.
        norm: ``batch`` adds BatchNorm after each layer but the last.

    Raises:
        ConfigError: an invalid option, or the images are too small.
    """
    return _two_layer("tiny_cnn", shape, num_classes, (8, 16), 64, norm)


@model_card("picture")
def cnn(shape: Sequence[int] = (1, 28, 28), num_classes: int = 10) -> nn.Module:
    """Return the network of the FedAvg paper (32 and 64 filters, 512 hidden): 1,663,370 parameters on MNIST."""
    return _two_layer("cnn", shape, num_classes, (32, 64), 512)


@model_card("picture")
def femnist_cnn(shape: Sequence[int] = (1, 28, 28), num_classes: int = 62) -> nn.Module:
    """Return FLuID's FEMNIST network (16 and 64 filters, 120 hidden): 410,022 parameters with 62 classes."""
    return _two_layer("femnist_cnn", shape, num_classes, (16, 64), 120)


@model_card("picture")
def vgg9(shape: Sequence[int] = (3, 32, 32), num_classes: int = 10, norm: Norm = "none", groups: int = 8) -> nn.Module:
    """Return FLuID's VGG-9: six 3x3 convolutions (32-32-64-64-128-128), a pool after every second, dense 512-256.

    1,469,994 parameters for 3 x 32 x 32 and 10 classes without normalisation.

    Args:
        shape: shape of one image, at least 8 x 8.
        num_classes: number of outputs.
        norm: ``none`` (as published), ``group`` (GroupNorm; no running statistics, therefore suited to secure runs) or
            ``batch`` (BatchNorm), after each convolution.
        groups: number of groups of GroupNorm.

    Raises:
        ConfigError: an invalid option, or the images are too small.
    """
    given, height, width = _picture(shape, 8, "vgg9")
    if norm not in ("none", "group", "batch"):
        raise ConfigError(f"norm={norm!r} of vgg9 must be none, group or batch")
    if norm == "group" and (groups < 1 or 32 % groups):
        raise ConfigError(f"groups={groups} of vgg9 must divide 32, the width of the first layer")
    layers: list[nn.Module] = []
    for number, (a, b) in enumerate(pairwise((given, 32, 32, 64, 64, 128, 128))):
        layers.append(nn.Conv2d(a, b, 3, padding=1))
        if norm == "group":
            layers.append(nn.GroupNorm(groups, b))
        elif norm == "batch":
            layers.append(nn.BatchNorm2d(b))
        layers.append(nn.ReLU())
        if number % 2:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(128 * (height // 8) * (width // 8), 512), nn.ReLU()]
    layers += [nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, num_classes)]
    for layer in layers:  # with torch's default the signal vanishes over nine layers, which delays training
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


@model_card("picture")
def convnet(shape: Sequence[int] = (3, 28, 28), num_classes: int = 10, width: int = 128, depth: int = 3) -> nn.Module:
    """Return the network of dataset distillation: 3 x 3 convolution, instance norm, ReLU and average pool for each of `depth` blocks.

    Its gradients are smooth in the inputs, and its features have equal scales in all channels.

    Args:
        shape: shape of one image, at least 2^depth in height and width.
        num_classes: number of outputs.
        width: channels of each block.
        depth: number of blocks.

    Raises:
        ConfigError: an invalid option, or the images are too small.
    """
    if width < 1 or depth < 1:
        raise ConfigError(f"width={width}, depth={depth} of convnet must be at least 1")
    given, height, breadth = _picture(shape, 2**depth, "convnet")
    layers: list[nn.Module] = []
    for block in range(depth):
        conv = nn.Conv2d(width if block else given, width, 3, padding=1)
        layers += [conv, nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
    side = 2**depth
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (height // side) * (breadth // side), num_classes))
