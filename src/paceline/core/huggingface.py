"""Data sets of the `datasets` library as map-style data sets of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from paceline.core.errors import DataFormatError, UnknownNameError

__all__ = ["RowDataset", "check_dataset", "class_names"]


class RowDataset:
    """The samples of a data set as pairs (inputs, targets).

    Args:
        dataset: a ``datasets.Dataset``.
        inputs, targets: a column, or several, which become a dict.
    """

    def __init__(self, dataset: Any, inputs: str | Sequence[str], targets: str | Sequence[str]) -> None:
        self.dataset, self.inputs, self.targets = dataset, inputs, targets

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        sample = self.dataset[row]
        return _of(sample, self.inputs), _of(sample, self.targets)


def _of(sample: Any, wanted: str | Sequence[str]) -> Any:
    if isinstance(wanted, str):
        return _value(sample[wanted], wanted)
    return {name: _value(sample[name], name) for name in wanted}


def _value(value: Any, name: str) -> Any:
    if isinstance(value, str | bytes | dict):
        raise DataFormatError(
            f"column {name!r} holds {type(value).__name__} values; convert them to numbers with dataset.map, as a tokenizer does"
        )
    if hasattr(value, "convert") and hasattr(value, "mode"):  # a picture: channels first, from 0 to 1
        pixels = np.asarray(value)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels)).float() / (255 if pixels.dtype == np.uint8 else 1)
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise DataFormatError(f"column {name!r}: {type(value).__name__} values are no numbers: {error}") from error


def check_dataset(dataset: Any, wanted: Sequence[Any]) -> None:
    """Raise `DataFormatError` for what is no single data set, `UnknownNameError` for a column that does not exist."""
    known = getattr(dataset, "column_names", None)
    if isinstance(known, dict):
        raise DataFormatError(
            f"this is a dict of data sets, {', '.join(known)}; pass one, such as dataset['train'], and another as test="
        )
    if known is None or not hasattr(dataset, "select"):
        raise DataFormatError(
            f"a {type(dataset).__name__} is not a datasets.Dataset; load one with datasets.load_dataset(..., split='train')"
        )
    for name in [n for part in wanted for n in ([part] if isinstance(part, str) else part)]:
        if name not in known:
            raise UnknownNameError("column", name, known)


def class_names(dataset: Any, column: str) -> list[str]:
    """Return the names of a column's classes, where the data set has them."""
    return list(getattr(dataset.features[column], "names", None) or [])
