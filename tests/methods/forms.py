"""The small task in the form that a method needs: its samples as pictures, for those that change pictures or need a transformer."""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from paceline.core.arrays import Arrays
from paceline.metrics import DetectionMAP
from paceline.models.detector import CentreNet, centre_loss
from paceline.models.transformer import vit
from paceline.tasks.scenes import SceneTask


def pictured(task):
    """Return a task whose 12 inputs are pictures of 3 x 4 pixels, which its model flattens."""
    make = task.model

    def build():
        return nn.Sequential(nn.Flatten(), *make())

    parts = {which: getattr(task, which) for which in ("train", "test")}
    return replace(task, model=build, **{which: Arrays(part.x.view(-1, 1, 3, 4), part.y) for which, part in parts.items()})


def in_patches(task):
    """Return a task of the same pictures for a small vision transformer."""
    return replace(pictured(task), model=partial(vit, (1, 3, 4), 4, dim=8, depth=1, heads=2, patch=1, mlp=2))


def scenes(task):
    """Return scenes of 8 x 8 pixels with one object of the sample's class in a corner of its own, on one of two backgrounds."""

    def part(given):
        count = len(given)
        x = 0.1 * given.x[:, :3, None, None].expand(count, 3, 8, 8).clone()
        masks, boxes = torch.zeros(count, 2, 8, 8, dtype=torch.bool), torch.zeros(count, 2, 4)
        labels = torch.stack([given.y, torch.full_like(given.y, -1)], 1)
        for row, label in enumerate(given.y.tolist()):
            top, left = 4 * (label // 2), 4 * (label % 2)
            masks[row, 0, top : top + 4, left : left + 4] = True
            boxes[row, 0] = torch.tensor([left, top, left + 4, top + 4])
            x[row, label % 3, top : top + 4, left : left + 4] += 1.0
        stuff, whole = 4 + torch.arange(count)[:, None] % 2, torch.tensor([0.0, 2.0, 8.0, 8.0]).expand(count, 1, 4).clone()
        y = {"boxes": boxes, "labels": labels, "masks": masks, "stuff": stuff, "stuff_boxes": whole}
        return Arrays(x, y, given.y, ["a", "b", "c", "d"])

    return SceneTask(
        task.name,
        part(task.train),
        part(task.test),
        partial(CentreNet, 3, 4, 4),
        loss=centre_loss,
        lr=0.05,
        batch_size=10,
        metrics=[DetectionMAP(4)],
        words=["a", "b", "c", "d", "here", "there"],
        vectors=torch.tensor([[1.0, 0.1], [0.9, 0.3], [0.1, 1.0], [0.3, 0.8], [1.0, 0.0], [0.0, 1.0]]),
    )


FORMS = {"madaug": pictured, "pfedpg": in_patches, "pfedpgsum": in_patches, "semaug": scenes}


def fitted(name, task):
    """Return a task of 12 inputs in the form that a method needs."""
    return FORMS[name](task) if name in FORMS else task
