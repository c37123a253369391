"""Small generators, conditioned on labels: of features, of pictures, and of a client's own version of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FeatureGenerator", "FeatureTransform", "PictureGenerator", "balanced_labels"]


def balanced_labels(count: int, classes: int, shift: int = 0) -> Tensor:
    """Return labels that repeat 0, ..., C - 1 from the class `shift` mod C, shape [count] (int64).

    Example:
        >>> balanced_labels(4, 10, shift=12).tolist()
        [2, 3, 4, 5]
    """
    return (torch.arange(count) + shift) % classes


class FeatureGenerator(nn.Module):
    """Generate features from noise and labels; the output is not negative, as features after ReLU are.

    Args:
        classes: number of classes C.
        noise: length of the noise l.
        width: length of the features d, and of the hidden layer.
    """

    def __init__(self, classes: int, noise: int, width: int) -> None:
        super().__init__()
        self.classes, self.noise = classes, noise
        self.body = nn.Sequential(
            nn.Linear(noise + classes, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return features, shape [B, d], of noise [B, l] and labels [B]."""
        out: Tensor = self.body(torch.cat([z, F.one_hot(y, self.classes).to(z)], 1))
        return out


class FeatureTransform(nn.Module):
    """Change reference features by a residual that depends on generated features and labels.

    Args:
        classes: number of classes C.
        hidden: width of the hidden layer.
        width: length of the features d.
    """

    def __init__(self, classes: int, hidden: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.body = nn.Sequential(
            nn.Linear(width + classes, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width), nn.BatchNorm1d(width)
        )

    def forward(self, v: Tensor, reference: Tensor, y: Tensor) -> Tensor:
        """Return features, shape [B, d], of generated and reference features [B, d] and labels [B]."""
        out: Tensor = reference + self.body(torch.cat([v, F.one_hot(y, self.classes).to(v)], 1))
        return out


class PictureGenerator(nn.Module):
    """Generate pictures from noise and labels: a linear layer, and two convolutions after enlargement by two.

    Args:
        classes: number of classes C.
        noise: length of the noise l.
        shape: shape of a picture (channels, height, width).
        width: channels of the hidden layers.
    """

    def __init__(self, classes: int, noise: int, shape: Sequence[int], width: int = 32) -> None:
        super().__init__()
        channels, height, breadth = shape
        self.classes, self.noise, self.size = classes, noise, (height, breadth)
        self.small = (width, -(-height // 4), -(-breadth // 4))
        self.first = nn.Linear(noise + classes, width * self.small[1] * self.small[2])
        self.norms = nn.ModuleList(nn.GroupNorm(4 if width % 4 == 0 else 1, width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, to, 3, padding=1) for to in (width, channels))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return pictures, shape [B, channels, height, width], of noise [B, l] and labels [B]."""
        h = self.first(torch.cat([z, F.one_hot(y, self.classes).to(z)], 1)).view(-1, *self.small)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.interpolate(F.relu(norm(h)), scale_factor=2.0))
        out: Tensor = h[:, :, : self.size[0], : self.size[1]]
        return out
