"""CSV files with a target column and, optionally, a column that identifies each row's client."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from paceline.core.errors import ConfigError, DataFormatError, UnknownNameError
from paceline.data.raw import Array, Part, RawData, encode, hold_out

__all__ = ["read_csv"]

_MISSING = {"", "?", "na", "nan", "null", "none"}
_MOST_VALUES = 100


def read_csv(path: Path, target: str = "", client: str = "", test: float = 0.2, drop: str = "") -> RawData:
    """Read a CSV file with a header; the rows are split with a fixed seed, a fraction `test` of each class for tests.

    A numeric column becomes one standardised feature; missing values are replaced by the median. A text column becomes one
    feature per value (one-hot), where missing is an additional value. Means, deviations and medians are computed on the
    training rows.

    Args:
        path: the file.
        target: column of the classes to predict; the last column by default.
        client: column whose values are the natural clients.
        test: fraction of the rows for tests.
        drop: comma-separated columns to omit.

    Raises:
        UnknownNameError: unknown column.
        ConfigError: target and client are the same column.
        DataFormatError: malformed content; the message contains the line.
    """
    header, rows = _rows(path)
    target = target or header[-1]
    dropped = [name for name in drop.split(",") if name]
    for name in [target, *([client] if client else []), *dropped]:
        if name not in header:
            raise UnknownNameError(f"column of {path}", name, header)
    if target == client:
        raise ConfigError(f"column {target!r} of {path} cannot be both target and client; name another client column")
    columns = {name: [row[i].strip() for row in rows] for i, name in enumerate(header)}
    empty = [i + 2 for i, value in enumerate(columns[target]) if value.lower() in _MISSING]
    if empty:
        raise DataFormatError(f"{path}, line {empty[0]}: the target column {target!r} has no value; fill it in or delete the row")
    y, classes = encode(columns[target])
    train, held = hold_out(y, test)
    features = [n for n in header if n not in {target, client, *dropped}]
    if not features:
        raise DataFormatError(f"{path}: no feature column remains beside the target {target!r}")
    x = np.concatenate([_features(path, name, columns[name], train) for name in features], axis=1)
    owner, owners = encode(columns[client]) if client else (None, ())
    whole = Part(x.astype(np.float32), y, owner)
    return RawData(whole.take(train), whole.take(held), classes, owners)


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataFormatError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if len(lines) < 2:
        raise DataFormatError(f"{path}: expected a header and at least one row")
    header, *rows = lines
    header = [name.strip() for name in header]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataFormatError(f"{path}: duplicate column name {twice[0]!r}; rename one")
    for number, row in enumerate(rows, 2):
        if row and len(row) != len(header):
            raise DataFormatError(f"{path}, row {number}: {len(row)} values for {len(header)} columns")
    return header, [row for row in rows if row]


def _number(text: str) -> float | None:
    """Return the finite number, NaN for a missing value, None for text."""
    if text.lower() in _MISSING:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _features(path: Path, name: str, values: list[str], train: Array) -> Array:
    numbers = [_number(v) for v in values]
    if all(n is not None for n in numbers):
        column = np.array(numbers, dtype=np.float64)
        known = column[train][~np.isnan(column[train])]
        if not len(known):
            raise DataFormatError(f"{path}: column {name!r} has no values; leave it out with drop={name}")
        column = np.where(np.isnan(column), np.median(known), column)
        mean, deviation = column[train].mean(), column[train].std()
        scaled: Array = ((column - mean) / (deviation or 1.0))[:, None]
        return scaled
    codes, distinct = encode(["" if v.lower() in _MISSING else v for v in values])
    if len(distinct) > _MOST_VALUES:
        raise DataFormatError(
            f"{path}: text column {name!r} has {len(distinct)} different values, more than {_MOST_VALUES}; "
            f"leave it out with drop={name}"
        )
    return np.eye(len(distinct))[codes]
