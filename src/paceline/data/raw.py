"""Raw data before conversion to tensors: NumPy arrays, class names, owner names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.core.errors import ConfigError, DataFormatError
from paceline.core.random import numpy_rng
from paceline.data.schema import Schema

__all__ = ["Array", "Part", "RawData", "encode", "hold_out", "hold_out_last"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """Samples of one split.

    Args:
        x: inputs, shape [N, ...]; images as uint8 of shape [N, H, W] or [N, H, W, 3].
        y: class codes, shape [N] (int64); numbers, shape [N] (float32); or a class for each pixel, shape [N, H, W] (uint8).
        owner: code of each sample's natural client, shape [N] (int64), or None.
    """

    x: Array
    y: Array
    owner: Array | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Array) -> Part:
        """Return the samples at `rows`."""
        return Part(self.x[rows], self.y[rows], None if self.owner is None else self.owner[rows])


@dataclass(frozen=True)
class RawData:
    """A data set as read.

    Args:
        train, test: samples; `test` is None if the data have no test part.
        classes: names of the classes, by code.
        owners: names of the natural clients, by code.
        overlap: number of following samples that share content with a sample, such as overlapping windows of a text.
        schema: form of the samples, where the reader determines it; otherwise it follows from the arrays (`described`).
        notes: what the reader took each column or folder for, a line each.
    """

    train: Part
    test: Part | None
    classes: tuple[str, ...]
    owners: tuple[str, ...] = ()
    overlap: int = 0
    schema: Schema | None = None
    notes: tuple[str, ...] = ()

    def arrays(self) -> dict[str, Array]:
        """Return everything as named arrays without Python objects."""
        out: dict[str, Array] = {"classes": np.array(self.classes, dtype=np.str_)}
        if self.owners:
            out["owners"] = np.array(self.owners, dtype=np.str_)
        for name, part in (("train", self.train), ("test", self.test)):
            if part is not None:
                out |= {f"{name}_x": part.x, f"{name}_y": part.y}
                if part.owner is not None:
                    out[f"{name}_owner"] = part.owner
        return out

    @staticmethod
    def of(arrays: Mapping[str, Array]) -> RawData:
        """Return the data set encoded by `arrays`; raises `DataFormatError` if an array is missing."""

        def part(name: str) -> Part | None:
            if f"{name}_x" not in arrays:
                return None
            return Part(arrays[f"{name}_x"], arrays[f"{name}_y"], arrays.get(f"{name}_owner"))

        train = part("train")
        if train is None or "classes" not in arrays:
            raise DataFormatError(
                f"training samples or classes are missing from the arrays {sorted(arrays)}; fetch the data set again"
            )
        names = {key: tuple(str(v) for v in arrays.get(key, ())) for key in ("classes", "owners")}
        return RawData(train, part("test"), names["classes"], names["owners"])

    def with_test(self, share: float, seed: int = 0, where: str = "") -> RawData:
        """Return the data with a test part: its own, or a fixed `share` of each class of the training part.

        Where samples overlap it is the last `share` of each owner's, and those that share content with it are omitted.

        Raises:
            ConfigError: `share` is not between 0 and 1.
            DataFormatError: one of the parts would be empty.
        """
        if self.test is not None:
            return self
        overlap, owner = self.overlap, self.train.owner
        if overlap and owner is not None:
            train, test = hold_out_last(owner, share, overlap, where)
        else:
            train, test = hold_out(self.train.y, share, seed, where)
        return replace(self, train=self.train.take(train), test=self.train.take(test))


def hold_out(y: Array, share: float, seed: int = 0, where: str = "") -> tuple[Array, Array]:
    """Return (train rows, test rows), both in order; a seeded random `share` of each class is the test part.

    Targets that are no classes count as one class. `where` names the data, for messages. With a share of 0 no row is a test row.

    Raises:
        ConfigError: `share` is not between 0 and 1.
        DataFormatError: one of the parts would be empty.
    """
    _check_share(share)
    if not share:
        return np.arange(len(y)), np.arange(0)
    rng = numpy_rng(seed, "hold out")
    test = np.zeros(len(y), dtype=bool)
    classed = y.ndim == 1 and np.issubdtype(y.dtype, np.integer)
    for value in np.unique(y) if classed else (None,):
        rows = np.arange(len(y)) if value is None else np.flatnonzero(y == value)
        test[rng.permutation(rows)[: round(len(rows) * share)]] = True
    if test.all() or not test.any():
        raise DataFormatError(
            f"{_named(where)}{len(y)} samples are too few to hold out {share:.0%} of each class for tests; change test="
        )
    return np.flatnonzero(~test), np.flatnonzero(test)


def hold_out_last(owner: Array, share: float, overlap: int, where: str = "") -> tuple[Array, Array]:
    """Return (train rows, test rows): the last `share` of each owner's rows is the test part, `overlap` rows before it are in neither.

    An owner with too few rows for both has only training rows, and with a share of 0 all have.

    Raises:
        ConfigError: `share` is not between 0 and 1.
        DataFormatError: one of the parts would be empty.
    """
    _check_share(share)
    if not share:
        return np.arange(len(owner)), np.arange(0)
    train, test = [], []
    for value in np.unique(owner):
        rows = np.flatnonzero(owner == value)
        count = round(len(rows) * share)
        whole = len(rows) - count - overlap < 1
        train.append(rows if whole else rows[: len(rows) - count - overlap])
        test.append(rows[:0] if whole else rows[len(rows) - count :])
    if not sum(map(len, test)):
        raise DataFormatError(
            f"{_named(where)}{len(owner)} samples of {len(np.unique(owner))} owners are too few to hold out {share:.0%} of each owner's "
            f"for tests, as the {overlap} samples before them share text with them; provide test samples of their own, or owners with "
            "more text"
        )
    return np.concatenate(train), np.concatenate(test)


def _named(where: str) -> str:
    return f"{where}: " if where else ""


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise ConfigError(f"test={share} must be at least 0 and below 1")


def encode(values: Sequence[str]) -> tuple[Array, tuple[str, ...]]:
    """Return (code of each value, sorted distinct values); integers are sorted numerically.

    Example:
        >>> encode(["b", "a", "b"])
        (array([1, 0, 1]), ('a', 'b'))
    """
    distinct = sorted(set(values))
    if all(v.lstrip("-").isascii() and v.lstrip("-").isdigit() for v in distinct):
        distinct.sort(key=int)
    codes = {value: i for i, value in enumerate(distinct)}
    return np.array([codes[v] for v in values], dtype=np.int64), tuple(distinct)
