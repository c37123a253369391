"""Runs side by side: their table, means and deviations over seeds, and picture."""

from __future__ import annotations

import html
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from paceline.core.errors import UnknownNameError
from paceline.results.groups import (
    Group,
    RunEntry,
    caption,
    cells,
    columns,
    common_main,
    common_target,
    comparison,
    grouped,
    labels,
)
from paceline.results.result import Result
from paceline.store.run import RunFolder

if TYPE_CHECKING:
    from paceline.store.plots import Picture

__all__ = ["Comparison"]

_WIDE = 160

_FIGURES = (
    "accuracy",
    "loss",
    "score",
    "round_seconds",
    "total_seconds",
    "wall_seconds",
    "bytes_up",
    "bytes_down",
    "target_seconds",
)


@dataclass(repr=False)
class Comparison:
    """Several methods and seeds: one row for each label, that is for runs that differ in nothing but the seed.

    It is shown as a table in a terminal and in a notebook. Times are virtual; × is the ratio to the first row.

    Args:
        entries: the runs, in the order of the table.
        title: of the table.
        target: value of the primary metric whose time is shown; by default the best rounded one that every run reached.
        results: the runs' results with their models, in the same order; may be empty.
        folder: where the runs are kept, or None.
        failed: the error of each run of a sweep that failed, by its label and seed.

    Example:
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> table = pl.compare(["fedavg", "fedprox:mu=0.1"], blobs(), seeds=[0], clients=4, rounds=2)
        >>> list(table.mean("accuracy")), table.labels == [row["label"] for row in table.rows]
        (['fedavg', 'fedprox:mu=0.1'], True)
    """

    entries: Sequence[RunEntry]
    title: str = ""
    target: float | None = None
    results: Sequence[Result] = ()
    folder: Path | None = None
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.target = common_target(self.groups) if self.target is None else self.target

    @cached_property
    def groups(self) -> list[Group]:
        """The runs by label."""
        return grouped(self.entries)

    @property
    def labels(self) -> list[str]:
        """The label of each run: its method, and the settings in which runs differ."""
        return labels([entry.config for entry in self.entries])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A dict for each label: ``label``, ``seeds``, and mean and ``..._deviation`` of each figure.

        Figures are ``accuracy``, ``loss``, ``score`` (of the primary metric), ``round_seconds``, ``total_seconds``,
        ``target_seconds``, ``wall_seconds``, ``bytes_up`` and ``bytes_down``; None where no run has it, and a deviation of None
        where there are fewer than two.
        """
        return [
            {"label": g.label, "seeds": len(g.entries)}
            | {f"{n}{s}": f(v) for n, v in self._values(g).items() for s, f in (("", _mean), ("_deviation", _deviation))}
            for g in self.groups
        ]

    def ranked(self) -> Comparison:
        """Return the comparison with the best mean of the primary metric first; labels without one come last."""
        main = common_main(self.groups)

        def key(group: Group) -> tuple[bool, float]:
            score = _mean([v for v in group.values("score" if main.name != "accuracy" else "accuracy") if not math.isnan(v)])
            return (score is None, 0.0) if score is None else (False, -score if main.higher_is_better else score)

        entries = [entry for group in sorted(self.groups, key=key) for entry in group.entries]
        places = {id(entry): place for place, entry in enumerate(self.entries)}
        results = [self.results[places[id(entry)]] for entry in entries] if self.results else ()
        return replace(self, entries=entries, results=results)

    @property
    def best(self) -> dict[str, Any]:
        """The configuration of the first row, the best one of a sweep, without its seed: fields of `RunConfig`."""
        return {name: value for name, value in self.groups[0].entries[0].config.items() if name != "seed"}

    def mean(self, figure: str = "accuracy") -> dict[str, float | None]:
        """Return a figure's mean over seeds, by label; see `rows`. Raises `UnknownNameError` for another figure."""
        return self._by_label(figure, "")

    def deviation(self, figure: str = "accuracy") -> dict[str, float | None]:
        """Return a figure's standard deviation over seeds, by label; see `rows`. Raises `UnknownNameError` for another figure."""
        return self._by_label(figure, "_deviation")

    def plot(self, path: str | Path | None = None, x: str = "time") -> Picture:
        """Draw the primary metric, time of a round and upload; a notebook shows the figure that is returned.

        The title says which task and partition the runs have, and the axis of how many seeds the lines are.

        Args:
            path: where to save it too, as png, svg or pdf by its name.
            x: horizontal axis of the metric: ``time``, ``rounds`` or ``bytes``.

        Raises `StoreError` where no run has a history, or for another format, and `UnknownNameError` for another axis.
        """
        from paceline.store.plots import draw_compare, save

        runs = [
            {"method": group.label, "seed": entry.config.get("seed", 0), "history": entry.history}
            for group in self.groups
            for entry in group.entries
        ]
        title = caption([entry.config for entry in self.entries])
        figure = draw_compare(runs, title, self.target, common_main(self.groups), x)
        if path is not None:
            save(figure, Path(path))
        return figure

    def plot_round(self, path: str | Path | None = None) -> Picture | None:
        """Draw the last round of each label's first run: who computes, sends or waits, and in which phase.

        Args:
            path: where to save it too, as png, svg or pdf by its name.

        Returns:
            the figure; None where no run has kept a timeline.
        """
        from paceline.store.gantt import draw_rounds
        from paceline.store.plots import save

        first = {group.label: str(group.entries[0].summary.get("run") or "") for group in self.groups}
        timelines = {label: RunFolder(run).read_timeline() for label, run in first.items() if run}
        if not any(timelines.values()):
            return None
        figure = draw_rounds(timelines, f"One round: {caption([entry.config for entry in self.entries])}")
        if path is not None:
            save(figure, Path(path))
        return figure

    def plot_best(self, most: int = 10, x: str = "time") -> Path | None:
        """Draw the first rows into the folder, and return the file; None where nothing is kept.

        Args:
            most: number of rows.
            x: see `plot`.
        """
        if self.folder is None:
            return None
        entries = [entry for group in self.groups[:most] for entry in group.entries]
        replace(self, entries=entries, results=()).plot(self.folder / "compare.png", x)
        return self.folder / "compare.png"

    def table(self, most: int | None = None) -> Table:
        """Return the table, for rich; at most `most` rows of it."""
        return comparison(self.title, self.groups[:most], self.target)

    def _by_label(self, figure: str, suffix: str) -> dict[str, float | None]:
        if figure not in _FIGURES:
            raise UnknownNameError("figure", figure, _FIGURES)
        return {row["label"]: row[figure + suffix] for row in self.rows}

    def _values(self, group: Group) -> dict[str, list[float]]:
        times = [] if self.target is None else group.times_to(self.target)
        return {name: group.values(name) for name in _FIGURES if name != "target_seconds"} | {"target_seconds": times}

    def __rich__(self) -> Table:
        return self.table()

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDE, highlight=False)
        console.print(self.table())
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()

    def _repr_html_(self) -> str:
        rows = [
            ["method", *columns(self.target, common_main(self.groups))],
            *(cells(g, self.groups[0], self.target) for g in self.groups),
        ]
        lines = [f"<caption>{html.escape(self.title)}</caption>"] if self.title else []
        for tag, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True):
            lines.append("<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in row) + "</tr>")
        return "<table>" + "".join(lines) + "</table>"


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
