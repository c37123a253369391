"""Texts in one folder per class, as bytes of UTF-8 or words: ``train/<class>/*.txt`` and ``test/<class>/*.txt``, or ``<class>/*.txt``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paceline.core.errors import ConfigError, DataFormatError
from paceline.data.decode import read_text
from paceline.data.folder import class_folders, parts_of
from paceline.data.pictures import hidden
from paceline.data.raw import Array, Part, RawData, hold_out
from paceline.data.schema import Schema, Target, Text
from paceline.data.words import MOST_WORDS, coded, split_words
from paceline.data.words import vocabulary as most_frequent

__all__ = ["as_bytes", "read_text_folder"]

_ENDS = {".txt", ".text", ".md"}


def read_text_folder(
    folder: Path, length: int = 256, test: float = 0.2, encoding: str = "", words: int = 0, vocabulary: Sequence[str] = ()
) -> RawData:
    """Read texts, cut or padded to `length` bytes of UTF-8 (uint8 [N, length]) or words (int16), 0 after the end.

    Args:
        folder: folder of the classes.
        length: bytes or words of a sample, 1 to 65536.
        test: fraction of each class for tests, where there is no folder ``test``.
        encoding: encoding of the files; recognised by default.
        words: number of codes of a vocabulary, which are the most frequent words of the training texts; 0 for bytes.
        vocabulary: the words of a schema, in place of those of these texts.

    Raises:
        ConfigError: `length` or `words` is out of range.
        DataFormatError: there is no class, or a file is empty or no text.
    """
    if not 1 <= length <= 65536:
        raise ConfigError(f"length={length} must be from 1 to 65536")
    if words and not 3 <= words <= MOST_WORDS:
        raise ConfigError(f"words={words} must be from 3 to {MOST_WORDS}, or 0 for bytes")
    roots = parts_of(folder)
    classes = tuple(sorted({name for root in roots if root for name in class_folders(root, _ENDS, "texts")}))
    if not classes:
        raise DataFormatError(f"{folder}: no sub-folder contains texts ({', '.join(sorted(_ENDS))}); create one per class")
    texts, labels = _texts(roots[0], classes, encoding)
    if not texts:
        raise DataFormatError(f"{folder / 'train'}: contains no texts; create one sub-folder of texts per class")
    y = np.array(labels, dtype=np.int64)
    counts = np.bincount(y, minlength=len(classes))
    if roots[1] is None:
        train, held = hold_out(y, test, where=str(folder))
    else:
        more, labels = _texts(roots[1], classes, encoding)
        counts = counts + np.bincount(labels, minlength=len(classes)) if labels else counts
        train, held = np.arange(len(texts)), np.arange(len(texts), len(texts) + len(more))
        texts, y = texts + more, np.concatenate([y, np.array(labels, dtype=np.int64)])
    known = tuple(vocabulary) or (most_frequent((texts[row] for row in train), words) if words else ())
    symbols = words or len(known) + 1 if known else 256
    x = coded(texts, known, length) if known else as_bytes(texts, length)
    sizes = [len(split_words(text)) if known else len(text.encode()) for text in texts]
    cut, unit = sum(size > length for size in sizes), "words" if known else "bytes"
    notes = [f"class {name}: {count} texts" for name, count in zip(classes, counts, strict=True)]
    notes += [f"{cut} texts are longer than {length} {unit} and are cut; change length="] if cut else []
    notes += [f"{len(known)} words, the most frequent: {', '.join(known[:8])}"] if known else []
    schema = Schema(content="text", text=Text(length=length, symbols=symbols, words=known), target=Target(classes=classes))
    whole = Part(x, y)
    return RawData(whole.take(train), whole.take(held) if len(held) else None, classes, schema=schema, notes=tuple(notes))


def as_bytes(texts: Sequence[str], length: int) -> Array:
    """Return the first `length` bytes of UTF-8 of each text, uint8 [N, length], 0 after the end."""
    return np.stack([np.frombuffer(text.encode()[:length].ljust(length, b"\0"), dtype=np.uint8) for text in texts])


def _texts(root: Path | None, classes: Sequence[str], encoding: str) -> tuple[list[str], list[int]]:
    """Return the texts in the folders of the classes, and their classes' codes."""
    texts, labels = [], []
    for label, name in enumerate(classes):
        inside = sorted((root / name).iterdir()) if root is not None and (root / name).is_dir() else []
        for path in (p for p in inside if p.suffix.lower() in _ENDS and p.is_file() and not hidden(p)):
            text = read_text(path, encoding)[0]
            if not text.strip():
                raise DataFormatError(f"{path}: the file is empty; delete it, or write its text")
            texts.append(text)
            labels.append(label)
    return texts, labels
