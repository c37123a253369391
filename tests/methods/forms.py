"""The small task in the form that a method needs: its samples as pictures, for those that change pictures or need a transformer."""

from dataclasses import replace
from functools import partial

from torch import nn

from paceline.core.arrays import Arrays
from paceline.models.transformer import vit


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


FORMS = {"madaug": pictured, "pfedpg": in_patches, "pfedpgsum": in_patches}


def fitted(name, task):
    """Return a task of 12 inputs in the form that a method needs."""
    return FORMS[name](task) if name in FORMS else task
