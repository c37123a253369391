"""A data set's pictures as features of a frozen backbone, computed once and cached: what remains to train is a small model."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.arrays import Arrays
from paceline.core.errors import ConfigError
from paceline.core.fingerprint import digest
from paceline.core.task import Task
from paceline.data.cache import cache_folder, load_arrays, save_arrays
from paceline.models import build
from paceline.models.split import features
from paceline.tasks.recipe import task_card

__all__ = ["frozen_features", "load_frozen"]

_BATCH = 100


def frozen_features(task: Task, backbone: nn.Module, side: int | None = None, model: str = "logistic", **options: Any) -> Task:
    """Return a task whose inputs are the features of its pictures, standardised; owners, targets and metrics stay.

    Features are cached on this machine by the content of samples and weights.

    Args:
        task: pictures, shape [N, C, H, W]; grey ones are repeated for a backbone of three channels.
        backbone: a module with a head (`paceline.models.split`), whose input are the features; it is not trained.
        side: pictures are enlarged or reduced to this many pixels before; None leaves them.
        model: name of the model that is trained on the features, with its options.

    Raises:
        ConfigError: the samples are not pictures, or the backbone has no head.
    """
    (x, _), (x_test, _) = (part.tensors("a frozen backbone") for part in (task.train, task.test))
    if x.dim() != 4:
        raise ConfigError(f"a frozen backbone requires pictures [N, C, H, W], not samples of shape {list(x.shape)}")
    path = cache_folder() / "features" / f"{digest(x, x_test, backbone, side, 'v1')[:24]}.npz"
    if not path.exists():
        found = [_features(backbone, part, side) for part in (x, x_test)]
        save_arrays(path, {"train": found[0].numpy(), "test": found[1].numpy()})
    stored = load_arrays(path)
    train, test = torch.from_numpy(stored["train"]), torch.from_numpy(stored["test"])
    deviation, mean = torch.std_mean(train, 0)
    deviation = deviation.clamp(min=1e-3)
    return dataclasses.replace(
        task,
        name=f"features of {task.name}",
        train=_with(task.train, (train - mean) / deviation),
        test=_with(task.test, (test - mean) / deviation),
        model=partial(build, model, shape=(train.shape[1],), num_classes=task.num_classes, **options),
        lr=0.01,
        info={"model": model, "backbone": type(backbone).__name__},
    )


def _with(part: Arrays, x: Tensor) -> Arrays:
    return Arrays(x, part.y, part.owner, part.owners)


@torch.no_grad()
def _features(backbone: nn.Module, x: Tensor, side: int | None) -> Tensor:
    backbone.eval()
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    rows = []
    for batch in torch.split(x, _BATCH):
        if isinstance(first, nn.Conv2d) and first.in_channels == 3 and batch.shape[1] == 1:
            batch = batch.expand(-1, 3, -1, -1)
        if side is not None:
            batch = F.interpolate(batch, size=(side, side), mode="bilinear", antialias=True)
        rows.append(features(backbone, batch))
    return torch.cat(rows)


@task_card("features of a frozen MobileNetV2 (ImageNet) of a data set's pictures", "logistic", "mobilenet-v2")
def load_frozen(
    model: str | None = None,
    seed: int = 0,
    of: str = "emoji-vendors",
    side: int = 96,
    **options: Any,
) -> Task:
    """Return `frozen_features` of a named task's pictures, by MobileNetV2 with the weights of ImageNet.

    Args:
        model: trained on the features; ``logistic`` by default.
        seed: of the run.
        of: task whose pictures are read.
        side: pixels to which they are enlarged.
        options: of that task.
    """
    from paceline.tasks.load import load_task

    if not 32 <= side <= 512:
        raise ConfigError(f"side={side} must be from 32 to 512 pixels")
    backbone = build("mobilenet_v2", shape=(3, side, side), num_classes=1000, stem="imagenet", pretrained=True)
    return frozen_features(load_task(of, seed=seed, **options), backbone, side, model or "logistic")
