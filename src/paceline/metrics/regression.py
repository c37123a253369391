"""Metrics of real targets. Several outputs per sample count equally."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paceline.core.digits import digits, exact
from paceline.metrics.base import ValueMetric

__all__ = ["MAE", "MAPE", "R2", "RMSE"]


@dataclass(frozen=True)
class MAE(ValueMetric):
    """Mean absolute error."""

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return "mae"

    def count(self, outputs: Tensor, targets: Tensor, known: Tensor) -> Mapping[str, Tensor]:
        """Return summed absolute errors and count."""
        return {"error": (outputs - targets).abs().sum(), "count": known.sum()}

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean absolute error."""
        return {"mae": _mean(total, "error")}


@dataclass(frozen=True)
class RMSE(ValueMetric):
    """Root of the mean squared error; the mean squared error too."""

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return "rmse"

    def count(self, outputs: Tensor, targets: Tensor, known: Tensor) -> Mapping[str, Tensor]:
        """Return summed squared errors and count."""
        return {"error": (outputs - targets).square().sum(), "count": known.sum()}

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return root mean squared error, 0 where the rounding of sums leaves a mean below 0, and mean squared error."""
        mean = _mean(total, "error")
        return {"rmse": math.sqrt(max(mean, 0.0)), "mse": mean}


@dataclass(frozen=True)
class MAPE(ValueMetric):
    """Mean absolute error relative to the target, as a fraction; targets below 2^-52 count as 2^-52."""

    @property
    def figure(self) -> str:
        """Name of the main figure."""
        return "mape"

    def count(self, outputs: Tensor, targets: Tensor, known: Tensor) -> Mapping[str, Tensor]:
        """Return summed relative errors and count."""
        return {"error": ((outputs - targets).abs() / targets.abs().clamp(min=2.0**-52)).sum(), "count": known.sum()}

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean relative error."""
        return {"mape": _mean(total, "error")}


@dataclass(frozen=True)
class R2(ValueMetric):
    """Coefficient of determination, 1 - sum (y - f)^2 / sum (y - mean y)^2, averaged over outputs.

    Targets and their squares are summed in whole digits, and the squares are centred in exact arithmetic: a mean that is
    large against the deviation costs no digits.
    """

    higher_is_better: ClassVar[bool] = True
    limits: ClassVar[tuple[float, float]] = (-math.inf, 1.0)

    def count(self, outputs: Tensor, targets: Tensor, known: Tensor) -> Mapping[str, Tensor]:
        """Return squared errors, digits of the summed targets and squared targets, and counts of each output."""
        high = targets.float().double()
        high = torch.where(high.isfinite(), high, targets)
        low = targets - high  # high**2, 2 high low and low**2 have at most 58 bits
        squares = digits(high.square()) + digits(2 * high * low) + digits(low.square())
        return {
            "error": (outputs - targets).square().sum(0),
            "count": known.sum(0),
            "targets": digits(targets).sum(0),
            "squares": squares.sum(0),
        }

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return R2; NaN for fewer than two targets, and -inf where errors face constant targets."""
        if not bool((total["count"] > 1).all()) or bool(total["squares"][:, -1].any()):
            return {"r2": math.nan}
        found, columns = [], zip(exact(total["targets"]), exact(total["squares"]), total["count"].tolist(), strict=True)
        for error, (first, second, count) in zip(total["error"].tolist(), columns, strict=True):
            centred = float(second - first**2 / count)
            found.append(1 - error / centred if centred > 0 else 1.0 if error == 0 else -math.inf)
        return {"r2": sum(found) / len(found)}


def _mean(total: Mapping[str, Tensor], name: str) -> float:
    count = int(total["count"])
    return float(total[name]) / count if count else math.nan
