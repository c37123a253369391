"""Spread of the primary figure over clients, from sums alone: of values it shows how many clients have each, not which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from paceline.core.metrics import Metric, Primary, measured, primary

__all__ = ["BINS", "spread", "spread_figures"]

BINS = 101
"""Number of bins in the histogram of a figure between 0 and 1: one per percentage point."""

_TOP = 1e6
"""Largest magnitude of a client's figure in the mean and deviation over clients."""

_WIDE = 1001
"""Number of bins in the histogram of a figure without two limits: logarithmic from 1e-6 to 1e6, 2.8 % each."""


def spread(sums: Mapping[str, Any], metrics: Sequence[Metric] = (), main: Primary | None = None) -> dict[str, Any]:
    """Add terms to a client's evaluation from which `spread_figures` computes the spread of the primary figure over clients.

    Args:
        sums: ``correct`` and ``count`` (and more, passed through) as returned by `paceline.core.evaluation.evaluate`.
        metrics: metrics of the run.
        main: the primary figure; that of the first metric, or accuracy, by default.
    """
    main = main or primary(metrics)
    value = _own(sums, metrics, main)
    scale = _Scale(main)
    known = sums["count"] > 0 and math.isfinite(value)
    value = min(max(value, -_TOP), _TOP) if known else 0.0
    bins = torch.zeros(scale.bins, dtype=torch.int64)
    if known:
        bins[scale.place(value)] = 1
    return {**sums, "bins": bins, "clients": int(known), "scores": value, "squares": value**2}


def _own(sums: Mapping[str, Any], metrics: Sequence[Metric], main: Primary) -> float:
    """Return the primary figure of one client; NaN where it has none."""
    if metrics:
        return measured(sums, metrics[:1]).get(main.name, math.nan)
    count = max(sums["count"], 1)
    if main.name == "loss":
        return float(sums["loss"]) / float(count)
    classified = "class_count" not in sums or int(sums["class_count"].sum()) > 0
    return float(sums["correct"]) / float(count) if classified else math.nan


def spread_figures(total: Mapping[str, Any], main: Primary | None = None, worst: float = 0.1) -> dict[str, float]:
    """Return mean, worst part and standard deviation of the clients' primary figures, from the sum of their `spread`.

    The mean of the worst clients is computed from the histogram and is exact to half a bin: half a percentage point between
    0 and 1, 1.4 % of the value where the figure has no two limits. Without clients all figures are NaN.

    Args:
        total: sum of the clients' `spread`.
        main: the primary figure; accuracy by default.
        worst: fraction of the clients in the worst part; at least one client.
    """
    main = main or Primary()
    names = (f"client_{main.name}", f"worst_client_{main.name}", "client_deviation")
    clients = int(total["clients"])
    if clients <= 0:
        return dict.fromkeys(names, math.nan)
    scale = _Scale(main)
    mean = total["scores"] / clients
    # untrusted sums: clip counts to 0 .. number of clients
    counts = np.clip(np.rint(np.asarray(total["bins"], dtype=np.float64)), 0, clients)
    values = np.array([scale.value(place) for place in range(scale.bins)])
    if not main.higher_is_better:
        counts, values = counts[::-1], values[::-1]
    taken = np.diff(np.minimum(np.cumsum(counts), max(round(worst * clients), 1)), prepend=0)
    least = float(taken @ values / max(taken.sum(), 1))
    return dict(zip(names, (mean, least, math.sqrt(max(total["squares"] / clients - mean**2, 0.0))), strict=True))


class _Scale:
    """Histogram of a figure: linear between two limits, otherwise logarithmic in the distance from the limit, or from 0."""

    def __init__(self, main: Primary) -> None:
        self.low, self.high = main.limits
        self.linear = math.isfinite(self.high - self.low)
        self.bins = round((BINS - 1) * (self.high - self.low)) + 1 if self.linear else _WIDE

    def place(self, value: float) -> int:
        """Return the bin of a value."""
        if self.linear:
            part = (value - self.low) / (self.high - self.low)
        elif math.isfinite(self.low):
            part = _log_part(value - self.low)
        elif math.isfinite(self.high):
            part = 1 - _log_part(self.high - value)
        else:
            part = 0.5 + math.copysign(0.5, value) * _log_part(abs(value))
        return round(min(max(part, 0.0), 1.0) * (self.bins - 1))

    def value(self, place: int) -> float:
        """Return the value in the middle of a bin."""
        part = place / (self.bins - 1)
        if self.linear:
            return part if (self.low, self.high) == (0.0, 1.0) else self.low + part * (self.high - self.low)
        if math.isfinite(self.low):
            return self.low + _distance(part)
        if math.isfinite(self.high):
            return self.high - _distance(1 - part)
        return math.copysign(_distance(abs(2 * part - 1)), part - 0.5)


def _log_part(distance: float) -> float:
    return min(max((math.log10(max(distance, 1e-300)) + 6) / 12, 0.0), 1.0)


def _distance(part: float) -> float:
    return float(10 ** (12 * part - 6)) if part > 0 else 0.0
