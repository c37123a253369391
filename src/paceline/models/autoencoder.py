"""A convolutional autoencoder whose output is the anomaly score of a picture: the mean squared error of its reconstruction."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.errors import ConfigError

__all__ = ["Autoencoder"]


class Autoencoder(nn.Module):
    """Encoder of strided convolutions, global average pool and a linear layer; decoder of transposed convolutions and a sigmoid.

    Pictures are padded below and to the right to a multiple of 2^stages, and the reconstruction is cut to their size.

    Args:
        shape: of a picture, [C, H, W], with values from 0 to 1.
        widths: channels of each stage, which halves the sides.
        latent: width of the code.

    Raises:
        ConfigError: there is no stage, or a width below 1.
    """

    def __init__(self, shape: Sequence[int], widths: Sequence[int] = (16, 32, 64), latent: int = 16) -> None:
        super().__init__()
        if not widths or min(*widths, latent) < 1 or len(shape) != 3:
            raise ConfigError(f"an autoencoder with widths={tuple(widths)}, latent={latent} does not fit samples of {tuple(shape)}")
        self.unit, last = 2 ** len(widths), widths[-1]
        self.cells = tuple(-(-side // self.unit) for side in shape[1:])
        down: list[nn.Module] = []
        for before, after in zip([shape[0], *widths], widths, strict=False):
            down += [nn.Conv2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        self.encoder = nn.Sequential(*down, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, latent))
        self.code, up = nn.Linear(latent, last * self.cells[0] * self.cells[1]), list[nn.Module]()
        back = list(widths)[::-1]
        for before, after in itertools.pairwise(back):
            up += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.decoder = nn.Sequential(*up, nn.ConvTranspose2d(back[-1], shape[0], 4, 2, 1), nn.Sigmoid())

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the reconstruction of pictures [N, C, H, W], of the same shape."""
        height, width = x.shape[2:]
        padded = F.pad(x, (0, self.cells[1] * self.unit - width, 0, self.cells[0] * self.unit - height))
        code: Tensor = self.encoder(padded)
        out: Tensor = self.decoder(self.code(code).unflatten(1, (-1, *self.cells)))
        return out[:, :, :height, :width]

    def forward(self, x: Tensor) -> Tensor:
        """Return the score of each picture, shape [N]."""
        return (self.reconstruct(x) - x).square().flatten(1).mean(1)
