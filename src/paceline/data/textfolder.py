"""Texts in one folder per class, as the bytes of UTF-8: ``train/<class>/*.txt`` and ``test/<class>/*.txt``, or ``<class>/*.txt``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paceline.core.errors import ConfigError, DataFormatError
from paceline.data.decode import read_text
from paceline.data.folder import class_folders, parts_of
from paceline.data.pictures import hidden
from paceline.data.raw import Part, RawData
from paceline.data.schema import Schema, Target, Text

__all__ = ["read_text_folder"]

_ENDS = {".txt", ".text", ".md"}


def read_text_folder(folder: Path, length: int = 256, encoding: str = "") -> RawData:
    """Read texts, cut or padded to `length` bytes of UTF-8 (uint8 [N, length], 0 after the end).

    Args:
        folder: folder of the classes.
        length: bytes of a sample, 1 to 65536.
        encoding: encoding of the files; recognised by default.

    Raises:
        ConfigError: `length` is out of range.
        DataFormatError: there is no class, or a file is empty or no text.
    """
    if not 1 <= length <= 65536:
        raise ConfigError(f"length={length} must be from 1 to 65536 bytes")
    roots = parts_of(folder)
    classes = sorted({name for root in roots if root for name in class_folders(root, _ENDS, "texts")})
    if not classes:
        raise DataFormatError(f"{folder}: no sub-folder contains texts ({', '.join(sorted(_ENDS))}); create one per class")
    parts, cut = [], 0
    for root in roots:
        codes, labels = [], []
        for label, name in enumerate(classes):
            inside = sorted((root / name).iterdir()) if root is not None and (root / name).is_dir() else []
            for path in (p for p in inside if p.suffix.lower() in _ENDS and p.is_file() and not hidden(p)):
                text = read_text(path, encoding)[0].encode()
                if not text.strip():
                    raise DataFormatError(f"{path}: the file is empty; delete it, or write its text")
                cut += len(text) > length
                codes.append(np.frombuffer(text[:length].ljust(length, b"\0"), dtype=np.uint8))
                labels.append(label)
        parts.append(Part(np.stack(codes), np.array(labels, dtype=np.int64)) if codes else None)
    train, test = parts
    if train is None:
        raise DataFormatError(f"{folder / 'train'}: contains no texts; create one sub-folder of texts per class")
    counts = np.bincount(np.concatenate([part.y for part in parts if part is not None]), minlength=len(classes))
    notes = [f"class {name}: {count} texts" for name, count in zip(classes, counts, strict=True)]
    notes += [f"{cut} texts are longer than {length} bytes and are cut; change length="] if cut else []
    schema = Schema(content="text", text=Text(length=length, symbols=256), target=Target(classes=tuple(classes)))
    return RawData(train, test, tuple(classes), schema=schema, notes=tuple(notes))
