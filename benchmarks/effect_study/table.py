"""The figures of all rows, as JSON for `paceline methods NAME` and as a page."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from effect_study.judge import judge
from effect_study.rows import SEARCH_SEEDS, Row, Side, label
from effect_study.runs import Book, Run
from effect_study.tuner import winner
from paceline.store.files import atomic_write

__all__ = ["final_runs", "judged", "line", "load", "result", "write"]

HERE = Path(__file__).resolve().parents[2]
FIGURES = HERE / "src" / "paceline" / "methods" / "effects.json"
PAGE = HERE / "docs" / "effects.md"
PAGES = HERE / "docs" / "methods"
FAILED = "<!-- claims that do not hold: written by benchmarks/effects.py -->"
END = "<!-- end of these claims -->"

INTRODUCTION = f"""# Measured effects of the methods

Each row tests a claim of a method's paper against a named baseline, on runs that are small enough for a laptop.

- **Search.** Method and baseline get the same search: the same number of settings, drawn from a grid over the fields that matter
  for each, run with the seeds {" and ".join(map(str, SEARCH_SEEDS))}. The best mean of the row's figure wins, or of the
  criterion stored with the row. Rows whose claim is about fixed settings, which are in the row's code, are marked *fixed*. The
  grids and the figures of every setting are stored with the row in `effects.json`. A field marked † won with the smallest or
  largest value of its grid.
