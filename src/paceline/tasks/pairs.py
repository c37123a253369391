"""Pairs of a picture and a text, which belong together or do not: a task with two inputs."""

from __future__ import annotations

from functools import partial

import torch

from paceline.core.random import numpy_rng
from paceline.core.task import Arrays, Task
from paceline.data.cache import load_arrays
from paceline.data.raw import Array, encode, hold_out
from paceline.data.sources import find_source
from paceline.data.words import coded, vocabulary
from paceline.models.pairs import PairNet
from paceline.tasks.images import channels_first
from paceline.tasks.recipe import task_card

__all__ = ["load_pairs"]

_WORDS = 1500
_LENGTH = 12
_CLASSES = ("does not belong", "belongs")


@task_card("does a name belong to an emoji? two inputs, picture and words", "PairNet", "emoji")
def load_pairs(each: int = 4) -> Task:
    """Return pairs of emoji and names: each emoji with its own name, and as often with the name of another one.

    Emoji of the test part are in no training pair.

    Args:
        each: pairs of each emoji; half of them belong together.
    """
    arrays = load_arrays(find_source("emoji").cached())
    train, test = hold_out(encode(arrays["category"].tolist())[0], 0.2)
    texts = arrays["words"].tolist()
    known = vocabulary([texts[row] for row in train], _WORDS, spaces=True)
    words, pictures = coded(texts, known, _LENGTH, spaces=True), channels_first(arrays["image"], 255.0) - 0.7
    parts = []
    for rows, name in ((train, "train"), (test, "test")):
        shown, said, y = _paired(rows, each, name)
        x = {"picture": pictures[torch.from_numpy(shown)], "words": torch.from_numpy(words[said])}
        parts.append(Arrays(x, torch.from_numpy(y)))
    return Task(
        name="emoji-pairs",
        train=parts[0],
        test=parts[1],
        model=partial(PairNet, _WORDS),
        num_classes=2,
        classes=_CLASSES,
        lr=0.2,
        batch_size=20,
        notes="pairs of emoji and names",
    )


def _paired(rows: Array, each: int, name: str) -> tuple[Array, Array, Array]:
    """Return rows of pictures, rows of texts, and whether they belong together (int64)."""
    rng, shown = numpy_rng(0, "pairs", name), rows.repeat(each)
    belongs = (torch.arange(len(shown)) % 2).numpy()
    other = rng.choice(rows, len(shown))
    return shown, (shown * belongs + other * (1 - belongs)), belongs
