"""Plots of runs: the primary metric over virtual time, rounds or bytes; seconds per round; bytes in both directions.

A run is a dict ``{"method", "seed", "history"}`` whose history is a list of records with ``round``,
``virtual_seconds``, ``accuracy``, ``loss``, ``round_seconds``, ``bytes_up`` and ``bytes_down``. Further keys
that end in ``_seconds`` (``compute_seconds``, ``upload_seconds`` ...) split a round's bar into parts.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from paceline.core.errors import StoreError, UnknownNameError
from paceline.core.metrics import Primary
from paceline.store.files import atomic_write
from paceline.store.run import RunFolder

__all__ = ["AXES", "PALETTE", "STYLE", "Picture", "draw_compare", "layout", "plot_compare", "plot_run", "save"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
"""Colour-blind safe palette (Okabe and Ito); further lines repeat it dashed."""

_PARTS = ("#4C78A8", "#F2A65A", "#9D7AB5", "#7FB77E", "#C9635F", "#B9B9B9")
_HATCHES = ("", "///", "...", "xxx")
"""Patterns of further parts, whose colours repeat."""

AXES = ("time", "rounds", "bytes")
"""What a curve is drawn over: virtual time, rounds, or bytes of both directions and all clients since the start."""

STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "figure.facecolor": "white",
    "svg.hashsalt": "paceline",
}
_NOT_PARTS = {"virtual_seconds", "round_seconds", "wall_seconds", "evaluation_seconds"}

History = Sequence[Mapping[str, Any]]


class Picture(Figure):
    """A figure that a notebook shows where it is a cell's value; no state of pyplot is touched."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def plot_compare(
    path: str | os.PathLike[str],
    runs: Sequence[Mapping[str, Any]],
    title: str | None = None,
    target: float | None = None,
    x: str = "time",
) -> Path:
    """Plot several methods side by side and save the figure as png, svg or pdf, by the extension; see `draw_compare`."""
    figure = draw_compare(runs, title, target, x=x)
    return save(figure, Path(path))


def draw_compare(
    runs: Sequence[Mapping[str, Any]],
    title: str | None = None,
    target: float | None = None,
    main: Primary | None = None,
    x: str = "time",
) -> Picture:
    """Draw methods side by side.

    Seeds of one method are averaged: a line is the mean, its band extends from the minimum to the maximum, which the figure says.

    Args:
        runs: runs as described in the module docstring.
        title: title of the figure.
        target: value of the primary figure, to mark with a horizontal line.
        main: the primary figure; accuracy by default.
        x: horizontal axis of the primary figure: time, rounds or bytes.

    Raises:
        StoreError: no run has a history, or the format is not supported.
        UnknownNameError: there is no such axis.
    """
    _check_axis(x)
    methods: dict[str, list[History]] = {}
    seeds: dict[str, set[Any]] = {}
    for run in runs:
        if run["history"]:
            methods.setdefault(str(run["method"]), []).append(run["history"])
            seeds.setdefault(str(run["method"]), set()).add(run.get("seed", 0))
    if not methods:
        raise StoreError("nothing to plot: no run has completed a round")
    with rc_context(STYLE):
        tall = max(4.3, 2.0 + 0.42 * len(methods))
        figure = Picture(figsize=(14.5, tall + (0.4 if title else 0)), layout=layout())
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.9, 1, 0.75))
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold")
        _scores(left, methods, target, main or Primary(), x, _bands(list(seeds.values())))
        _seconds(middle, methods)
        _bytes(right, methods)
    return figure


