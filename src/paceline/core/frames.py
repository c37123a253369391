"""Data frames, of pandas or polars, made into one matrix of inputs and a column of targets."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.core.errors import DataError, DataFormatError, UnknownNameError

__all__ = ["FrameColumns", "check_frame", "classes_of", "codes"]

_MOST = 50
"""Categories of a text column up to which it is encoded."""


def check_frame(frame: Any) -> None:
    """Raise `DataFormatError` for what is no data frame of pandas or polars, or one whose columns have no names of their own."""
    if not hasattr(frame, "columns") or not hasattr(frame, "__getitem__"):
        raise DataFormatError(f"a {type(frame).__name__} is not a data frame; pass one of pandas or polars")
    names = list(frame.columns)
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise DataFormatError(f"column {wrong!r} of the data frame has a {type(wrong).__name__} as its name; name columns by texts")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataFormatError(f"the data frame has more than one column {twice!r}; rename one")


class FrameColumns:
    """How the columns of a data frame become inputs, found on the training rows and applied to others.

    Numbers and booleans are used as they are, or standardised; texts and categories become one indicator per category.

    Args:
        frame: the training rows: a data frame of pandas or polars.
        names: columns that are inputs.
        standardize: subtract the mean of numbers and divide by their deviation.
    """

    def __init__(self, frame: Any, names: Sequence[str], standardize: bool) -> None:
        self.names = list(names)
        self.scales: dict[str, tuple[float, float]] = {}
        self.categories: dict[str, list[str]] = {}
        for name in self.names:
            values = _values(frame, name)
            if values.dtype.kind in "biuf":
                deviation = float(values.std()) if standardize and values.dtype.kind != "b" else 0.0
                self.scales[name] = (float(values.mean()), deviation) if deviation > 0 else (0.0, 1.0)
                continue
            nested = next((v for v in values if isinstance(v, list | tuple | dict | set | np.ndarray)), None)
            if nested is not None:
                raise DataFormatError(
                    f"column {name!r} holds a {type(nested).__name__} in a cell; leave it out with columns=[...], or give its parts columns"
                )
            found = sorted({str(v) for v in values})
            if len(found) > _MOST:
                raise DataFormatError(
                    f"column {name!r} has {len(found)} different texts; leave it out with columns=[...], or encode it as numbers first"
                )
            self.categories[name] = found

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs, in their order."""
        return [
            part
            for name in self.names
            for part in ([f"{name}={c}" for c in self.categories[name]] if name in self.categories else [name])
        ]

    def schema(self, target: str, classes: Sequence[Any], scaling: tuple[float, float] = (0.0, 1.0)) -> str:
        """Return the schema of the columns as JSON, in the form of `paceline.data.schema.Schema`.

        Args:
            target: column that is predicted.
            classes: names of its classes; empty for a number.
            scaling: mean and deviation of a number.
        """
        columns: list[dict[str, Any]] = []
        for name in self.names:
            if name in self.categories:
                columns.append({"name": name, "kind": "category", "categories": self.categories[name]})
            else:
                mean, deviation = self.scales[name]
                columns.append({"name": name, "kind": "number", "fill": mean, "mean": mean, "deviation": deviation})
        number = {"name": target, "kind": "number", "mean": scaling[0], "deviation": scaling[1]}
        predicted = {"name": target, "kind": "class", "classes": list(map(str, classes))} if classes else number
        return json.dumps({"version": 1, "content": "table", "columns": columns, "target": predicted})

    def matrix(self, frame: Any) -> Tensor:
        """Return the inputs of a frame's rows, shape [N, inputs], float32."""
        parts = []
        for name in self.names:
            values = _values(frame, name)
            if name in self.categories:
                codes = _codes(values, self.categories[name], name)
                parts.append(np.eye(len(self.categories[name]), dtype=np.float32)[codes])
            else:
                if values.dtype.kind not in "biuf":
                    raise DataFormatError(
                        f"column {name!r} holds numbers in the training rows, but texts such as {values[0]!r} in the others"
                    )
                mean, deviation = self.scales[name]
                parts.append(((values.astype(np.float64) - mean) / deviation).astype(np.float32)[:, None])
        return torch.from_numpy(np.concatenate(parts, 1))


def _values(frame: Any, name: str) -> Any:
    """Return a column as an array of numbers, booleans or texts. Raises `DataError` for missing values."""
    if name not in list(frame.columns):
        raise UnknownNameError("column", name, list(frame.columns))
    values = np.asarray(frame[name].to_numpy())
    if values.dtype.kind in "mM":
        raise DataFormatError(f"column {name!r} holds dates or durations; convert it to numbers, such as days since the first one")
    missing = (
        np.isnan(values)
        if values.dtype.kind == "f"
        else np.array([_is_missing(v) for v in values])
        if values.dtype == object
        else None
    )
    if missing is not None and missing.any():
        row = int(np.flatnonzero(missing)[0])
        raise DataError(
            f"column {name!r}: row {row} is missing ({int(missing.sum())} rows in all); fill missing values or drop the rows"
        )
    if values.dtype == object and all(isinstance(v, bool | int | float | np.number) for v in values):
        values = np.array(values.tolist())
    return values


def _is_missing(value: Any) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return type(value).__name__ in ("NAType", "NaTType")


def _codes(values: Any, known: Sequence[str], name: str) -> Any:
    places = {text: place for place, text in enumerate(known)}
    texts = [str(v) for v in values]
    unknown = next((text for text in texts if text not in places), None)
    if unknown is not None:
        raise DataFormatError(
            f"column {name!r}: {unknown!r} does not occur in the training rows, which have {', '.join(known[:8])}"
        )
    return np.array([places[text] for text in texts], dtype=np.int64)


def classes_of(frame: Any, name: str) -> list[Any] | None:
    """Return the classes of a target column, in order: its texts or truth values; None for numbers."""
    values = _values(frame, name)
    return None if values.dtype.kind in "iuf" else sorted({str(v) for v in values})


def codes(frame: Any, name: str, classes: Sequence[Any] | None = None) -> Tensor:
    """Return a column's values: codes of classes (int64), whole numbers (int64) or numbers (float64)."""
    values = _values(frame, name)
    if classes is not None:
        return torch.from_numpy(_codes(values, list(classes), name))
    return torch.from_numpy(values.astype(np.float64 if values.dtype.kind == "f" else np.int64))
