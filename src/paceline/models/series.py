"""Models of series [N, C, T]: a one-dimensional convolutional network and a GRU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.models.card import model_card

__all__ = ["GRUNet", "cnn1d", "gru"]


def _channels(shape: Sequence[int], least: int, name: str) -> int:
    if len(shape) != 2 or shape[1] < least:
        raise ConfigError(f"model {name} requires series [C, T] of at least {least} steps, not {tuple(shape)}")
    return shape[0]


@model_card("series")
def cnn1d(
    shape: Sequence[int] = (6, 100),
    num_classes: int = 7,
    width: int = 32,
    kernel: int = 5,
    norm: Literal["none", "group", "batch"] = "group",
    groups: int = 4,
) -> nn.Module:
    """Return three convolutions over time with pooling, a mean over time and a linear head: 32,615 parameters for 6 channels.

    Args:
        shape: channels and steps of one series, at least 8 steps.
        num_classes: number of outputs.
        width: filters of the first layer; the others have twice as many.
        kernel: steps that a filter covers; odd.
        norm: ``none``, ``group`` (GroupNorm) or ``batch`` (BatchNorm).
        groups: number of groups of GroupNorm; it must divide `width`.

    Raises:
        ConfigError: an invalid option, or the series are too short.
    """
    given = _channels(shape, 8, "cnn1d")
    if norm not in ("none", "group", "batch") or kernel % 2 == 0 or min(width, kernel) < 1:
        raise ConfigError(f"norm={norm!r} of cnn1d must be none, group or batch, width={width} at least 1 and kernel={kernel} odd")
    if norm == "group" and (groups < 1 or width % groups):
        raise ConfigError(f"groups={groups} of cnn1d must divide {width}, the width of the first layer")
    layers: list[nn.Module] = []
    for a, b in pairwise((given, width, 2 * width, 2 * width)):
        layers.append(nn.Conv1d(a, b, kernel, padding=kernel // 2))
        if norm != "none":
            layers.append(nn.GroupNorm(groups, b) if norm == "group" else nn.BatchNorm1d(b))
        layers += [nn.ReLU(), nn.MaxPool1d(2)]
    layers[-1] = nn.AdaptiveAvgPool1d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width, num_classes))


class GRUNet(nn.Module):
    """Maps series [N, C, T] to scores [N, outputs] by the last state of a GRU.

    Args:
        channels: channels of a series.
        outputs: number of outputs.
        hidden: cells of each layer.
        layers: number of GRU layers.
    """

    head_name = "out"

    def __init__(self, channels: int, outputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, hidden, num_layers=layers, batch_first=True)
        self.out = nn.Linear(hidden, outputs)

    def features(self, x: Tensor) -> Tensor:
        """Return the last state of the upper layer, [N, hidden]: the input of the head."""
        states, _ = self.gru(x.transpose(1, 2))
        last: Tensor = states[:, -1]
        return last

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape [N, outputs]."""
        out: Tensor = self.out(self.features(x))
        return out


@model_card("series")
def gru(shape: Sequence[int] = (6, 100), num_classes: int = 7, hidden: int = 64, layers: int = 1) -> nn.Module:
    """Return a GRU with a linear head on its last state: 14,279 parameters for 6 channels and 7 outputs.

    Args:
        shape: channels and steps of one series.
        num_classes: number of outputs.
        hidden, layers: of the GRU.

    Raises:
        ConfigError: the samples are no series.
    """
    return GRUNet(_channels(shape, 1, "gru"), num_classes, hidden, layers)