- **Runs.** The winners run with other seeds, five or more. The effect is the mean paired difference, positive in the claim's direction,
  with its 95 % interval (Student's t). Times and bytes are compared as ratios: 2x means half as much. Some rows that five seeds
  left undecided, or whose grid, task or claim was changed afterwards, are reported on seeds that had not been used. *Revised* says what
  was changed, and what had been measured.
- **Verdict.** *Holds*: the interval lies beyond the margin, and the claimed size if there is one, on the claim's side. *Tie*: it lies
  within the margin. Otherwise the claim *does not hold*: the method is worse, the effect is smaller than claimed, the interval is
  too wide (undecided), or a figure is missing. Such rows stay.
"""


def final_runs(row: Row, book: Book) -> dict[str, list[Run]]:
    """Return the reported runs of both sides, with the winning settings."""
    return {name: [Run(row.trial(side, winner(row, side, book)[0]), s) for s in row.seeds] for name, side in row.sides.items()}


def result(row: Row, book: Book) -> dict[str, Any]:
    """Return everything that is stored of a row whose runs are in the book."""
    got: dict[str, Any] = {"seeds": list(row.seeds), "search_seeds": list(SEARCH_SEEDS) if row.trials > 1 else []}
    runs, records = final_runs(row, book), []
    for name, side in row.sides.items():
        setting, tried = winner(row, side, book)
        found = [book.get(run, row.metric) for run in runs[name]]
        if any(record is None for record in found):
            raise KeyError(f"{row.name}: not all runs are in the book")
        values = [record["figures"][label(row.metric)] for record in found if record is not None]
        if name == "baseline" and row.bound is not None:
            bounds = [book.get(run, row.bound) for run in runs[name]]
            values = [b["figures"][label(row.bound)] if math.isnan(v) and b else v for v, b in zip(values, bounds, strict=True)]
        got[name] = values
        got[f"{name}_search"] = {
            "trials": row.trials,
            "grid": {key: list(v) for key, v in side.search.items()},
            "winner": setting,
            "edges": side.at_edge(setting, row.trials) if tried else [],
            "tried": tried,
        }
        records += [record for record in found if record is not None]
    if not isinstance(row.baseline, Side):
        got["baseline"] = [float(row.baseline)] * len(row.seeds)
        got["baseline_search"] = {"trials": 0, "grid": {}, "winner": {}, "edges": [], "tried": []}
    got |= {"seconds": round(sum(r["seconds"] for r in records), 1), "date": max(r["date"] for r in records)}
    got["sources"] = sorted({r["source"] for r in records})
    got["device"] = f"{platform.machine()} CPU, 1 thread"
    return judged(row, got)


def judged(row: Row, got: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored figures with the row's claim and verdict as they are now."""
    return {
        **got,
        "of": row.method.name or row.method.method,
        "of_method": row.method.name if ":" in row.method.method else row.method.method,
        "versus": row.baseline.name or row.baseline.method if isinstance(row.baseline, Side) else f"{row.baseline:g}",
        "claim": row.claim,
        "figure": label(row.metric),
        "criterion": label(row.searched),
        "margin": row.margin,
        "ratio": row.ratio,
        "by": row.by,
        **asdict(judge(row, got["method"], got["baseline"])),
    }


def load() -> dict[str, Any]:
    """Return the stored figures by row."""
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


def line(row: Row, got: Mapping[str, Any]) -> str:
    """Return a row of the page."""
    verdict = got["verdict"] if got["verdict"] != "does not hold" else f"**does not hold** ({got['why']})"
    told = [f"{row.claim}.", row.note if got["verdict"] != "holds" else "", row.history]
    claim = " ".join(filter(None, told))
    config = row.config
    cells = [
        row.name,
        claim,
        f"{got['of']}: {_setting(got['method_search'])}",
        f"{got['versus']}: {_setting(got['baseline_search'])}",
        f"{_task(config)}, {config.get('partition', 'iid')}, {config.get('rounds', '')} rounds",
        got["figure"],
        *(_short(sum(got[side]) / len(got[side])) for side in ("method", "baseline")),
        _effect(row, got),
        f"{len(got['seeds'])}",
        verdict,
        got["date"],
    ]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def write(rows: Mapping[str, Row], new: Mapping[str, Any]) -> None:
    """Write figures and page; figures of rows that no longer exist are dropped."""
    figures = {name: judged(rows[name], got) for name, got in (load() | dict(new)).items() if name in rows and "seeds" in got}
    head = [
        INTRODUCTION,
        f"Command: `python benchmarks/effects.py`, {len(figures)} of {len(rows)} rows measured, on {platform.machine()} with "
        f"{os.cpu_count()} cores and no GPU; {sum(g['seconds'] for g in figures.values()) / 60:.0f} CPU minutes for the reported runs.",
        "",
        "| row | claim | method | baseline | run | figure | method's | baseline's | effect [95 % interval] | seeds | verdict | date |",
        "| --- " * 12 + "|",
    ]
    lines = [line(row, figures[name]) for name, row in rows.items() if name in figures]
    texts = {FIGURES: json.dumps(figures, indent=1, sort_keys=True), PAGE: "\n".join([*head, *lines])}
    for page in sorted({PAGES / f"{name.split('/')[0]}.md" for name in rows}):
        texts[page] = with_failed(page, rows, figures)
    for path, text in texts.items():
        atomic_write(path, f"{text}\n".encode(), mode=0o644)


def with_failed(page: Path, rows: Mapping[str, Row], figures: Mapping[str, Any]) -> str:
    """Return the page of a family of methods, at its beginning today's list of the claims that do not hold."""
    title, _, rest = page.read_text().strip().partition("\n\n")
    if rest.startswith(FAILED):
        rest = rest.partition(f"{END}\n\n")[2]
    failed = [
        f"- `{got['of_method']}`: {row.claim}: {label(row.metric)} {_effect(row, got)} against {got['versus']} ({got['why']})."
        for name, row in rows.items()
        if name.split("/")[0] == page.stem and (got := figures.get(name)) and got["verdict"] == "does not hold"
    ]
    head = [FAILED, "These claims do not hold in [our measurements](../effects.md):", "", *failed, END, ""] if failed else []
    return "\n".join([title, "", *head, rest])


def _setting(search: Mapping[str, Any]) -> str:
    if not search["trials"]:
        return "constant"
    fields = [f"{key}={value}{'†' if key in search['edges'] else ''}" for key, value in sorted(search["winner"].items())]
    return ", ".join(fields) if search["trials"] > 1 else "fixed"


def _task(config: Mapping[str, Any]) -> str:
    base = config.get("task_options", {}).get("of")
    return f"{config.get('task', '')} of {base}" if base else config.get("task", "")


def _effect(row: Row, got: Mapping[str, Any]) -> str:
    if math.isnan(got["effect"]):
        return "–"
    values = [got["effect"], got["low"], got["high"]]
    mean, low, high = [f"{math.exp(v):.3g}x" for v in values] if row.ratio else [f"{v:+.3g}" for v in values]
    return f"{mean} [{low}, {high}]"


def _short(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3g}" if abs(value) >= 100 or 0 < abs(value) < 0.01 else f"{value:.3f}"
