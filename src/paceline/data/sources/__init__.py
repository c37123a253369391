"""Fetchable data sets and pretrained models, by name."""

from __future__ import annotations

from paceline.core.errors import UnknownNameError
from paceline.data.sources.brain import MRI_TISSUE
from paceline.data.sources.chatterbot import CHATTERBOT
from paceline.data.sources.clinical import CD4, HEART_DISEASE
from paceline.data.sources.emoji import EMOJI, EMOJI_VENDORS
from paceline.data.sources.fontwriters import FONTWRITERS
from paceline.data.sources.four_digits import FOUR_DIGITS
from paceline.data.sources.images import CIFAR10_TEST_SPLIT, DIGITS, FASHION_MNIST, MNIST_5K
from paceline.data.sources.series import LIFE_EXPECTANCY, WATCH_ACTIVITY
from paceline.data.sources.shakespeare import SHAKESPEARE
from paceline.data.sources.source import Source
from paceline.data.sources.spoken import SPOKEN_DIGITS
from paceline.data.sources.weights import MOBILENET_V2, SMOLLM2
from paceline.data.sources.words import FILM_GENRES, NEWSGROUPS

__all__ = ["Source", "find_source", "source_names"]

_SOURCES = {
    source.name: source
    for source in (
        DIGITS,
        MNIST_5K,
        FASHION_MNIST,
        CIFAR10_TEST_SPLIT,
        FONTWRITERS,
        SHAKESPEARE,
        HEART_DISEASE,
        CD4,
        WATCH_ACTIVITY,
        LIFE_EXPECTANCY,
        MRI_TISSUE,
        NEWSGROUPS,
        FILM_GENRES,
        SPOKEN_DIGITS,
        EMOJI,
        EMOJI_VENDORS,
        FOUR_DIGITS,
        CHATTERBOT,
        SMOLLM2,
        MOBILENET_V2,
    )
}


def source_names() -> list[str]:
    """Return the names of all sources."""
    return list(_SOURCES)


def find_source(name: str) -> Source:
    """Return a source; raises `UnknownNameError` with close matches."""
    if name not in _SOURCES:
        raise UnknownNameError("data set", name, _SOURCES)
    return _SOURCES[name]
