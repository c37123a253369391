"""Directional effects of the methods, measured: each against its named baseline, seed by seed.

    python benchmarks/effects.py                     all rows; writes docs/effects.md
    python benchmarks/effects.py fedfix afl          rows whose name contains one of these words
    python benchmarks/effects.py --list

A row holds when the mean over the seeds of (method - baseline) points the way that its claim says. Rows that do
not hold stay in the table. Rows that were not run keep the figures of their last run, which lie in
src/paceline/methods/effects.json, from where `paceline methods NAME` shows them.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import os
import pkgutil
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parent / "src" / "paceline" / "methods" / "effects.json"
TABLE = HERE.parent / "docs" / "effects.md"
SEEDS = (0, 1, 2)


def load_rows() -> dict[str, dict[str, Any]]:
    """Return all rows by name: family/method, numbered where a method has several."""
    sys.path.insert(0, str(HERE))
    import effect_rows

    found: dict[str, dict[str, Any]] = {}
    for info in pkgutil.iter_modules(effect_rows.__path__):
        for row in importlib.import_module(f"effect_rows.{info.name}").ROWS:
            base = row.get("name") or f"{info.name}/{row['method']}"
            name, number = base, 2
            while name in found:
                name, number = f"{base}-{number}", number + 1
            found[name] = row
    return found


def metric(row: dict[str, Any]) -> Callable[[Any], float]:
    """Return what reads a row's figure from a summary: an attribute, or the last value of a record."""
    wanted = row.get("metric", "accuracy")
    if callable(wanted):
        return wanted

    def read(summary: Any) -> float:
        value = getattr(summary, wanted, None)
        if value is None and not hasattr(summary, wanted):
            value = next((r[wanted] for r in reversed(summary.history) if wanted in r), None)
        return math.nan if value is None else float(value)

    return read


def measure(name: str, seed: int) -> tuple[float, float, float]:
    """Return the figures of method and baseline for one seed, and the seconds that both took."""
    import torch

    from paceline.run import RunConfig, run

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row, started = load_rows()[name], time.perf_counter()
    values = []
    for side in ("method", "baseline"):
        config = {"vectorize": "off", **row.get("config", {}), **row.get(f"{side}_config", {}), "seed": seed}
        config |= {"method": row[side], "options": row.get(f"{side}_options", {})}
        values.append(metric(row)(run(RunConfig.build(config))))
    return values[0], values[1], time.perf_counter() - started


def judge(row: dict[str, Any], pairs: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Return a row's figures; a figure that is missing (a target never reached) counts as the worst one."""
    sign = 1.0 if row.get("direction", "higher") == "higher" else -1.0
    effects = [_difference(m, b, sign) for m, b, _ in pairs]
    mean = statistics.fmean(effects)
    return {
        "of": row["method"],
        "versus": row["baseline"],
        "claim": row["claim"],
        "figure": label(row),
        "method": [m for m, _, _ in pairs],
        "baseline": [b for _, b, _ in pairs],
        "effect": mean,
        "deviation": statistics.stdev(effects)
        if len(effects) > 1 and all(map(math.isfinite, effects))
        else math.nan,
        "seeds_for": sum(e * sign > 0 for e in effects),
        "holds": mean * sign > 0,
        "seconds": sum(s for _, _, s in pairs),
        "date": datetime.date.today().isoformat(),
    }


def _difference(method: float, baseline: float, sign: float) -> float:
    worst = -sign * math.inf
    method, baseline = (worst if math.isnan(v) else v for v in (method, baseline))
    return 0.0 if method == baseline else method - baseline


def short(value: float) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3g}" if abs(value) >= 100 else f"{value:.3f}"


def label(row: dict[str, Any]) -> str:
    wanted = row.get("metric", "accuracy")
    return wanted if isinstance(wanted, str) else getattr(wanted, "__name__", "figure")


def line(name: str, row: dict[str, Any], got: dict[str, Any]) -> str:
    sides = [" / ".join(map(short, got[side])) for side in ("method", "baseline")]
    effect = f"{got['effect']:+.3g} ± {short(got['deviation'])}"
    verdict = (
        "holds" if got["holds"] else "**does not hold**"
    ) + f" ({got['seeds_for']} of {len(got['method'])})"
    note = f" {row['note']}" if row.get("note") and not got["holds"] else ""
    where = f"{row['config'].get('task', '')}, {row['config'].get('partition', 'iid')}, {row['config'].get('rounds', '')} rounds"
    cells = [
        name,
        f"{row['claim']}.{note}",
        row["baseline"],
        where,
        label(row),
        *sides,
        effect,
        verdict,
        got["date"],
    ]
    return "| " + " | ".join(c.replace("|", "/") for c in cells) + " |"


def write(rows: dict[str, dict[str, Any]], figures: dict[str, Any]) -> None:
    head = [
        "# Effects, measured",
        "",
        "What each method's paper leads one to expect, against its named baseline, on runs that are small enough for a laptop.",
        "Figures of both sides are given seed by seed (0, 1, 2); the effect is the mean of method minus baseline, with its",
        "standard deviation. A row holds when the mean points the way of the claim; rows that do not stay as they are.",
        "",
        f"Command: `python benchmarks/effects.py`; machine: {platform.machine()}, {os.cpu_count()} cores, no GPU; "
        f"{sum(g['seconds'] for g in figures.values()) / 60:.0f} CPU minutes in all.",
        "",
        "| row | claim | baseline | run | figure | method | baseline | effect | verdict | date |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines = [line(name, row, figures[name]) for name, row in rows.items() if name in figures]
    for path, text in (
        (FIGURES, json.dumps(figures, indent=1, sort_keys=True)),
        (TABLE, "\n".join([*head, *lines])),
    ):
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text + "\n")
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="*", help="rows whose name contains one of these words; all by default"
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    rows = load_rows()
    if args.list:
        print("\n".join(f"{name:40} {row['claim']}" for name, row in rows.items()))
        return
    wanted = [n for n in rows if not args.words or any(word in n for word in args.words)]
    if not wanted:
        sys.exit(f"no row is named like {args.words}; see --list")
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    figures = {name: got for name, got in figures.items() if name in rows}
    started = time.perf_counter()
    with ProcessPoolExecutor(args.workers) as pool:
        asked = {name: [pool.submit(measure, name, seed) for seed in SEEDS] for name in wanted}
        for name, results in asked.items():
            figures[name] = judge(rows[name], [r.result() for r in results])
            print(line(name, rows[name], figures[name]), flush=True)
            write(rows, figures)
    print(f"{len(wanted)} rows in {(time.perf_counter() - started) / 60:.1f} minutes; table: {TABLE}")


if __name__ == "__main__":
    main()
