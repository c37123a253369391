"""LEAF's JSON files: ``{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}``.

A folder contains them in ``train/`` and ``test/``; a single folder or file without these is split. FEMNIST's images are
784 numbers, ink 0 on paper 1; they are inverted to white on black, like the other digit data sets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paceline.core.errors import DataFormatError
from paceline.data.raw import Array, Part, RawData
from paceline.data.sources.fontwriters import CLASSES
from paceline.data.sources.shakespeare import ALPHABET, SEQUENCE, encode_text

__all__ = ["read_leaf_femnist", "read_leaf_shakespeare"]


def read_leaf_femnist(path: Path) -> RawData:
    """Read LEAF's FEMNIST: 62 classes, client = writer.

    Raises:
        DataFormatError: malformed content; the message names file and user.
    """

    def sample(x: Any, y: Any) -> tuple[Array, int]:
        picture = np.asarray(x, dtype=np.float64)
        if picture.shape != (784,) or not (picture.min() >= 0 and picture.max() <= 1):
            raise ValueError("an image must be 784 numbers from 0 to 1")
        if not isinstance(y, int) or not 0 <= y < len(CLASSES):
            raise ValueError(f"a label must be a whole number from 0 to {len(CLASSES) - 1}, not {y!r}")
        return ((1 - picture) * 255).round().astype(np.uint8).reshape(28, 28), y

    return _read(path, sample, CLASSES)


def read_leaf_shakespeare(path: Path) -> RawData:
    """Read LEAF's Shakespeare: sequences of 80 characters and the next one, client = role.

    Raises:
        DataFormatError: malformed content; the message names file and user.
    """

    def sample(x: Any, y: Any) -> tuple[Array, int]:
        if not isinstance(x, str) or len(x) != SEQUENCE or not isinstance(y, str) or len(y) != 1:
            raise ValueError(f"a sample must be {SEQUENCE} characters and the next one")
        return encode_text(x), int(encode_text(y)[0])

    return replace(_read(path, sample, tuple(ALPHABET)), overlap=SEQUENCE)


def _read(path: Path, sample: Any, classes: tuple[str, ...]) -> RawData:
    owners: dict[str, int] = {}
    if not (path / "train").is_dir():
        return RawData(_part(path, sample, owners), None, classes, tuple(owners))
    train = _part(path / "train", sample, owners)
    test = _part(path / "test", sample, owners) if (path / "test").is_dir() else None
    return RawData(train, test, classes, tuple(owners))


def _part(path: Path, sample: Any, owners: dict[str, int]) -> Part:
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DataFormatError(f"{path}: contains no .json file; name the folder of LEAF's data")
    xs, ys, codes = [], [], []
    for file in files:
        for user, data in _users(file):
            try:
                pairs = [sample(x, y) for x, y in zip(data["x"], data["y"], strict=True)]
            except (TypeError, ValueError) as error:
                raise DataFormatError(f"{file}, user {user!r}: {error}") from error
            code = owners.setdefault(user, len(owners))
            xs += [x for x, _ in pairs]
            ys += [y for _, y in pairs]
            codes += [code] * len(pairs)
    if not xs:
        raise DataFormatError(f"{path}: no user has a sample")
    return Part(np.stack(xs), np.array(ys, dtype=np.int64), np.array(codes, dtype=np.int64))


def _users(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        parsed = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataFormatError(f"{file}: not a JSON file ({error})") from error
    missing = [k for k in ("users", "num_samples", "user_data") if not isinstance(parsed, dict) or k not in parsed]
    if missing:
        raise DataFormatError(f"{file}: {', '.join(missing)} missing; expected the keys of LEAF's JSON")
    users, counts, data = parsed["users"], parsed["num_samples"], parsed["user_data"]
    if not isinstance(users, list) or not isinstance(counts, list) or len(users) != len(counts):
        raise DataFormatError(f"{file}: users and num_samples must be lists of equal length")
    for user, count in zip(users, counts, strict=True):
        own = data.get(user) if isinstance(data, dict) and isinstance(user, str) else None
        lists = isinstance(own, dict) and isinstance(own.get("x"), list) and isinstance(own.get("y"), list)
        if own is None or not lists:
            raise DataFormatError(f"{file}, user {user!r}: user_data has no lists x and y for this user")
        if not len(own["x"]) == len(own["y"]) == count:
            raise DataFormatError(
                f"{file}, user {user!r}: num_samples is {count}, but there are {len(own['x'])} x and {len(own['y'])} y"
            )
        yield user, own
