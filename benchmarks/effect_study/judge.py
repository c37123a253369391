"""Verdicts from paired differences: a 95 % interval of the mean over seeds, and a margin."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from effect_study.rows import Row

__all__ = ["Verdict", "judge"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """The effect of a row.

    Args:
        effect: mean paired difference, positive if the method is better; of logarithms if the row compares ratios.
        low, high: ends of its 95 % interval (Student's t over seeds).
        verdict: ``holds``, ``tie`` or ``does not hold``.
        why: ``worse``, ``smaller`` (an improvement below the claimed size), ``undecided`` or ``missing`` (a run without a figure)
            if the claim does not hold; otherwise empty.
    """

    effect: float
    low: float
    high: float
    verdict: Literal["holds", "tie", "does not hold"]
    why: Literal["", "worse", "smaller", "undecided", "missing"] = ""


def judge(row: Row, method: Sequence[float], baseline: Sequence[float]) -> Verdict:
    """Compare the figures of both sides, seed by seed.

    A claim of improvement holds if the whole interval lies above the margin and the claimed size. A claim of "no worse" holds if
    the whole interval lies above minus the margin. An interval inside the margin on both sides is a tie. Everything else does
    not hold. A baseline without a figure (its run diverged) is not evidence for the method: the row does not hold then.

    Raises:
        ValueError: for fewer than five seeds or sides of different length.
    """
    if len(method) != len(baseline) or len(method) < 5:
        raise ValueError(f"{row.name}: {len(method)} and {len(baseline)} figures; a verdict needs at least 5 pairs")
    if not all(map(math.isfinite, (*method, *baseline))):
        return Verdict(math.nan, math.nan, math.nan, "does not hold", "missing")
    gaps = [row.sign * (row.figures(m) - row.figures(b)) for m, b in zip(method, baseline, strict=True)]
    mean, spread = statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps))
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(gaps) - 1)) * spread
    low, high = mean - reach, mean + reach
    if low > row.least or (row.at_least and low > -row.margin):
        return Verdict(mean, low, high, "holds")
    if -row.margin <= low and high <= row.margin:
        return Verdict(mean, low, high, "tie")
    if high < -row.margin:
        return Verdict(mean, low, high, "does not hold", "worse")
    return Verdict(mean, low, high, "does not hold", "smaller" if row.margin < low and high <= row.least else "undecided")
