"""Metrics of predicted probabilities: their likelihood, squared error, and calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paceline.core.errors import ConfigError
from paceline.metrics.base import ClassMetric, ratio

__all__ = ["Brier", "CalibrationError", "LogLoss", "Perplexity"]


@dataclass(frozen=True)
class LogLoss(ClassMetric):
    """Mean negative log-likelihood of the targets, in nats."""

    higher_is_better: ClassVar[bool] = False
    limits: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def count(self, scores: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return the summed negative log-likelihood and the count."""
        logs = scores.double().log_softmax(1).gather(1, targets[:, None])
        return {"nats": -logs.sum(), "count": torch.tensor(len(targets))}

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean."""
        return {"log_loss": _mean(total, "nats")}


@dataclass(frozen=True)
class Perplexity(ClassMetric):
    """Perplexity per token: exp of the mean negative log-likelihood."""

    higher_is_better: ClassVar[bool] = False
    limits: ClassVar[tuple[float, float]] = (1.0, math.inf)

    def count(self, scores: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return the summed negative log-likelihood and the number of tokens."""
        return LogLoss().count(scores, targets)

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the perplexity; infinite above e^700."""
        mean = _mean(total, "nats")
        return {"perplexity": math.inf if mean > 700 else math.exp(mean)}


@dataclass(frozen=True)
class Brier(ClassMetric):
    """Brier score: mean squared distance between probabilities and the true class.

    Args:
        scale: divisor of the sum over classes: 1 gives values from 0 to 2; 2 halves them, which is the usual score of two
            classes.
    """

    scale: float = 2.0
    higher_is_better: ClassVar[bool] = False

    def count(self, scores: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return the summed squared distance and the count."""
        p = scores.double().softmax(1)
        right = p.gather(1, targets[:, None])[:, 0]
        distance = p.square().sum(1) + 1 - 2 * right
        return {"distance": distance.sum(), "count": torch.tensor(len(targets))}

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the score."""
        return {"brier": _mean(total, "distance") / self.scale}


@dataclass(frozen=True)
class CalibrationError(ClassMetric):
    """Expected calibration error: mean distance between confidence and accuracy over bins of confidence (Guo et al., 2017).

    Args:
        bins: bins of equal width; the figure is defined by their number.
    """

    bins: int = 15
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ConfigError(f"metric 'calibration_error': bins={self.bins} is below 1")

    def count(self, scores: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return summed confidences, hits and count of each bin, [bins]."""
        confidence, found = scores.double().softmax(1).max(1)
        place = (confidence * self.bins).ceil().nan_to_num(1.0).long().clamp(1, self.bins) - 1  # bins (a, b]
        return {
            "confidence": torch.zeros(self.bins, dtype=torch.float64, device=scores.device).index_add_(0, place, confidence),
            "hits": torch.bincount(place[found == targets], minlength=self.bins),
            "count": torch.bincount(place, minlength=self.bins),
        }

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return expected and maximum calibration error."""
        count = total["count"]
        if not int(count.sum()):
            return {"calibration_error": math.nan, "max_calibration_error": math.nan}
        gap = (ratio(total["confidence"], count) - ratio(total["hits"], count)).abs()
        expected = float((gap * count).sum() / count.sum())
        return {"calibration_error": expected, "max_calibration_error": float(gap.max())}


def _mean(total: Mapping[str, Tensor], name: str) -> float:
    count = int(total["count"])
    return float(total[name]) / count if count else math.nan
