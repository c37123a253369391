"""Scenes in which objects lie where they belong: emoji pasted on drawn backgrounds, to be detected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.core.random import numpy_rng
from paceline.core.task import Arrays, Task
from paceline.data.cache import load_arrays
from paceline.data.raw import Array
from paceline.data.sources import find_source
from paceline.metrics import DetectionMAP
from paceline.models.detector import CentreNet, centre_loss
from paceline.tasks.recipe import task_card

__all__ = ["SceneTask", "load_scenes"]

CLASSES = ("boat", "fish", "car", "truck", "cow", "dog")
PLACES = ("sea", "road", "grass")
VECTORS = (
    (0.9, 0.2, 0.1), (1.0, 0.0, 0.2), (0.1, 1.0, 0.1), (0.1, 0.9, 0.2), (0.0, 0.1, 1.0), (0.1, 0.3, 0.9),
    (1.0, 0.1, 0.1), (0.1, 1.0, 0.1), (0.1, 0.1, 1.0),
)  # fmt: skip
"""Word vectors of classes and places: water, traffic, pasture. A made table; there are no pretrained vectors of words here."""

_EMOJI = {
    "boat": ("transport water", "sailboat/speedboat/motor boat/ship/passenger ship/ferry"),
    "fish": ("animal marine", "fish/tropical fish/blowfish/dolphin/whale/spouting whale/shark"),
    "car": ("transport ground", "automobile/police car/racing car/taxi/oncoming automobile/oncoming police car/oncoming taxi"),
    "truck": ("transport ground", "delivery truck/articulated lorry/fire engine/ambulance/bus/minibus/trolleybus/pickup truck"),
    "cow": ("animal mammal", "cow/ox/water buffalo/sheep/goat/ram/bison"),
    "dog": ("animal mammal", "dog/poodle/pig/boar/horse/rabbit/cat/guide dog"),
}
"""Subcategory and names of the emoji of each class; two classes for each place, in the places' order."""

_COLOURS = ((40, 90, 170), (110, 110, 115), (70, 150, 60))
_SKY = (190, 215, 235)
_SIDE = 64
_MOST = 3


@dataclass(frozen=True)
class SceneTask(Task):
    """A task of detection with what pasting needs beside samples.

    Targets are a dict of ``boxes`` [N, G, 4], ``labels`` [N, G] and ``masks`` [N, G, H, W] of objects, and of backgrounds ``stuff`` [N, U],
    words by number, and ``stuff_boxes`` [N, U, 4]; a negative label is none.

    Args:
        words: names of classes, then of backgrounds.
        vectors: word vectors, shape [V, d]; zeros for a word without one.
        bank: objects that the server may give to all: ``pictures`` [M, C, h, w], ``masks`` [M, h, w] and ``labels`` [M]; may be empty.
    """

    words: Sequence[str] = ()
    vectors: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    bank: dict[str, Tensor] = field(default_factory=dict)


def _outside(picture: Array) -> Array:
    """Return which pixels of a picture on white are background: white, and connected with the border, bool [H, W]."""
    white = torch.from_numpy((picture >= 246).all(2))[None, None].float()
    reached = F.pad(torch.zeros(1, 1, *(side - 2 for side in picture.shape[:2])), (1, 1, 1, 1), value=1.0) * white
    for _ in range(picture.shape[0] * 2):
        reached = F.max_pool2d(reached, 3, 1, 1) * white
    return reached[0, 0].numpy() > 0


def _objects() -> list[list[tuple[Array, Array]]]:
    """Return (picture [3, h, w] in 0..1, mask [h, w]) of each emoji of each class, without margins."""
    arrays, found = load_arrays(find_source("emoji").cached()), []
    words = arrays["words"].tolist()
    for name in CLASSES:
        kind, listed = _EMOJI[name]
        rows = [row for row, text in enumerate(words) for one in listed.split("/") if text.startswith(f"{one} {kind}")]
        own = []
        for row in rows:
            picture = arrays["image"][row]
            mask = ~_outside(picture)
            down, across = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            box = slice(down[0], down[-1] + 1), slice(across[0], across[-1] + 1)
            own.append((picture[box].transpose(2, 0, 1) / np.float32(255), mask[box]))
        found.append(own)
    return found


