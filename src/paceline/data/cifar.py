"""The folder ``cifar-10-batches-py`` as published. Its files are pickles, which `batchfile` reads without unpickling."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paceline.core.errors import DataFormatError
from paceline.data.batchfile import MOST_BYTES, Value, parse_batch
from paceline.data.raw import Part, RawData

__all__ = ["read_cifar"]


def read_cifar(folder: Path) -> RawData:
    """Read ``data_batch_1`` ... ``data_batch_5`` (those that exist), ``test_batch`` and ``batches.meta``.

    Raises:
        DataFormatError: a file is missing or malformed.
    """
    batches = [p for p in (folder / f"data_batch_{i}" for i in range(1, 6)) if p.is_file()]
    if not batches:
        raise DataFormatError(f"{folder}: data_batch_1 is missing; name the folder of CIFAR-10's Python version")
    parts = [_batch(path) for path in batches]
    train = Part(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
    test = _batch(folder / "test_batch") if (folder / "test_batch").is_file() else None
    classes = _classes(folder / "batches.meta")
    for part in (train, test):
        if part is not None and int(part.y.max()) >= len(classes):
            raise DataFormatError(f"{folder}: label {int(part.y.max())} exceeds the {len(classes)} classes")
    return RawData(train, test, classes)


def _parse(path: Path) -> dict[str, Value]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataFormatError(f"{path}: {path.stat().st_size} bytes exceed the limit of {MOST_BYTES}")
        return parse_batch(path.read_bytes(), str(path))
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read: {error.strerror or error}") from error


def _batch(path: Path) -> Part:
    parsed = _parse(path)
    data, labels = parsed.get("data"), parsed.get("labels")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072:
        shape = (
            f"bytes of shape {data.shape}" if isinstance(data, np.ndarray) else "missing" if data is None else type(data).__name__
        )
        raise DataFormatError(f"{path}: 'data' must be bytes of shape [N, 3072], found: {shape}")
    whole = isinstance(labels, list) and all(type(v) is int and v >= 0 for v in labels)
    if not isinstance(labels, list) or not whole or len(labels) != len(data):
        raise DataFormatError(f"{path}: 'labels' must be a list of {len(data)} non-negative whole numbers")
    return Part(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), np.array(labels, dtype=np.int64))


def _classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(map(str, range(10)))
    names = _parse(path).get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str | bytes) for n in names):
        raise DataFormatError(f"{path}: 'label_names' must be a list of texts")
    try:
        return tuple(n.decode() if isinstance(n, bytes) else n for n in names)
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{path}: a class name is not UTF-8 ({error})") from None
