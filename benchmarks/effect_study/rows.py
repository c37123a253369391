"""A row of the table of effects: one claim, two sides, the same search for both."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

__all__ = ["FRESH", "FRESHER", "SIXTY", "THIRTY", "Metric", "Row", "Side", "Trial", "label", "load_rows"]

Metric = str | Callable[[Any], float]
"""An attribute of a run's summary, the last value of a record, or a function of the summary."""

SEEDS = (0, 1, 2, 3, 4)
"""Seeds of the reported runs."""

FRESH = tuple(range(5, 20))
"""Seeds of the reported runs of rows that were revised after a measurement with `SEEDS`: they had not been seen."""

FRESHER = tuple(range(20, 35))
"""Seeds of the reported runs of rows that were revised again, after a measurement with `FRESH`."""

THIRTY = tuple(range(35, 65))
"""Seeds of the reported runs of rows that `FRESH` left undecided: twice as many, which had not been seen."""

SIXTY = tuple(range(35, 95))
"""As `THIRTY`, for rows whose spread needs four times as many."""

SEARCH_SEEDS = (1000, 1001)
"""Seeds of the search; no reported run uses them."""

TRIALS = 8
"""Settings that are tried for each side of a row."""


@dataclass(frozen=True)
class Trial:
    """One run: everything except the seed.

    Args:
        method: name of a method, or ``module:Class``.
        options: fields of the method.
        config: fields of `RunConfig`.
        made: returns the parts that replace the task of the configuration, for a seed.
    """

    method: str
    options: Mapping[str, Any]
    config: Mapping[str, Any]
    made: Callable[[int], dict[str, Any]] | None = None

    def describe(self) -> dict[str, Any]:
        """Return a description in JSON types, equal for equal runs."""
        return {"method": self.method, "options": dict(self.options), "config": dict(self.config), "made": _origin(self.made)}


@dataclass(frozen=True)
class Side:
    """The method or the baseline of a row.

    Args:
        method: name of a method, or ``module:Class``.
        search: values to try, by field of the method. All combinations are candidates.
        options: fields with one value.
        config: fields of `RunConfig` that only this side has, for example its adversary.
        name: name in the table; the method's by default.
    """

    method: str
    search: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def points(self, trials: int) -> list[dict[str, Any]]:
        """Return `trials` different settings: all combinations, or a random subset of them.

        Raises:
            ValueError: if there are fewer combinations than trials; a side must not get a smaller search than the other.
        """
        grid = [dict(zip(self.search, values, strict=True)) for values in itertools.product(*self.search.values())]
        if len(grid) < trials:
            raise ValueError(f"{self.name or self.method}: {len(grid)} settings for {trials} trials; add values to its search")
        chosen = sorted(np.random.default_rng(0).permutation(len(grid))[:trials].tolist())
        return [grid[place] for place in chosen]

    def at_edge(self, point: Mapping[str, Any], trials: int) -> list[str]:
        """Return the numeric fields whose chosen value is the smallest or largest that was tried."""
        edges, tried = [], self.points(trials)
        for name in self.search:
            values = sorted({entry[name] for entry in tried}, key=repr)
            numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
            if len(numbers) == len(values) > 2 and point[name] in (min(numbers), max(numbers)):
                edges.append(name)
        return edges


@dataclass(frozen=True)
class Row:
    """A claim about a method against a baseline.

    Args:
        name: ``family/method``, unique.
        claim: what should hold, as a clause.
        method, baseline: the two sides; the baseline may be a constant, for claims such as "the accuracy is above 0.6".
        config: fields of `RunConfig` of both sides.
        metric: the figure.
        criterion: what the search maximises; the figure in the row's direction by default. Forgetting, for example, is least at
            a rate that learns nothing, so its rows search by accuracy.
        better: direction of improvement.
        margin: differences up to this are a tie, in units of the figure (of its logarithm if `ratio`).
        by: claimed size of the improvement, in units of the figure (a factor if `ratio`), for claims such as "less than half".
        at_least: the claim is "no worse than": it holds unless the method is worse by more than the margin.
        ratio: compare logarithms; for positive figures such as times and bytes.
        made: see `Trial`.
        bound: replaces a figure that the baseline does not have, for example the time of a whole run for a target that it never
            reached; it must be in the baseline's favour.
        trials: settings for each side; 1 means that nothing is tuned, for claims about fixed settings.
        seeds: seeds of the reported runs.
        note: shown if the claim does not hold.
        history: what was changed after a first measurement and what it had been, or what else was measured; always shown.
        quick: part of the quick table.
    """

    name: str
    claim: str
    method: Side
    baseline: Side | float
    config: Mapping[str, Any]
    metric: Metric = "accuracy"
    criterion: Metric | None = None
    better: Literal["higher", "lower"] = "higher"
    margin: float = 0.005
    by: float | None = None
    at_least: bool = False
    ratio: bool = False
    made: Callable[[int], dict[str, Any]] | None = None
    bound: Metric | None = None
    trials: int = TRIALS
    seeds: Sequence[int] = SEEDS
    note: str = ""
    history: str = ""
    quick: bool = False

    @property
    def sides(self) -> dict[str, Side]:
        """Return the sides that run, by name."""
        return {"method": self.method} | ({"baseline": self.baseline} if isinstance(self.baseline, Side) else {})

    @property
    def searched(self) -> Metric:
        """Return the metric that the search compares."""
        return self.metric if self.criterion is None else self.criterion

    @property
    def least(self) -> float:
        """Return the effect above which a claim of improvement holds."""
        by = 0.0 if self.by is None else self.by
        return max(self.margin, math.log(by) if self.ratio and by else by)

    @property
    def sign(self) -> float:
        """Return 1 if a larger figure is better, otherwise -1."""
        return 1.0 if self.better == "higher" else -1.0

    def trial(self, side: Side, point: Mapping[str, Any]) -> Trial:
        """Return the run of a side with the given setting."""
        config = {"vectorize": "off", **self.config, **side.config}
        return Trial(side.method, {**side.options, **point}, config, self.made)

    def figures(self, value: float) -> float:
        """Return a figure on the scale of comparison; not a number counts as the worst figure."""
        if math.isnan(value):
            return -math.inf if self.better == "higher" else math.inf
        return math.log(value) if self.ratio else value


def label(metric: Metric) -> str:
    """Return the name of a metric."""
    return metric if isinstance(metric, str) else metric.__name__


def load_rows() -> dict[str, Row]:
    """Return all rows of `effect_rows` by name.

    Raises:
        ValueError: if two rows have one name.
    """
    import effect_rows

    found: dict[str, Row] = {}
    for info in pkgutil.iter_modules(effect_rows.__path__):
        for row in importlib.import_module(f"effect_rows.{info.name}").ROWS:
            if row.name in found:
                raise ValueError(f"two rows are named {row.name}")
            found[row.name] = row
    return found


def _origin(made: Callable[..., Any] | None) -> Any:
    """Return where a function that makes a task comes from, with the arguments that it is bound to."""
    if made is None:
        return None
    if isinstance(made, functools.partial):
        return [_origin(made.func), list(made.args), dict(made.keywords)]
    return f"{made.__module__}:{made.__qualname__}"
