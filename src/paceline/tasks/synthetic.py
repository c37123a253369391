"""A task without a data set: Gaussian blobs, for examples and tests."""

from __future__ import annotations

from functools import partial

import torch

from paceline.core.errors import ConfigError
from paceline.core.random import torch_rng
from paceline.core.task import Arrays, Task

__all__ = ["blobs"]


def blobs(samples: int = 240, features: int = 12, classes: int = 4, seed: int = 0) -> Task:
    """Return a classification task of Gaussian blobs: one centre per class, unit deviation around it.

    Classes are equally frequent; the test part has a third as many samples, at least one of each class.

    Args:
        samples: number of training samples.
        features: features of each sample.
        classes: number of classes.
        seed: seed of centres and samples.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> task = blobs(samples=12, features=2, classes=3)
        >>> task.train.x.shape, task.num_classes
        (torch.Size([12, 2]), 3)
    """
    from paceline.models import build

    if min(samples, features, classes) < 1 or samples < classes:
        given = f"samples={samples}, classes={classes}, features={features}"
        raise ConfigError(f"{given}; blobs requires samples >= classes >= 1 and features >= 1")
    rng = torch_rng(seed, "blobs", samples, features, classes)
    held = max(classes, samples // 3)
    centres = 1.5 * torch.randn(classes, features, generator=rng)
    y = torch.arange(samples + held) % classes
    x = centres[y] + torch.randn(samples + held, features, generator=rng)
    return Task(
        name="blobs",
        train=Arrays(x[:samples], y[:samples]),
        test=Arrays(x[samples:], y[samples:]),
        model=partial(build, "mlp", shape=(features,), num_classes=classes, hidden=(16, 8)),
        num_classes=classes,
        lr=0.1,
        batch_size=10,
        notes="Gaussian blobs",
        classes=tuple(str(i) for i in range(classes)),
    )
