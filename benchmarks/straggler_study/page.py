"""The tables of docs/methods/stragglers.md: every rule whose five runs have ended, and the time to the target."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paceline.store.files import atomic_write
from straggler_study.curves import Curves, at, equal_time, planned, seconds_to
from straggler_study.tables import Found, goal, spread
from straggler_study.workloads import RULES, WHOLE, WORKLOADS

__all__ = ["PAGE", "named", "tables", "with_tables", "write"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods" / "stragglers.md"
BEGIN = "<!-- tables of all rules: written by benchmarks/stragglers.py --page -->"
END = "<!-- end of these tables -->"
SEEDS = (0, 1, 2, 3, 4)
SHOWN = (0.5, 0.65, 0.75)
TIMED = ("random", "random-stale", "random-segmented", "clip-mixed-max", "clip-segmented")


def named(rule: str) -> str:
    """Return a rule as `paceline compare` takes it, without the kept fraction."""
    method, options = RULES[rule]
    return f"`{method}{':' if options else ''}{','.join(f'{k}={_text(v)}' for k, v in options.items())}`"


def tables(book: Curves) -> str:
    """Return the tables, in Markdown."""
    found = {(load, p): _finished(book, load, p) for p in SHOWN for load in WORKLOADS}
    parts = []
    for p in SHOWN:
        columns = {load: _column(book, load, p, found[load, p]) for load in WORKLOADS if set(found[load, p]) - set(WHOLE)}
        if not columns:
            continue
        rules = [rule for rule in RULES if any(rule in column for column in columns.values())]
        rows = [[named(rule), *(column.get(rule, "–") for column in columns.values())] for rule in rules]
        parts += [f"**Slow clients keep p = {p:g} of their units.**", _markdown(["rule", *columns], rows)]
    timed = [row for p in SHOWN for load in WORKLOADS if (row := _times(load, p, found[load, p])) is not None]
    head = ["workload, p", "target", *(named(rule) for rule in ("none", *TIMED))]
    return "\n\n".join([*parts, "**Seconds to the target**, a point below what waiting for all ends with.", _markdown(head, timed)])


def with_tables(page: str, book: Curves) -> str:
    """Return the text of a page with today's tables between its marks.

    Raises:
        ValueError: for a page without the marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} or {END} on the page")
    return f"{before}{BEGIN}\n\n{tables(book)}\n\n{END}{after}"


def write(book: Curves) -> None:
    """Write the tables into the page."""
    atomic_write(PAGE, with_tables(PAGE.read_text(), book).encode(), mode=0o644)


def _finished(book: Curves, load: str, p: float) -> dict[str, Found]:
    """Return the rules of which all seeds have ended; runs that diverged are missing from their records."""
    kept: dict[str, Found] = {}
    for rule in RULES:
        found = Found.of(book, load, rule, SHOWN[0] if rule in WHOLE else p, list(RULES), SEEDS)
        if found.records and found.ended == len(SEEDS):
            kept[rule] = found
    return kept


def _column(book: Curves, load: str, p: float, found: Mapping[str, Found]) -> dict[str, str]:
    """Return of each rule: accuracy at equal time, after all rounds if they take longer, seconds per round, runs that diverged."""
    rounds, column = WORKLOADS[load].config["rounds"], {}
    until = {seed: equal_time(book, load, p, seed, list(RULES)) for seed in SEEDS}
    for rule, runs in found.items():
        equal = [at(record, until[seed]) for seed, record in runs.records.items()]
        whole = [planned(record, load) for record in runs.records.values()]
        late = any(seconds > 1.05 * until[seed] for (seconds, _), seed in zip(whole, runs.records, strict=True))
        parts = [_percent(equal), *([f"({_percent([a for _, a in whole])})"] if late else [])]
        lost = "" if len(equal) == len(SEEDS) else f", {len(SEEDS) - len(equal)} diverged"
        column[rule] = f"{' '.join(parts)}, {statistics.fmean(s for s, _ in whole) / rounds:.3g} s{lost}"
    return column


def _times(load: str, p: float, found: Mapping[str, Found]) -> list[str] | None:
    """Return a row of times to the target; None if nothing is to be compared."""
    if "none" not in found or not set(found) & set(TIMED):
        return None
    target = goal(found["none"].records.values())
    cells, base = [f"{load}, {p:g}", f"{100 * target:.1f} %"], list[float]()
    for rule in ("none", *TIMED):
        records = found[rule].records.values() if rule in found else ()
        reached = [seconds for record in records if math.isfinite(seconds := seconds_to(record, target))]
        if not reached:
            cells.append("never" if records else "–")
            continue
        mean, base = statistics.fmean(reached), base or reached
        gain = f" ({100 * (mean / statistics.fmean(base) - 1):+.0f} %)" if rule != "none" and len(reached) >= len(base) else ""
        cells.append(f"{mean:.0f}{gain}{'' if len(reached) == len(SEEDS) else f', {len(reached)} of {len(SEEDS)} seeds'}")
    return cells


def _percent(values: Sequence[float]) -> str:
    return f"{100 * statistics.fmean(values):.1f}{spread(values)}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
