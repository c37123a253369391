"""Bases of metrics: each brings outputs and targets into one form and leaves out the targets that do not count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from paceline.core.errors import DataFormatError
from paceline.core.metrics import Judges, Metric
from paceline.core.terms import leading

__all__ = ["ClassMetric", "LabelMetric", "TokenMetric", "ValueMetric", "mean_of", "ratio"]


class ClassMetric(Metric):
    """Base of metrics of class indices: `count` receives scores [M, C] and targets [M] of those that count.

    Outputs are [N, C], [N, C, ...] or [N, ..., C] for targets [N, ...], or a binary logit for each target.

    Example:
        >>> from paceline.metrics import ClassMetric
        >>> class Mistakes(ClassMetric):
        ...     higher_is_better = False
        ...     def count(self, scores, targets):
        ...         return {"wrong": (scores.argmax(1) != targets).sum(), "count": torch.tensor(len(targets))}
        ...     def figures(self, total):
        ...         return {"mistakes": int(total["wrong"]) / max(int(total["count"]), 1)}
        >>> metric = Mistakes()
        >>> metric.figures(metric.terms(torch.eye(3), torch.tensor([0, 1, -100])))
        {'mistakes': 0.0}
    """

    whole: ClassVar[bool] = False
    judges: ClassVar[Judges] = "classes"

    def terms(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Return the terms of the targets that count."""
        scores, y = leading(outputs), leading(targets)
        if scores.shape == y.shape or scores.shape == (*y.shape, 1):  # a binary logit
            scores = scores.reshape(-1, 1) * scores.new_tensor([0.0, 1.0])
        elif scores.dim() == y.dim() + 1 and scores.shape[0] == y.shape[0] and scores.shape[2:] == y.shape[1:]:
            scores = scores.movedim(1, -1).reshape(-1, scores.shape[1])
        elif scores.shape[:-1] == y.shape:
            scores = scores.reshape(-1, scores.shape[-1])
        else:
            raise _misfit(self, scores, y)
        flat = y.reshape(-1)
        known = flat >= 0
        return self.count(scores[known], flat[known].long())

    def count(self, scores: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return the terms.

        Args:
            scores: logits, shape [M, C].
            targets: class indices, shape [M] (int64).
        """
        raise NotImplementedError


class LabelMetric(Metric):
    """Base of metrics of several labels per sample: `count` receives logits, targets and what counts, each [M, L].

    Targets are 0 or 1; negative ones and NaN do not count.
    """

    whole: ClassVar[bool] = False
    judges: ClassVar[Judges] = "labels"

    def terms(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Return the terms of the labels that count."""
        scores, y = leading(outputs), leading(targets)
        if scores.shape != y.shape:
            raise _misfit(self, scores, y)
        scores, y = _rows(scores), _rows(y)
        known = y >= 0  # False for NaN
        return self.count(scores, (y > 0.5) & known, known)

    def count(self, scores: Tensor, targets: Tensor, known: Tensor) -> Mapping[str, Tensor]:
        """Return the terms.

        Args:
            scores: logits, shape [M, L].
            targets: labels, shape [M, L] (bool).
            known: which of them count, shape [M, L] (bool).
        """
        raise NotImplementedError


class ValueMetric(Metric):
    """Base of metrics of real targets: `count` receives predictions, targets and what counts, float64 [M, D].

    Targets that are NaN do not count; they and their predictions are 0.
    """

    whole: ClassVar[bool] = False
    judges: ClassVar[Judges] = "values"

    limits: ClassVar[tuple[float, float]] = (0.0, math.inf)
    higher_is_better: ClassVar[bool] = False

    def terms(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Return the terms of the targets that count."""
        found, y = leading(outputs), leading(targets)
        if found.numel() != y.numel():
            raise _misfit(self, found, y)
        y = _rows(y).double()
        found, known = found.reshape(y.shape).double(), ~y.isnan()
        return self.count(found.masked_fill(~known, 0.0), y.masked_fill(~known, 0.0), known)

    def count(self, outputs: Tensor, targets: Tensor, known: Tensor) -> Mapping[str, Tensor]:
        """Return the terms.

        Args:
            outputs: predictions, shape [M, D].
            targets: shape [M, D].
            known: which of them count, shape [M, D] (bool).
        """
        raise NotImplementedError


class TokenMetric(Metric):
    """Base of metrics of token sequences: `count` receives predicted and true tokens, [N, T] (int64), -1 where there is none.

    Outputs are scores [N, V, T] or [N, T, V], of which the most probable token counts wherever the target does, or tokens.
    """

    whole: ClassVar[bool] = False

    def terms(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Return the terms of a batch."""
        found, y = leading(outputs), leading(targets)
        y = y.masked_fill(y < 0, -1).long()
        if found.is_floating_point() and found.dim() == 3 and len(found) == len(y):
            if found.shape[2:] == y.shape[1:]:
                found = found.argmax(1)
            elif found.shape[:-1] == y.shape:
                found = found.argmax(-1)
            else:
                raise _misfit(self, found, y)
            found = found.masked_fill(y < 0, -1)
        elif found.is_floating_point() or found.dim() != 2 or len(found) != len(y):
            raise _misfit(self, found, y)
        return self.count(_to_the_left(found.masked_fill(found < 0, -1).long()), _to_the_left(y))

    def count(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return the terms.

        Args:
            outputs: predicted tokens, shape [N, S]; -1 after the end.
            targets: true tokens, shape [N, T]; -1 after the end.
        """
        raise NotImplementedError


def _rows(values: Tensor) -> Tensor:
    """Return values as a matrix with a row for each sample."""
    return values.flatten(1) if values.dim() > 1 else values.reshape(-1, 1)


def _to_the_left(tokens: Tensor) -> Tensor:
    """Move the tokens of each sequence before the places without one."""
    order = (tokens < 0).to(torch.int64).argsort(dim=1, stable=True)
    return tokens.gather(1, order)


def _misfit(metric: Metric, outputs: Tensor, targets: Tensor) -> DataFormatError:
    return DataFormatError(
        f"{metric.figure} does not fit outputs of shape {list(outputs.shape)} and targets of shape {list(targets.shape)}; "
        "choose a metric for this kind of task (paceline metrics), or write one"
    )


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole in float64, and 0 where the whole is 0."""
    return torch.where(whole > 0, part.double() / whole.clamp(min=1e-300).double(), 0.0)


def mean_of(values: Tensor, present: Tensor) -> float:
    """Return the mean of the values that are present; NaN if none is."""
    return float(values[present].mean()) if bool(present.any()) else math.nan