def _resized(one: tuple[Array, Array], longest: int) -> tuple[Tensor, Tensor]:
    picture, mask = torch.from_numpy(np.ascontiguousarray(one[0])), torch.from_numpy(np.ascontiguousarray(one[1])).float()
    scale = longest / max(mask.shape)
    size = [max(2, round(side * scale)) for side in mask.shape]
    small = F.interpolate(picture[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    return small, F.interpolate(mask[None, None], size, mode="bilinear", antialias=True, align_corners=False)[0, 0] > 0.5


def _scenes(objects: list[list[tuple[Array, Array]]], count: int, share: float, which: str, seed: int) -> Arrays:
    """Return scenes: sky above a background, and up to two objects that belong there."""
    rng = numpy_rng(seed, "scenes", which)
    x = torch.zeros(count, 3, _SIDE, _SIDE)
    boxes, labels = torch.zeros(count, _MOST, 4), torch.full((count, _MOST), -1)
    masks, stuff = torch.zeros(count, _MOST, _SIDE, _SIDE, dtype=torch.bool), torch.zeros(count, 1, dtype=torch.long)
    areas = torch.zeros(count, 1, 4)
    for row in range(count):
        place, horizon = row % len(PLACES), int(rng.integers(8, 28))
        picture = np.empty((3, _SIDE, _SIDE), np.float32)
        picture[:, :horizon] = np.array(_SKY, np.float32)[:, None, None] / 255
        picture[:, horizon:] = np.array(_COLOURS[place], np.float32)[:, None, None] / 255
        picture *= rng.uniform(0.75, 1.15)
        picture += 0.06 * rng.standard_normal((1, _SIDE, _SIDE)).astype(np.float32)
        x[row] = torch.from_numpy(picture.clip(0, 1))
        stuff[row], areas[row, 0] = len(CLASSES) + place, torch.tensor([0, horizon, _SIDE, _SIDE])
        for slot in range(int((rng.random(2) < share).sum())):
            label = 2 * place + int(rng.integers(2))
            chosen, mask = _resized(objects[label][int(rng.integers(len(objects[label])))], int(rng.integers(14, 25)))
            height, width = mask.shape
            top, left = int(rng.integers(horizon, _SIDE - height + 1)), int(rng.integers(0, _SIDE - width + 1))
            pixels = torch.zeros(_SIDE, _SIDE, dtype=torch.bool)
            pixels[top : top + height, left : left + width] = mask
            x[row][:, pixels] = chosen[:, mask]
            masks[row] &= ~pixels
            boxes[row, slot], labels[row, slot] = torch.tensor([left, top, left + width, top + height]).float(), label
            masks[row, slot] = pixels
    y = {"boxes": boxes, "labels": labels, "masks": masks, "stuff": stuff, "stuff_boxes": areas}
    return Arrays(2 * x - 1, y, torch.arange(count) % len(PLACES), list(PLACES))


@task_card("detection of six kinds of emoji, such as boats and cows, on drawn sea, road and grass", "CentreNet", "emoji")
def load_scenes(seed: int = 0, samples: int = 160, tests: int = 300, share: float = 0.25, width: int = 16) -> SceneTask:
    """Return composed scenes of 64 x 64 pixels; their natural client is the kind of background.

    Of each class, every third emoji is in no training scene; the test scenes show these and no other. The public bank has the training
    emoji in three sizes.

    Args:
        seed: of the run, for the scenes.
        samples, tests: number of scenes; a third each has sea, road and grass.
        share: probability of each of two objects in a training scene; 0.7 in tests.
        width: channels of the detector's first stage.
    """
    objects = _objects()
    shown = [[one for number, one in enumerate(own) if number % 3 != 2] for own in objects]
    held = [own[2::3] for own in objects]
    bank = [(_resized(one, longest), label) for label, own in enumerate(shown) for one in own for longest in (15, 19, 24)]
    pictures, masks = torch.zeros(len(bank), 3, 24, 24), torch.zeros(len(bank), 24, 24, dtype=torch.bool)
    for number, ((picture, mask), _) in enumerate(bank):
        pictures[number][:, : mask.shape[0], : mask.shape[1]] = 2 * picture - 1
        masks[number][: mask.shape[0], : mask.shape[1]] = mask
    return SceneTask(
        name="emoji-scenes",
        train=_scenes(shown, samples, share, "train", seed),
        test=_scenes(held, tests, 0.7, "test", 0),
        model=partial(CentreNet, 3, len(CLASSES), width),
        loss=centre_loss,
        lr=0.05,
        batch_size=8,
        metrics=[DetectionMAP(len(CLASSES))],
        notes="composed scenes: emoji on drawn backgrounds",
        words=[*CLASSES, *PLACES],
        vectors=torch.tensor(VECTORS),
        bank={"pictures": pictures, "masks": masks, "labels": torch.tensor([label for _, label in bank])},
    )