def plot_run(folder: RunFolder | str | os.PathLike[str], x: str = "time") -> Path:
    """Plot one run's primary metric, loss, seconds and bytes; save ``plots/run.png`` in its folder.

    Args:
        folder: of the run.
        x: horizontal axis of metric and loss: time, rounds or bytes.

    Raises:
        StoreError: the run has no records yet.
        UnknownNameError: there is no such axis.
    """
    _check_axis(x)
    folder = folder if isinstance(folder, RunFolder) else RunFolder.open(folder)
    history = folder.read_metrics()
    if not history:
        raise StoreError(f"nothing to plot: {folder.path} has no metrics yet")
    config = folder.read_config()
    rounds = [r["round"] for r in history]
    with rc_context(STYLE):
        figure = Figure(figsize=(14.5, 4.7), layout=layout())
        text = ", ".join(str(config[k]) for k in ("method", "task", "partition", "fleet") if k in config)
        text += f", seed {config['seed']}" if "seed" in config else ""
        name = f"{folder.name}: {text}" if text else folder.name
        figure.suptitle(name, x=0.01, ha="left", fontsize=15, fontweight="bold")
        axes = figure.subplots(1, 4)
        places = _places(history, x)
        scale, label = _scaled(x, max(places.values()))
        name = next((str(r["metric"]) for r in history if "metric" in r), "accuracy")
        first = ("Accuracy (%)", 100) if name == "accuracy" else (name.replace("_", " ").capitalize(), 1)
        for ax, key, heading, factor, colour in (
            (axes[0], name, *first, PALETTE[0]),
            (axes[1], "loss", "Loss", 1, PALETTE[1]),
        ):
            points = [(places[r["round"]] / scale, factor * r[key]) for r in history if _has(r, key)]
            if points:
                at, y = zip(*points, strict=True)
                ax.plot(at, y, color=colour, lw=2.2, marker="o" if len(at) < 4 else None)
                ax.annotate(f"{y[-1]:.3g}", (at[-1], y[-1]), (4, 4), textcoords="offset points", color=colour)
            ax.set(title=heading, xlabel=label, xlim=(0, None))
            ax.margins(x=0.12)
        axes[2].bar(rounds, [r["round_seconds"] for r in history], width=0.85, color=PALETTE[2])
        axes[2].set(title="Seconds of a round", xlabel="round", ylabel="virtual seconds")
        for key, label, colour in (("bytes_up", "up", PALETTE[3]), ("bytes_down", "down", PALETTE[5])):
            values = [r[key] / 1e6 for r in history]
            axes[3].plot(rounds, values, lw=2.2, color=colour, label=label, ls="-" if label == "up" else "--")
        axes[3].set(title="Bytes of a round", xlabel="round", ylabel="MB, all clients", ylim=(0, None))
        axes[3].legend(frameon=False)
        for ax in axes[2:]:
            ax.xaxis.get_major_locator().set_params(integer=True)
        return save(figure, folder.plots / "run.png")


def layout() -> ConstrainedLayoutEngine:
    """Return the layout of a figure: axes that do not overlap."""
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.04)


def _check_axis(x: str) -> None:
    if x not in AXES:
        raise UnknownNameError("axis", x, AXES)


def _places(history: History, x: str) -> dict[int, float]:
    """Return the place of each round on the horizontal axis."""
    if x == "rounds":
        return {r["round"]: float(r["round"]) for r in history}
    if x == "time":
        return {r["round"]: r["virtual_seconds"] for r in history}
    sent = np.cumsum([r["bytes_up"] + r["bytes_down"] for r in history], dtype=float)
    return {r["round"]: float(total) for r, total in zip(history, sent, strict=True)}


def _scaled(x: str, largest: float) -> tuple[float, str]:
    """Return the unit of the horizontal axis, and its label."""
    if x == "rounds":
        return 1.0, "rounds"
    if x == "time":
        scale, unit = _time_unit(largest)
        return scale, f"virtual time ({unit})"
    scale, unit = next(((size, name) for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if largest >= size), (1.0, "B"))
    return scale, f"sent and received by all clients ({unit})"


def _bands(seeds: Sequence[set[Any]]) -> str:
    """Return what lines and bands are, and of how many seeds."""
    few, most = min(map(len, seeds)), max(map(len, seeds))
    if most == 1:
        return "one seed each" if len(seeds) > 1 else "one seed"
    return f"line: mean of {most if few == most else f'{few} to {most}'} seeds; band: lowest to highest seed"


