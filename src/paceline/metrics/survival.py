"""Concordance of predicted risks with survival times, from a joint histogram."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from paceline.core.errors import ConfigError, DataFormatError
from paceline.core.metrics import Metric
from paceline.core.terms import leading
from paceline.metrics.ranking import bins_of

__all__ = ["Concordance"]


@dataclass(frozen=True)
class Concordance(Metric):
    """Harrell's C-index: share of comparable pairs in which the one with the earlier event has the higher predicted risk.

    A pair is comparable if the earlier time is that of an event. Equal risks count half. Times are placed in `bins` bins
    between 0 and `horizon`, risks in `bins` bins as in `paceline.metrics.ranking`; pairs whose times share a bin are left out, and
    ``concordance_resolution`` is how much such pairs and equal bins of risk can change the figure.

    Args:
        horizon: largest time, in the unit of the targets; later times count as censored there.
        bins: bins of times and of risks.
    """

    whole: ClassVar[bool] = False

    horizon: float
    bins: int = 200

    def __post_init__(self) -> None:
        if self.bins < 2 or not self.horizon > 0:
            raise ConfigError(f"metric 'concordance': horizon={self.horizon} and bins={self.bins} must be above 0 and 1")

    def terms(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Return the histogram of events and of censored times, int64 [bins, bins] (time, risk).

        Args:
            outputs: risks, shape [N] or [N, 1].
            targets: times and events, shape [N, 2]: an event is 1 if it happened at the time, 0 if the time is censored.
        """
        risk, y = leading(outputs), leading(targets)
        if y.dim() != 2 or y.shape[1] != 2 or risk.numel() != len(y):
            raise DataFormatError(
                f"concordance needs targets [N, 2] (time, event) and risks [N], not {list(y.shape)} and {list(risk.shape)}"
            )
        time, known = y[:, 0].double(), ~y[:, 0].isnan()
        event = (y[:, 1] > 0.5) & (time <= self.horizon)
        row = (time / self.horizon * self.bins).nan_to_num(0.0).clamp(0, self.bins - 1).long()
        column = bins_of(risk.reshape(-1), self.bins)
        cell = row * self.bins + column
        tables = [torch.bincount(cell[known & part], minlength=self.bins**2) for part in (event, ~event)]
        return {name: table.view(self.bins, self.bins) for name, table in zip(("events", "censored"), tables, strict=True)}

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the C-index and its resolution; NaN without comparable pairs."""
        events, everyone = total["events"].double(), (total["events"] + total["censored"]).double()
        later = everyone.flip(0).cumsum(0).flip(0) - everyone  # of each bin of risk, those with later times
        below = later.cumsum(1) - later
        pairs = float((events * later.sum(1, keepdim=True)).sum())
        ties = float((events * later).sum())
        shared = float((events.sum(1) * everyone.sum(1)).sum() - events.sum())
        if not pairs:
            return {"concordance": math.nan, "concordance_resolution": math.nan}
        value = (float((events * below).sum()) + ties / 2) / pairs
        return {"concordance": value, "concordance_resolution": (ties / 2 + shared) / (pairs + shared)}
