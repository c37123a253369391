"""Comparison of runs: labels, means and deviations over seeds, ratios to the first method."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table

from paceline.results.display import bytes_text, percent, seconds_text, table

__all__ = ["Group", "RunEntry", "cells", "columns", "common_target", "comparison", "grouped", "labels"]

SKIPPED = frozenset({"method", "seed"})


@dataclass(frozen=True)
class RunEntry:
    """One finished run: configuration, summary and round records."""

    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]


@dataclass
class Group:
    """Runs that differ only in the seed."""

    label: str
    entries: list[RunEntry] = field(default_factory=list)

    def values(self, name: str) -> list[float]:
        """Return a figure from all summaries."""
        return [float(e.summary[name]) for e in self.entries if e.summary[name] is not None]

    def times_to(self, target: float) -> list[float]:
        """Return the virtual times at which runs first reached `target`; other runs are omitted."""
        times = (next((r["virtual_seconds"] for r in e.history if r.get("accuracy", -1.0) >= target), None) for e in self.entries)
        return [float(t) for t in times if t is not None]


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label for each configuration: its method, and the settings in which the configurations differ.

    Example:
        >>> labels([{"method": "clip", "options": {"network": True}}, {"method": "clip", "options": {}}])
        ['clip:network=true', 'clip']
    """
    flat = [_flat(config) for config in configs]
    names = {name for settings in flat for name in settings}
    differing = {n for n in names if len({repr(s.get(n)) for s in flat}) > 1}
    found = []
    for config, settings in zip(configs, flat, strict=True):
        setting = ",".join(f"{n}={_text(v)}" for n, v in settings.items() if n in differing)
        found.append(f"{config['method']}:{setting}" if setting else str(config["method"]))
    return found


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name not in SKIPPED:
            flat |= value if isinstance(value, Mapping) else {name: value}
    return flat


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def grouped(entries: Sequence[RunEntry]) -> list[Group]:
    """Group runs by label, in order of first occurrence."""
    groups: dict[str, Group] = {}
    for entry, label in zip(entries, labels([e.config for e in entries]), strict=True):
        groups.setdefault(label, Group(label)).entries.append(entry)
    return list(groups.values())


def common_target(groups: Sequence[Group]) -> float | None:
    """Return the highest accuracy, in whole percent, that every run reached; None if one was never evaluated."""
    best = [max((r["accuracy"] for r in e.history if "accuracy" in r), default=None) for g in groups for e in g.entries]
    known = [b for b in best if b is not None]
    if not known or len(known) < len(best):
        return None
    return int(100 * min(known) + 1e-9) / 100


def columns(target: float | None) -> list[str]:
    """Return the headings of a comparison's table after the method's."""
    goal = "time to target" if target is None else f"time to {100 * target:.3g} %"
    return ["seeds", "accuracy", "round time", goal, "total time", "bytes up", "bytes down"]


def cells(group: Group, first: Group, target: float | None) -> list[str]:
    """Return a group's row as texts: mean ± standard deviation over seeds, with ratios to the first group."""
    return [
        group.label,
        str(len(group.entries)),
        _spread(group.values("accuracy"), percent),
        _cell(group.values("round_seconds"), first.values("round_seconds"), seconds_text, group is first),
        _reached(group, first, target),
        _cell(group.values("total_seconds"), first.values("total_seconds"), seconds_text, group is first),
        _cell(group.values("bytes_up"), first.values("bytes_up"), bytes_text, group is first),
        _cell(group.values("bytes_down"), first.values("bytes_down"), bytes_text, group is first),
    ]


def comparison(title: str, groups: Sequence[Group], target: float | None) -> Table:
    """Return the table of all groups; see `cells`."""
    heads = columns(target)
    shown = table(title, "method", *heads, right=tuple(heads))
    for group in groups:
        shown.add_row(*map(escape, cells(group, groups[0], target)))
    return shown


def _reached(group: Group, first: Group, target: float | None) -> str:
    if target is None:
        return "–"
    times, base = group.times_to(target), first.times_to(target)
    if not times:
        return "not reached"
    whole = len(times) == len(group.entries)
    comparable = whole and len(base) == len(first.entries)
    text = _cell(times, base if comparable else [], seconds_text, group is first)
    return text if whole else f"{text} ({len(times)} of {len(group.entries)})"


def _cell(values: Sequence[float], base: Sequence[float], text: Callable[[float], str], first: bool) -> str:
    shown = _spread(values, text)
    if first or not values or not base or statistics.fmean(base) == 0:
        return shown
    return f"{shown} ×{statistics.fmean(values) / statistics.fmean(base):.2f}"


def _spread(values: Sequence[float], text: Callable[[float], str]) -> str:
    if not values:
        return "–"
    shown = text(statistics.fmean(values))
    if len(values) == 1:
        return shown
    spread = text(statistics.stdev(values))
    number, _, unit = shown.rpartition(" ")
    return f"{number if spread.endswith(f' {unit}') and ' ' not in number else shown} ± {spread}"
