"""Comparison of runs: labels, means and deviations over seeds, ratios to the first method."""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table

from paceline.core.metrics import Primary
from paceline.results.display import bytes_text, score_text, seconds_text, table

__all__ = ["Group", "RunEntry", "caption", "cells", "columns", "common_main", "common_target", "comparison", "grouped", "labels"]

SKIPPED = frozenset({"method", "seed"})


@dataclass(frozen=True)
class RunEntry:
    """One finished run: configuration, summary and round records."""

    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]

    @property
    def main(self) -> Primary:
        """The primary figure."""
        limits = (0.0, 1.0) if self.summary.get("in_percent", True) else (0.0, math.inf)
        return Primary(str(self.summary.get("metric", "accuracy")), bool(self.summary.get("higher_is_better", True)), limits)

    @property
    def scores(self) -> list[tuple[float, float]]:
        """Virtual seconds and primary figure of each evaluation."""
        name = self.main.name
        return [(r["virtual_seconds"], r[name]) for r in self.history if not math.isnan(r.get(name, math.nan))]


@dataclass
class Group:
    """Runs that differ only in the seed."""

    label: str
    entries: list[RunEntry] = field(default_factory=list)

    def values(self, name: str) -> list[float]:
        """Return a figure from all summaries."""
        if name == "score":
            name = self.main.name if self.main.name in ("accuracy", "loss") else name
        return [float(e.summary[name]) for e in self.entries if e.summary.get(name) is not None]

    @property
    def main(self) -> Primary:
        """The primary figure, that of the first run."""
        return self.entries[0].main

    def times_to(self, target: float) -> list[float]:
        """Return the virtual times at which runs first reached `target`; other runs are omitted."""
        times = (next((at for at, value in e.scores if e.main.reached(value, target)), None) for e in self.entries)
        return [float(t) for t in times if t is not None]


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label for each configuration: its method, and the settings in which the configurations differ.

    Example:
        >>> labels([{"method": "clip", "options": {"network": True}}, {"method": "clip", "options": {}}])
        ['clip:network=true', 'clip']
    """
    sections = Counter(name for config in configs for name in _names(config))
    flat = [_flat(config, {name for name, _ in sections if sum(n == name for n, _ in sections) > 1}) for config in configs]
    names = {name for settings in flat for name in settings}
    differing = {n for n in names if len({repr(s.get(n)) for s in flat}) > 1}
    found: list[str] = []
    known: dict[str, dict[str, str]] = {}
    for config, settings in zip(configs, flat, strict=True):
        setting = ",".join(f"{n}={_text(v)}" for n, v in settings.items() if n in differing)
        label = f"{config['method']}:{setting}" if setting else str(config["method"])
        same = known.setdefault(label, {})
        number = same.setdefault(
            repr({n: settings.get(n) for n in sorted(differing)}), f"{label} ({len(same) + 1})" if same else label
        )
        found.append(number)
    return found


_SECTIONS = {"options": "", "task_options": "task.", "secure": "secure."}
"""What precedes a name that occurs in several tables of a configuration, or as a field of the run too."""


def _names(config: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return the names of all settings, each with its table."""
    own = {(name, "run") for name in config if name not in _SECTIONS}
    return own | {(name, table) for table in _SECTIONS for name in config.get(table) or {}}


def _flat(config: Mapping[str, Any], repeated: Container[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name in _SECTIONS:
            flat |= {f"{_SECTIONS[name] if n in repeated else ''}{n}": v for n, v in (value or {}).items()}
        elif name not in SKIPPED:
            flat[f"run.{name}" if name in repeated else name] = value
    return flat


def caption(configs: Sequence[Mapping[str, Any]]) -> str:
    """Return what runs have in common: task, partition, clients and rounds; ``several tasks`` where they differ.

    Example:
        >>> caption([{"task": "digits", "partition": "iid", "clients": 4}, {"task": "digits", "partition": "shards:2", "clients": 4}])
        'digits, several partitions, 4 clients'
    """
    parts = []
    for name, one, several in (
        ("task", "{}", "several tasks"),
        ("partition", "{}", "several partitions"),
        ("clients", "{} clients", "several numbers of clients"),
        ("rounds", "{} rounds", "several numbers of rounds"),
    ):
        found = list(dict.fromkeys(config[name] for config in configs if name in config))
        parts += [one.format(found[0]) if len(found) == 1 else several] if found else []
    return ", ".join(parts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def grouped(entries: Sequence[RunEntry]) -> list[Group]:
    """Group runs by label, in order of first occurrence."""
    groups: dict[str, Group] = {}
    for entry, label in zip(entries, labels([e.config for e in entries]), strict=True):
        groups.setdefault(label, Group(label)).entries.append(entry)
    return list(groups.values())


def common_target(groups: Sequence[Group]) -> float | None:
    """Return the best value that every run reached, rounded to whole percent or two digits; None if one was never evaluated.

    Runs with different primary metrics have none.
    """
    entries = [entry for group in groups for entry in group.entries]
    if len({entry.main for entry in entries}) != 1 or not all(entry.scores for entry in entries):
        return None
    main = entries[0].main
    best = [main.best([value for _, value in entry.scores]) for entry in entries]
    if main.in_percent:
        return int(100 * min(best) + 1e-9) / 100 if main.higher_is_better else math.ceil(100 * max(best) - 1e-9) / 100
    value = min(best) if main.higher_is_better else max(best)
    if not value or not math.isfinite(value):
        return None
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return (math.floor if main.higher_is_better else math.ceil)(value / unit) * unit


def common_main(groups: Sequence[Group]) -> Primary:
    """Return the primary figure of all runs; ``score`` if they have different ones, accuracy if there are none."""
    found = list(dict.fromkeys(entry.main for group in groups for entry in group.entries))
    return found[0] if len(found) == 1 else found[0]._replace(name="score") if found else Primary()


def columns(target: float | None, main: Primary | None = None) -> list[str]:
    """Return the headings of a comparison's table after the method's.

    Args:
        target: value of the primary figure.
        main: the primary figure; accuracy by default.
    """
    main = main or Primary()
    text = "" if target is None else f"{100 * target:.3g} %" if main.in_percent else f"{target:.3g}"
    goal = f"time to {text}" if text else "time to target"
    return ["seeds", main.name.replace("_", " "), "round time", goal, "total time", "bytes up", "bytes down"]


def cells(group: Group, first: Group, target: float | None) -> list[str]:
    """Return a group's row as texts: mean ± standard deviation over seeds, with ratios to the first group."""
    return [
        group.label,
        str(len(group.entries)),
        _spread(group.values("score"), functools.partial(score_text, in_percent=group.main.in_percent)),
        _cell(group.values("round_seconds"), first.values("round_seconds"), seconds_text, group is first),
        _reached(group, first, target),
        _cell(group.values("total_seconds"), first.values("total_seconds"), seconds_text, group is first),
        _cell(group.values("bytes_up"), first.values("bytes_up"), bytes_text, group is first),
        _cell(group.values("bytes_down"), first.values("bytes_down"), bytes_text, group is first),
    ]


def comparison(title: str, groups: Sequence[Group], target: float | None) -> Table:
    """Return the table of all groups; see `cells`."""
    heads = columns(target, common_main(groups))
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
