"""The folder ``cifar-10-batches-py`` as its authors publish it.

Its files are pickles. A pickle can run any code when it is loaded, so these are read by an unpickler that
knows numpy arrays and Python's plain types, and nothing else.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from paceline.data.raw import Part, RawData
from paceline.errors import DataFormatError

__all__ = ["load_plain_pickle", "read_cifar"]

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),  # how protocol 2 of Python 3 writes bytes
}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}; only arrays and plain values are allowed")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_plain_pickle(content: bytes, name: str) -> Any:
    """Return the value in a pickle of numpy arrays, bytes, strings, numbers, lists and dicts; bytes stay bytes.

    Raises `DataFormatError`, naming the file, for anything else, before any of it is run.
    """
    try:
        return _Plain(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataFormatError(f"{name}: not a pickle of arrays and plain values ({error})") from error


def read_cifar(folder: Path) -> RawData:
    """Read ``data_batch_1`` ... ``data_batch_5`` (those that are there), ``test_batch`` and ``batches.meta``.

    Raises `DataFormatError` when a file is missing or malformed.
    """
    batches = [p for p in (folder / f"data_batch_{i}" for i in range(1, 6)) if p.is_file()]
    if not batches:
        raise DataFormatError(f"{folder}: no data_batch_1 in this folder")
    parts = [_batch(path) for path in batches]
    train = Part(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
    test = _batch(folder / "test_batch") if (folder / "test_batch").is_file() else None
    classes = _classes(folder / "batches.meta")
    for part in (train, test):
        if part is not None and int(part.y.max()) >= len(classes):
            raise DataFormatError(f"{folder}: there is a label {int(part.y.max())}, and {len(classes)} classes")
    return RawData(train, test, classes)


def _batch(path: Path) -> Part:
    told = load_plain_pickle(path.read_bytes(), str(path))
    if not isinstance(told, dict):
        raise DataFormatError(f"{path}: a dict is needed, this is a {type(told).__name__}")
    data, labels = (told.get(key.encode(), told.get(key)) for key in ("data", "labels"))
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or data.dtype != np.uint8:
        shape = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataFormatError(f"{path}: 'data' must be bytes of shape [N, 3072], it is {shape}")
    whole = isinstance(labels, list) and all(isinstance(v, int) and v >= 0 for v in labels)
    if labels is None or not whole or len(labels) != len(data) or not len(data):
        raise DataFormatError(f"{path}: 'labels' must be a list of {len(data)} whole numbers of 0 or more, and not empty")
    return Part(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), np.array(labels, dtype=np.int64))


def _classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(map(str, range(10)))
    told = load_plain_pickle(path.read_bytes(), str(path))
    names = told.get(b"label_names", told.get("label_names")) if isinstance(told, dict) else None
    if not isinstance(names, list) or not names:
        raise DataFormatError(f"{path}: no list 'label_names'")
    return tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
