"""Predictions of a model: classes with names, scores, or numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from paceline.core.errors import ConfigError
from paceline.core.importing import import_extra
from paceline.store.files import atomic_write

if TYPE_CHECKING:
    from paceline.results.card import Kind

__all__ = ["Prediction"]


@dataclass(frozen=True, repr=False)
class Prediction:
    """What a model predicts for N samples.

    Args:
        outputs: the model's scores: [N, C] or [N, C, ...] for classes, [N, C] for labels, [N] or [N, ...] for numbers.
        kind: class, labels or number.
        classes: names of the classes or labels, by code.
        names: a name for each sample, such as its file; empty where samples are rows.
        notes: what was found in the data, a line each.
        truth: targets in the data, where they have the target's column: names or numbers, empty texts where they are missing.

    Example:
        >>> import torch
        >>> made = Prediction(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), "class", ("no", "yes"))
        >>> made.labels, made.codes.tolist(), round(float(made.scores[0, 1]), 2)
        (['yes', 'no'], [1, 0], 0.88)
    """

    outputs: Tensor
    kind: Kind
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    truth: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def scores(self) -> Tensor:
        """Probabilities of the classes (which add up to 1) or of the labels (each by itself), of the shape of `outputs`."""
        if self.kind == "number":
            raise ConfigError("the model predicts numbers, which have no scores; use numbers")
        return self.outputs.softmax(1) if self.kind == "class" else self.outputs.sigmoid()

    @property
    def codes(self) -> Tensor:
        """The class of the highest score, int64 [N] or [N, ...]; or for labels 1 where a score is above 0.5, [N, C]."""
        if self.kind == "number":
            raise ConfigError("the model predicts numbers, which have no codes; use numbers")
        return self.outputs.argmax(1) if self.kind == "class" else (self.outputs > 0).long()

    @property
    def labels(self) -> list[Any]:
        """The name of each sample's class, or the list of its labels; lists of names for samples of several targets."""
        codes = self.codes.tolist()
        if self.kind == "labels":
            return [[self._name(i) for i, there in enumerate(row) if there] for row in codes]
        return [self._named(row) for row in codes]

    @property
    def numbers(self) -> Tensor:
        """The predicted numbers, [N] or [N, ...]."""
        if self.kind != "number":
            raise ConfigError("the model predicts classes; use labels, codes or scores")
        return self.outputs.squeeze(1) if self.outputs.dim() == 2 and self.outputs.shape[1] == 1 else self.outputs

    @property
    def accuracy(self) -> float | None:
        """Share of the samples whose class is the one in the data, of those that have one; None where none has a class of the model."""
        if self.kind != "class" or self.outputs.dim() != 2 or not set(self.truth) & {str(label) for label in self.classes}:
            return None
        right = [bool(one == other) for one, other in zip(self.labels, self.truth, strict=True) if other]
        return sum(right) / len(right)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a dict for each sample: ``sample`` if it has a name, ``prediction``, and the score of each class or label."""
        flat = self.outputs.dim() <= 2
        shown: Sequence[Any] = self.numbers.tolist() if self.kind == "number" else self.labels
        scored = self.scores.tolist() if self.kind != "number" and flat else None
        for i, value in enumerate(shown):
            row: dict[str, Any] = {"sample": self.names[i]} if self.names else {}
            parts = value if isinstance(value, list) else None
            if parts is not None and self.kind == "number" and flat:
                row |= {f"prediction {j}": part for j, part in enumerate(parts)}
            else:
                row["prediction"] = value if parts is None else " ".join(map(str, _leaves(parts)))
            if scored is not None:
                row |= {f"score {self._name(j)}": round(part, 6) for j, part in enumerate(scored[i])}
            yield row

    def to_csv(self, path: str | Path) -> Path:
        """Write `rows` as CSV.

        Raises:
            ConfigError: each sample has a picture of classes, which a table does not hold.
            StoreError: the file cannot be written.
        """
        if self.outputs.dim() > 3:
            raise ConfigError("each sample has a class for each pixel, which CSV does not hold; use predict in Python")
        listed = list(self.rows())
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, list(listed[0]) if listed else ["prediction"], lineterminator="\n")
        table.writeheader()
        table.writerows(listed)
        atomic_write(path, buffer.getvalue().encode(), durable=False)
        return Path(path)

    def to_pandas(self) -> Any:
        """Return `rows` as a data frame. Raises `MissingExtraError` if pandas is not installed."""
        return import_extra("pandas", "pandas").DataFrame(list(self.rows()))

    def _name(self, code: int) -> str:
        return self.classes[code] if code < len(self.classes) else str(code)

    def _named(self, codes: Any) -> Any:
        return [self._named(part) for part in codes] if isinstance(codes, list) else self._name(codes)

    def __repr__(self) -> str:
        what = {"class": "classes", "labels": "sets of labels", "number": "numbers"}[self.kind]
        some = (self.numbers[:3].tolist() if self.kind == "number" else self.labels[:3]) if self.outputs.dim() <= 2 else "..."
        return f"<{len(self)} {what}: {some}>"


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    else:
        yield value
