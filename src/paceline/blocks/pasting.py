"""Paste objects where they fit: which object and which place, by the similarity of words, and the annotations afterwards.

Words are numbers: the classes of objects first, then those of backgrounds. Boxes are (x1, y1, x2, y2) in pixels, half-open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Crop", "Pasted", "fitting_objects", "fitting_place", "object_crops", "paste", "repaired", "similarity"]


class Crop(NamedTuple):
    """An object that was cut out: its picture [C, h, w] and its mask [h, w] (bool)."""

    picture: Tensor
    mask: Tensor


class Pasted(NamedTuple):
    """A picture [C, H, W] with an object pasted: which pixels are the object's, [H, W] (bool), and its box [4]."""

    picture: Tensor
    pixels: Tensor
    box: Tensor


def similarity(vectors: Tensor) -> Tensor:
    """Return the cosine of each pair of word vectors [V, d], shape [V, V]; 0 for a word without a vector (zeros)."""
    unit = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    near: Tensor = unit @ unit.T
    return near


def fitting_objects(near: Tensor, present: Sequence[int], classes: int, top: int = 3) -> list[int]:
    """Return the classes that fit best and are not present, best first; the lower number first among equals.

    Args:
        near: similarity of each word to the labels of the picture, shape [V].
        present: words that are present.
        classes: number of classes of objects.
        top: number of classes to return.
    """
    order = near[:classes].argsort(descending=True, stable=True).tolist()
    return [word for word in order if word not in present][:top]


def fitting_place(near: Tensor, words: Sequence[int]) -> list[int]:
    """Return the places in `words` of those that are most similar, for the similarity of each word to an object [V]."""
    if not words:
        return []
    best = max(float(near[word]) for word in words)
    first = next(word for word in words if float(near[word]) == best)
    return [place for place, word in enumerate(words) if word == first]


def object_crops(picture: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor) -> list[tuple[int, Crop]]:
    """Return (class, crop) of each object of a picture [C, H, W]; those of label -1, and empty masks, are left out."""
    found = []
    for box, label, mask in zip(boxes.long().tolist(), labels.tolist(), masks, strict=True):
        left, top, right, bottom = box
        cut = mask[top:bottom, left:right].bool()
        if label >= 0 and bool(cut.any()):
            found.append((label, Crop(picture[:, top:bottom, left:right], cut)))
    return found


def paste(picture: Tensor, crop: Crop, centre: tuple[float, float]) -> Pasted | None:
    """Paste a crop at its own size, without blending, with its centre at (x, y); None where none of it is inside."""
    height, width = crop.mask.shape
    left, top = int(centre[0]) - width // 2, int(centre[1]) - height // 2
    box = [max(0, left), max(0, top), min(picture.shape[2], left + width), min(picture.shape[1], top + height)]
    if box[0] >= box[2] or box[1] >= box[3]:
        return None
    inside = slice(box[1] - top, box[3] - top), slice(box[0] - left, box[2] - left)
    place = slice(box[1], box[3]), slice(box[0], box[2])
    pixels = torch.zeros(picture.shape[1:], dtype=torch.bool, device=picture.device)
    pixels[place] = crop.mask[inside]
    if not bool(pixels.any()):
        return None
    out = picture.clone()
    out[:, pixels] = crop.picture[(slice(None), *inside)][:, crop.mask[inside]]
    return Pasted(out, pixels, torch.tensor(box, dtype=torch.float32, device=picture.device))


def repaired(boxes: Tensor, labels: Tensor, masks: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return annotations after an object was pasted over some pixels: covered ones have label -1, others their visible box.

    Args:
        boxes, labels, masks: shapes [G, 4], [G], [G, H, W].
        pixels: of the pasted object, shape [H, W].
    """
    boxes, labels, visible = boxes.clone(), labels.clone(), masks.bool() & ~pixels
    for place in torch.nonzero((masks.bool() & pixels).flatten(1).any(1) & (labels >= 0)).flatten().tolist():
        rows, columns = (torch.nonzero(visible[place].any(dim)).flatten() for dim in (1, 0))
        if not len(rows):
            labels[place] = -1
            continue
        boxes[place] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).to(boxes)
    return boxes, labels, visible
