"""Texts as words: a vocabulary, and the codes of a text by it. A vocabulary is part of a schema, so all sites have the same codes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from paceline.data.raw import Array

__all__ = ["MOST_WORDS", "coded", "split_words", "vocabulary"]

MOST_WORDS = 30_000
"""Most codes of a vocabulary."""

_WORD = re.compile(r"[^\W_]+")


def split_words(text: str, spaces: bool = False) -> list[str]:
    """Return the words of a text in lower case.

    Args:
        text: the text.
        spaces: whether words are what spaces separate; otherwise they are runs of letters and digits.

    Example:
        >>> split_words("It's 5 o'clock"), split_words("by A_Writer 1.5", spaces=True)
        (['it', 's', '5', 'o', 'clock'], ['by', 'a_writer', '1.5'])
    """
    return text.lower().split() if spaces else _WORD.findall(text.lower())


def vocabulary(texts: Iterable[str], size: int, common: int = 0, spaces: bool = False) -> tuple[str, ...]:
    """Return words by falling frequency; the code of the first is 1, as 0 is padding.

    Args:
        texts: the texts.
        size: number of codes, padding included.
        common: number of most frequent words that are left out, because they tell little.
        spaces: see `split_words`.

    Example:
        >>> vocabulary(["to be or not to be", "or"], size=4)
        ('be', 'or', 'to')
    """
    counts = Counter(word for text in texts for word in split_words(text, spaces))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[common : common + size - 1])


def coded(texts: Sequence[str], words: Sequence[str], length: int, spaces: bool = False) -> Array:
    """Return the codes of the first `length` known words of each text, int16 [N, length], 0 after the end; others are left out.

    Args:
        texts: the texts.
        words: the vocabulary, at most `MOST_WORDS`.
        length: codes of a text.
        spaces: see `split_words`.
    """
    codes = {word: code for code, word in enumerate(words, 1)}
    out = np.zeros((len(texts), length), dtype=np.int16)
    for row, text in enumerate(texts):
        known = [codes[word] for word in split_words(text, spaces) if word in codes][:length]
        out[row, : len(known)] = known
    return out