def _scores(ax: Any, methods: Mapping[str, list[History]], target: float | None, main: Primary, x: str, bands: str) -> None:
    """Draw a line for each method, labelled at its end."""
    factor, unit = (100, " (%)") if main.in_percent else (1, "")
    curves = {name: _curve(seeds, main.name, factor, x) for name, seeds in methods.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    text, over = main.name.replace("_", " "), {"time": "virtual time"}.get(x, x)
    ax.set(title=f"{text[:1].upper()}{text[1:]} over {over}", ylabel=f"test {text}{unit}")
    if not curves:
        return
    scale, label = _scaled(x, max(at[-1] for at, _ in curves.values()))
    ends = []
    for number, (name, (at, ys)) in enumerate(curves.items()):
        colour, dash = PALETTE[number % len(PALETTE)], "-" if number < len(PALETTE) else "--"
        mean = ys.mean(0)
        ax.plot(at / scale, mean, color=colour, lw=2.3, ls=dash, marker="o" if len(at) < 4 else None)
        if len(ys) > 1:
            ax.fill_between(at / scale, ys.min(0), ys.max(0), color=colour, alpha=0.15, lw=0)
        ax.plot(at[-1] / scale, mean[-1], "o", color=colour, ms=5, clip_on=False)
        ends.append((float(mean[-1]), at[-1] / scale, name, colour))
    latest = max(end[1] for end in ends)
    if target is not None:
        ax.axhline(factor * target, color="#555555", lw=1, ls=(0, (6, 4)), zorder=1)
        ax.annotate(f"target {factor * target:g}", (0, factor * target), (4, 3), textcoords="offset points", fontsize=9)
    low, high = ax.get_ylim()
    ax.set(xlabel=f"{label}\n{bands}", xlim=(0, latest), ylim=(low, high))
    places = _spread([end[0] for end in ends], 0.062 * (high - low), low, high)
    for (y, x, name, colour), place in zip(ends, places, strict=True):
        ax.plot([x, latest], [y, y], color=colour, lw=1.2, ls=":", alpha=0.8)
        ax.plot([latest, latest * 1.03], [y, place], color=colour, lw=1.2, ls=":", alpha=0.8, clip_on=False)
        text = f"{name}  {y:.1f}" if main.in_percent else f"{name}  {y:.4g}"
        ax.text(latest * 1.04, place, text, color=colour, va="center", fontsize=10.5, fontweight="bold")


def _seconds(ax: Any, methods: Mapping[str, list[History]]) -> None:
    """Draw a bar for each method, split into the parts of a round if the records contain them."""
    records = {name: [r for history in seeds for r in history] for name, seeds in methods.items()}
    parts: list[str] = []
    for each in records.values():
        for key in each[0]:
            if key.endswith("_seconds") and key not in _NOT_PARTS and key not in parts:
                parts.append(key)
    totals = {name: _mean(each, "round_seconds") for name, each in records.items()}
    begin = dict.fromkeys(records, 0.0)
    for number, key in enumerate(parts):
        widths = {name: _mean(each, key) for name, each in records.items()}
        label = key.removesuffix("_seconds").replace("_", " ")
        hatch = _HATCHES[number // (len(_PARTS) - 1) % len(_HATCHES)]
        _bars(ax, widths, begin, _PARTS[number % (len(_PARTS) - 1)], label, hatch)
        begin = {name: begin[name] + widths[name] for name in records}
    rest = {name: max(totals[name] - begin[name], 0.0) for name in records}
    if not parts:
        _bars(ax, rest, begin, [PALETTE[i % len(PALETTE)] for i in range(len(rest))], None)
    elif any(rest[name] > 0.01 * totals[name] for name in records):
        _bars(ax, rest, begin, _PARTS[-1], "other")
    _finish_bars(ax, totals, "s")
    ax.set(title="Time of a round", xlabel="virtual seconds, mean")
    if parts:
        columns = min(len(parts) + 1, 3)
        ax.legend(loc="upper right", bbox_to_anchor=(1.0, -0.16), ncols=columns, frameon=False, fontsize=10)


def _bytes(ax: Any, methods: Mapping[str, list[History]]) -> None:
    """Draw two bars for each method: what its clients send above what they receive."""
    records = {name: [r for history in seeds for r in history] for name, seeds in methods.items()}
    sent = {(name, way): _mean(each, f"bytes_{way}") / 1e6 for name, each in records.items() for way in ("up", "down")}
    for (place, value), text in zip(enumerate(sent.values()), _numbers(list(sent.values()), "MB"), strict=True):
        number, down = divmod(place, 2)
        at, colour = number + (0.18 if down else -0.18), PALETTE[number % len(PALETTE)]
        ax.barh(at, value, height=0.32, color=colour, alpha=0.45 if down else 1.0, hatch="////" if down else "", edgecolor="white")
        ax.annotate(text, (value, at), (5, 0), textcoords="offset points", va="center", fontweight="bold", fontsize=9.5)
    ax.set_yticks(range(len(records)), list(records))
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0, labelleft=False)
    ax.set_xlim(0, (max(sent.values()) or 1.0) * 1.35)
    ax.set(title="Bytes of a round", xlabel="MB, all clients, mean\nfull: sent; hatched: received")


def _bars(
    ax: Any, widths: Mapping[str, float], begin: Mapping[str, float], colour: Any, label: str | None, hatch: str = ""
) -> None:
    left = [begin[name] for name in widths]
    ax.barh(range(len(widths)), list(widths.values()), left=left, height=0.62, color=colour, label=label, hatch=hatch)


def _numbers(values: Sequence[float], unit: str) -> list[str]:
    """Return texts with 3 significant digits, or 4 if values that look alike with 3 are told apart by them."""
    digits = 3 if len({f"{v:.3g}" for v in values}) == len({f"{v:.4g}" for v in values}) else 4
    return [f"{float(f'{v:.{digits}g}'):.{max(digits, 6)}g} {unit}" for v in values]


def _finish_bars(ax: Any, totals: Mapping[str, float], unit: str) -> None:
    ax.set_yticks(range(len(totals)), list(totals))
    for number, label in enumerate(ax.get_yticklabels()):
        label.set(color=PALETTE[number % len(PALETTE)], fontweight="bold")
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, (max(totals.values()) or 1.0) * 1.25)
    for place, (value, text) in enumerate(zip(totals.values(), _numbers(list(totals.values()), unit), strict=True)):
        ax.annotate(text, (value, place), (5, 0), textcoords="offset points", va="center", fontweight="bold")


