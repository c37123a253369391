"""One search for every method and every baseline: the same number of trials, seeds of its own, one criterion."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

from effect_study.rows import SEARCH_SEEDS, Row, Side, label
from effect_study.runs import Book, Run

__all__ = ["search_runs", "winner"]


def search_runs(row: Row, side: Side) -> Iterator[tuple[dict[str, Any], list[Run]]]:
    """Yield each setting of a side's search and its runs, one for each search seed; nothing if only one setting exists."""
    if row.trials == 1:
        return
    for point in side.points(row.trials):
        yield point, [Run(row.trial(side, point), seed) for seed in SEARCH_SEEDS]


def winner(row: Row, side: Side, book: Book) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the setting with the best mean criterion over the search seeds, and the criterion of all settings.

    A setting with a run that has no figure is worse than any other. The first of equally good settings wins.

    Raises:
        KeyError: if a run of the search is not in the book.
    """
    tried = []
    for point, runs in search_runs(row, side):
        records = [book.get(run, row.searched) for run in runs]
        if any(record is None for record in records):
            raise KeyError(f"{row.name}: the search is not complete")
        values = [record["figures"][label(row.searched)] for record in records if record is not None]
        if row.criterion is None:
            values = [row.figures(value) for value in values]
        tried.append({"setting": point, "mean": statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan})
    if not tried:
        return {name: values[0] for name, values in side.search.items()}, []
    sign = row.sign if row.criterion is None else 1.0
    best = max(tried, key=lambda entry: -math.inf if math.isnan(entry["mean"]) else sign * entry["mean"])
    return best["setting"], tried
