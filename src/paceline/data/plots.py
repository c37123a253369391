"""Plots of a partition: distribution of samples and classes over clients.

Up to 60 clients are drawn individually: as stacked bars if the classes can be distinguished by colour (up to 10), else
as bubbles. More clients are drawn as histograms of their sizes and classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from paceline.core.errors import DataError
from paceline.core.task import Task
from paceline.data.partition import Partition

__all__ = ["plot_partition"]

MOST_SHOWN = 60
"""Maximum number of clients drawn individually."""

_COLOURS = (
    "#4C78A8", "#F2A65A", "#59A14F", "#C9635F", "#9D7AB5", "#9C755F", "#EFA5C0", "#8A8A8A", "#D4C14A", "#76B7B2",
)  # fmt: skip
_STYLE: Any = {
    "font.size": 10.5,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "svg.hashsalt": "paceline",
}

Counts = np.ndarray[tuple[int, int], np.dtype[np.int64]]


def plot_partition(path: str | os.PathLike[str], partition: Partition, task: Task, title: str | None = None) -> Path:
    """Plot a partition and save the figure.

    Args:
        path: file; its extension selects the format (png, svg, pdf).
        partition: the partition.
        task: provides the class names.
        title: title of the figure; None for task and partition.

    Raises:
        DataError: the file cannot be written.
    """
    table = partition.table(task)
    classes = list(task.classes) or [str(i) for i in range(task.num_classes)] or ["all"]
    target = Path(path)
    with rc_context(_STYLE):
        if len(table) > MOST_SHOWN:
            figure = _distributions(table)
        elif task.num_classes <= len(_COLOURS):
            figure = _bars(table, classes)
        else:
            figure = _bubbles(table, classes)
        total = f"{int(table.sum()):,} samples, {len(table):,} clients"
        moved = f", {partition.moved} moved to fill empty clients" if partition.moved else ""
        figure.suptitle(f"{title or f'{task.name}: {partition.name}'}  ({total}{moved})", x=0.01, ha="left", fontweight="bold")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(target, dpi=140)
        except (OSError, ValueError) as error:
            raise DataError(f"{target} cannot be written: {error}") from error
    return target


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _bars(table: Counts, classes: Sequence[str]) -> Figure:
    """Stacked bars, one per client, and the fraction of each class within a client."""
    clients = np.arange(len(table))
    figure = _figure(11, max(3.4, 1.5 + 0.22 * len(table)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    sizes = table.sum(1)
    for axes, cells in ((left, table), (right, table / np.maximum(sizes, 1)[:, None])):
        begin = np.zeros(len(table))
        for code, name in enumerate(classes):
            axes.barh(clients, cells[:, code], left=begin, height=0.8, color=_COLOURS[code], label=name, lw=0)
            begin = begin + cells[:, code]
        axes.grid(axis="x")
    left.set(xlabel="samples", ylabel="client", title="samples by class")
    right.set(xlabel="share of the client's samples", title="mix of classes", xlim=(0, 1))
    left.set_ylim(len(table) - 0.4, -0.6)
    left.yaxis.set_major_locator(MaxNLocator(min(len(table), 30), integer=True))
    left.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    right.xaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", title="class", frameon=False)
    return figure


def _bubbles(table: Counts, classes: Sequence[str]) -> Figure:
    """One bubble for each class of each client, with area proportional to the number of samples, and the sizes beside."""
    names = ["␣" if n == " " else n if n.isprintable() else repr(n)[1:-1] for n in classes]
    figure = _figure(max(8.0, 2.5 + 0.155 * len(names)), max(3.4, 1.7 + 0.22 * len(table)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(6, 1))
    who, what = np.nonzero(table)
    most = max(int(table.max()), 1)
    left.scatter(what, who, s=95 * table[who, what] / most, color=_COLOURS[0], linewidths=0)
    left.set(xlabel="class", ylabel="client", title=f"samples by class (largest bubble: {most:,})")
    left.set_xticks(range(len(names)), names, fontsize=7.5 if max(map(len, names)) < 3 else 6.5)
    if max(map(len, names)) > 2:
        left.tick_params(axis="x", rotation=90)
    left.set_xlim(-1, len(names))
    left.set_ylim(len(table) - 0.4, -0.6)
    left.yaxis.set_major_locator(MaxNLocator(min(len(table), 30), integer=True))
    left.grid()
    right.barh(np.arange(len(table)), table.sum(1), height=0.8, color=_COLOURS[0], lw=0)
    right.set(xlabel="samples", title="size")
    right.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    right.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    right.grid(axis="x")
    return figure


def _distributions(table: Counts) -> Figure:
    """Histograms over clients: number of samples, number of classes, fraction of the largest class."""
    figure = _figure(12.5, 4.2)
    sizes, present = table.sum(1), (table > 0).sum(1)
    main = table.max(1)[sizes > 0] / sizes[sizes > 0]
    shown: tuple[tuple[Axes, Any, Any, str, str], ...] = tuple(
        zip(
            figure.subplots(1, 3),
            (sizes, present, main),
            (_edges(sizes), _edges(present), np.linspace(0, 1, 26)),
            ("samples of a client", "classes that a client has", "share of a client's largest class"),
            ("sizes", "classes", "how one-sided"),
            strict=True,
        )
    )
    for axes, values, edges, label, title in shown:
        axes.hist(values, bins=edges, color=_COLOURS[0], edgecolor="white", linewidth=0.6)
        axes.set(xlabel=label, ylabel="clients", title=title)
        middle = float(np.median(values)) if len(values) else 0.0
        text = f"{middle:.0%}" if title == "how one-sided" else f"{middle:,.0f}"
        axes.axvline(middle, color="#C9635F", lw=1.6, label=f"median {text}")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y")
        axes.legend(frameon=False)
    for axes in figure.axes[:2]:
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    figure.axes[2].xaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
    return figure


def _edges(values: Any) -> Any:
    """Return integer bin edges for at most 40 bins."""
    low, high = int(values.min()), int(values.max())
    width = max(1, -(-(high - low + 1) // 40))
    return np.arange(low, high + width + 1, width) - 0.5