def _curve(
    seeds: Sequence[History], figure: str = "accuracy", factor: float = 100, x: str = "time"
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return mean places on the horizontal axis, shape [R], and a figure times a factor, [seeds, R], at rounds all seeds have."""
    scored = [{r["round"]: r for r in history if _has(r, figure)} for history in seeds]
    common = sorted(set.intersection(*(set(each) for each in scored)))
    at = np.array([[places[r] for r in common] for places in (_places(history, x) for history in seeds)], dtype=float)
    y = np.array([[factor * each[r][figure] for r in common] for each in scored], dtype=float)
    return at.mean(0), y


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return label positions near the wanted ones, at least `gap` apart and within low..high where possible."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [0.0] * len(wanted)
    floor = low
    for i in order:
        places[i] = max(wanted[i], floor)
        floor = places[i] + gap
    ceiling = high
    for i in reversed(order):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places


def _has(record: Mapping[str, Any], key: str) -> bool:
    value = record.get(key)
    return value is not None and math.isfinite(value)


def _mean(records: History, key: str) -> float:
    return float(np.mean([r.get(key, 0.0) for r in records]))


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds < 300:
        return 1.0, "s"
    return (60.0, "min") if seconds < 3 * 3600 else (3600.0, "h")


def save(figure: Figure, path: Path) -> Path:
    """Save a picture; its format by the name: png, svg or pdf."""
    buffer = io.BytesIO()
    kind = path.suffix.lstrip(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise StoreError(f"{path}: plots cannot be saved as {kind!r}; use png, svg or pdf")
    with rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=150)
    atomic_write(path, buffer.getvalue(), durable=False)
    return path
