"""Directional effects of the methods, measured: each against its named baseline, seed by seed.

    python benchmarks/effects.py                     all rows; writes docs/effects.md
    python benchmarks/effects.py fedfix afl          rows whose name contains one of these words
    python benchmarks/effects.py --list
    python benchmarks/effects.py --check             prepares all runs, and trains nothing
    python benchmarks/effects.py --table             writes the table anew: claims and rules as they are now

A row holds when the mean over the seeds of (method - baseline) points the way that its claim says, or by its own rule
`holds`, which gets both sides' figures. Rows that do not hold stay in the table. Rows that were not run keep the
figures of their last run, which lie in src/paceline/methods/effects.json, from where `paceline methods NAME` shows them.

A row's `made` returns, for a seed, what takes the place of the task that the configuration names. Its method and
baseline are names of methods, or `module:Class`; `of` and `versus` are then what the tables call them.
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


def ready(row: dict[str, Any], side: str, seed: int) -> Any:
    """Return the run of one side of a row, prepared."""
    from paceline.run import RunConfig, prepare

    config = {"vectorize": "off", **row.get("config", {}), **row.get(f"{side}_config", {}), "seed": seed}
    config |= {"method": row[side], "options": row.get(f"{side}_options", {})}
    return prepare(RunConfig.build(config), **(row["made"](seed) if "made" in row else {}))


def measure(name: str, seed: int) -> tuple[float, float, float]:
    """Return the figures of method and baseline for one seed, and the CPU seconds that both took."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row, started = load_rows()[name], time.process_time()
    values = [metric(row)(ready(row, side, seed).go()) for side in ("method", "baseline")]
    return values[0], values[1], time.process_time() - started


def check(rows: dict[str, dict[str, Any]]) -> None:
    """Prepare both sides of all rows, each kind of run once; raises what does not fit, with the row's name."""
    seen = set()
    for name, row in rows.items():
        for side in ("method", "baseline"):
            parts = ("config", f"{side}_config", side, f"{side}_options", "made")
            kind = repr([row.get(part) for part in parts])
            if kind in seen:
                continue
            seen.add(kind)
            try:
                ready(row, side, SEEDS[0]).fed.engine.close()
                metric(row)
            except Exception as error:
                error.add_note(f"row {name}, {side}")
                raise


def judge(row: dict[str, Any], pairs: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Return a row's figures; a figure that is missing (a target never reached) counts as the worst one."""
    sign = 1.0 if row.get("direction", "higher") == "higher" else -1.0
    effects = [_difference(m, b, sign) for m, b, _ in pairs]
    mean = statistics.fmean(effects)
    return {
        "of": row.get("of", row["method"]),
        "versus": row.get("versus", row["baseline"]),
        "claim": row["claim"],
        "figure": label(row),
        "method": [m for m, _, _ in pairs],
        "baseline": [b for _, b, _ in pairs],
        "effect": mean,
        "deviation": statistics.stdev(effects) if len(effects) > 1 and all(map(math.isfinite, effects)) else math.nan,
        "seeds_for": sum(e * sign > 0 for e in effects),
        "holds": holds([m for m, _, _ in pairs], [b for _, b, _ in pairs]) if (holds := row.get("holds")) else mean * sign > 0,
        "seconds": sum(s for _, _, s in pairs),
        "date": datetime.date.today().isoformat(),
    }


def again(row: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    """Return a row's figures, with its claim and its rule as they are now."""
    pairs = [(m, b, 0.0) for m, b in zip(got["method"], got["baseline"], strict=True)]
    return judge(row, pairs) | {"seconds": got["seconds"], "date": got["date"]}


def _difference(method: float, baseline: float, sign: float) -> float:
    worst = -sign * math.inf
    method, baseline = (worst if math.isnan(v) else v for v in (method, baseline))
    return 0.0 if method == baseline else method - baseline


def short(value: float) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3g}" if abs(value) >= 100 or 0 < abs(value) < 0.01 else f"{value:.3f}"


def label(row: dict[str, Any]) -> str:
    wanted = row.get("metric", "accuracy")
    return wanted if isinstance(wanted, str) else getattr(wanted, "__name__", "figure")


def line(name: str, row: dict[str, Any], got: dict[str, Any]) -> str:
    sides = [" / ".join(map(short, got[side])) for side in ("method", "baseline")]
    effect = f"{got['effect']:+.3g} ± {short(got['deviation'])}"
    verdict = ("holds" if got["holds"] else "**does not hold**") + f" ({got['seeds_for']} of {len(got['method'])})"
    note = f" {row['note']}" if row.get("note") and not got["holds"] else ""
    where = f"{row['config'].get('task', '')}, {row['config'].get('partition', 'iid')}, {row['config'].get('rounds', '')} rounds"
    cells = [
        name,
        f"{row['claim']}.{note}",
        got["versus"],
        where,
        label(row),
        *sides,
        effect,
        verdict,
        got["date"],
    ]
    return "| " + " | ".join(c.replace("|", "/") for c in cells) + " |"


def write(rows: dict[str, dict[str, Any]], new: dict[str, Any], forget: bool = False) -> None:
    """Write figures and table; `forget` leaves out figures of rows that there are no longer."""
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}  # others may write at the same time
    figures = {n: again(rows[n], g) if n in rows else g for n, g in figures.items() if n in rows or not forget} | new
    head = [
        "# Measured effects of the methods",
        "",
        "Each row tests a claim of a method's paper against a named baseline, on runs that are small enough for a laptop. The columns",
        "`method` and `baseline` contain one value per seed (0, 1, 2, ...). The effect is the mean of method minus baseline, ± its",
        "standard deviation. A claim holds if the mean has the claimed sign, or reaches the margin if the claim states one. Rows whose",
        "claim does not hold are not removed. Distances are distances to a known optimum.",
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="rows whose name contains one of these words; all by default")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true", help="write the table anew")
    parser.add_argument("--check", action="store_true", help="prepare all runs without training")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    rows = load_rows()
    if args.list:
        print("\n".join(f"{name:40} {row['claim']}" for name, row in rows.items()))
        return
    if args.table:
        write(rows, {}, forget=True)
        return
    wanted = [n for n in rows if not args.words or any(word in n for word in args.words)]
    if not wanted:
        sys.exit(f"no row is named like {args.words}; see --list")
    if args.check:
        check({name: rows[name] for name in wanted})
        print(f"{len(wanted)} rows can run")
        return
    started = time.perf_counter()
    with ProcessPoolExecutor(args.workers) as pool:
        asked = {name: [pool.submit(measure, name, seed) for seed in rows[name].get("seeds", SEEDS)] for name in wanted}
        for name, results in asked.items():
            got = judge(rows[name], [r.result() for r in results])
            print(line(name, rows[name], got), flush=True)
            write(rows, {name: got}, forget=not args.words)
    print(f"{len(wanted)} rows in {(time.perf_counter() - started) / 60:.1f} minutes; table: {TABLE}")


if __name__ == "__main__":
    main()
