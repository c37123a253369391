"""A dense task in which class labels say nothing of what differs: the light of a picture, which falls from a random direction.

    picture = albedo x (0.25 + 0.75 x object) x shade,   shade = 0.5 + 0.5 (u cos t + v sin t),   u, v in -0.7..0.7

The target is the shade of each pixel. A sample's class is its owner, so that partitions by class and by embedding can be compared
(`paceline.data.embedding`).
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from paceline.core.arrays import Arrays
from paceline.core.errors import ConfigError
from paceline.core.losses import named_loss
from paceline.core.random import numpy_rng
from paceline.core.task import Task
from paceline.data.raw import Part
from paceline.data.sources import find_source
from paceline.tasks.datasets import DataRecipe
from paceline.tasks.images import channels_first
from paceline.tasks.recipe import find_recipe, task_card

__all__ = ["ShadeNet", "load_shading", "shaded"]


_EDGE = 0.7
"""Coordinates at the edges of a picture, so that the shade is from 0 to 1."""


class ShadeNet(nn.Module):
    """Convolutions to a code of 32 values, and two linear layers to a value for each pixel.

    Args:
        shape: of a picture, [C, H, W].
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        cells = -(-self.height // 4) * -(-self.width // 4)
        self.code, self.hidden, self.out = nn.Linear(32 * cells, 32), nn.Linear(32, 64), nn.Linear(64, self.height * self.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the shade of each pixel, shape [N, H, W]."""
        out: Tensor = self.out(torch.relu(self.hidden(torch.relu(self.code(self.encoder((x - 0.3) / 0.25))))))
        return out.reshape(-1, self.height, self.width)


def shaded(pictures: Tensor, angles: Tensor, albedo: Tensor) -> tuple[Tensor, Tensor]:
    """Return lit pictures, and the shade of each pixel, shape [N, H, W], from 0 to 1.

    Args:
        pictures: values from 0 to 1, shape [N, C, H, W].
        angles: direction of the light, shape [N].
        albedo: brightness, shape [N].
    """
    v, u = (torch.linspace(-_EDGE, _EDGE, side) for side in pictures.shape[2:])
    shade = 0.5 + 0.5 * (u[None, None] * angles.cos()[:, None, None] + v[None, :, None] * angles.sin()[:, None, None])
    lit = albedo[:, None, None, None] * (0.25 + 0.75 * pictures) * shade.unsqueeze(1)
    return lit, shade


@task_card("the shade of each pixel of pictures that are lit from a random direction; owner = class", "its own", "fashion-mnist")
def load_shading(seed: int = 0, of: str = "fashion-mnist", limit: int = 4000, tests: int = 1000) -> Task:
    """Return the task; directions and albedos are drawn once, whatever the seed.

    Args:
        seed: of the choice that `limit` makes.
        of: data set of pictures with classes.
        limit, tests: most training and test pictures.

    Raises:
        ConfigError: the data are not pictures with classes.
    """
    recipe = find_recipe(of)
    if not isinstance(recipe, DataRecipe) or recipe.defaults.content != "image" or min(limit, tests) < 1:
        raise ConfigError(f"of={of} must be a data set of pictures, such as fashion-mnist, and limit and tests at least 1")
    raw = find_source(recipe.source).load()
    assert raw.test is not None

    def part(whole: Part, most: int, which: str, choice: int) -> Arrays:
        rows = np.sort(numpy_rng(choice, "shading", "limit", which).permutation(len(whole))[:most])
        rng = numpy_rng(0, "shading", which)
        drawn = torch.from_numpy(rng.uniform([0, 0.6], [2 * np.pi, 1.0], (len(whole), 2)).astype(np.float32))[rows]
        lit, shade = shaded(channels_first(whole.x[rows], 255.0), drawn[:, 0], drawn[:, 1])
        return Arrays(lit, shade, torch.from_numpy(whole.y[rows].astype(np.int64)), raw.classes)

    train, test = part(raw.train, limit, "train", seed), part(raw.test, tests, "test", 0)
    shape = tuple(train.x.shape[1:])
    about = f"shade of pictures of {of}"
    return Task(
        about, train, test, partial(ShadeNet, shape), loss=named_loss("mse"), lr=2.0, batch_size=16, notes=about, metrics=("rmse",)
    )
