"""Measured effects of the methods: each against a baseline that got the same search, with intervals over seeds.

    python benchmarks/effects.py                     all rows; writes docs/effects.md (hours; a stopped call is resumed)
    python benchmarks/effects.py --quick             the rows marked quick, at least one of each family (about an hour)
    python benchmarks/effects.py fedfix afl          rows whose name contains one of these words; a whole name means that row alone
    python benchmarks/effects.py --list
    python benchmarks/effects.py --check             prepares all runs without training
    python benchmarks/effects.py --table             writes the page from the stored figures and today's claims

Rows are defined in `effect_rows`, one module for each family. Finished runs are appended to `--book`; the next call continues from
there. Runs of older source code are not reused, unless `--reuse` is given. Rows that were not run retain their stored figures in
src/paceline/methods/effects.json, which `paceline methods NAME` shows.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from effect_study import table  # noqa: E402
from effect_study.rows import Metric, Row, load_rows  # noqa: E402
from effect_study.runs import Book, Run, prepared, source_digest  # noqa: E402
from effect_study.tuner import search_runs  # noqa: E402


def check(rows: dict[str, Row]) -> int:
    """Prepare one run of each kind; an error gets the name of its row. Return the number of runs of a whole study."""
    seen, count = set(), set()
    for row in rows.values():
        for name, side in row.sides.items():
            try:
                runs = [run for _, found in search_runs(row, side) for run in found] or [
                    Run(row.trial(side, {key: values[0] for key, values in side.search.items()}), 0)
                ]
                count.update(run.key for run in runs)
                kind = repr([runs[0].trial.describe()[part] for part in ("method", "config", "made")])
                if kind not in seen:
                    seen.add(kind)
                    prepared(runs[0]).fed.engine.close()
            except Exception as error:
                error.add_note(f"row {row.name}, {name}")
                raise
    return len(count) + sum(len(row.sides) * len(row.seeds) for row in rows.values())


def searches(rows: dict[str, Row]) -> Iterator[tuple[Run, Metric]]:
    """Yield all runs of all searches."""
    for row in rows.values():
        for side in row.sides.values():
            for _, runs in search_runs(row, side):
                yield from ((run, row.searched) for run in runs)


def finals(rows: dict[str, Row], book: Book) -> Iterator[tuple[Run, Metric]]:
    """Yield all reported runs; the searches must be complete."""
    for row in rows.values():
        for name, runs in table.final_runs(row, book).items():
            yield from ((run, row.metric) for run in runs)
            if name == "baseline" and row.bound is not None:
                yield from ((run, row.bound) for run in runs)


def study(rows: dict[str, Row], every: dict[str, Row], book: Book, workers: int) -> None:
    """Measure rows, one family after the other, and write the table after each."""
    families: dict[str, dict[str, Row]] = {}
    for name, row in rows.items():
        families.setdefault(name.split("/")[0], {})[name] = row
    for family, members in families.items():
        for stage, wanted in (("search", searches), ("runs", lambda chosen: finals(chosen, book))):
            for left in book.fill(wanted(members), workers):
                print(f"{family}: {stage}, {left} left ", end="\r", file=sys.stderr, flush=True)
        got = {name: table.result(row, book) for name, row in members.items()}
        for name, row in members.items():
            print(table.line(row, got[name]), flush=True)
        table.write(every, got)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="whole names of rows, or parts of names; all rows by default")
    parser.add_argument("--quick", action="store_true", help="only rows marked quick")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true", help="write the page without running anything")
    parser.add_argument("--check", action="store_true", help="prepare all runs without training")
    parser.add_argument("--book", type=Path, default=HERE.parent / "runs" / "effects.jsonl", help="file of finished runs")
    parser.add_argument("--reuse", action="store_true", help="accept finished runs of older source code")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    every = load_rows()
    rows = {
        n: r
        for n, r in every.items()
        if not args.words or any(word == n or (word not in every and word in n) for word in args.words)
    }
    rows = {n: r for n, r in rows.items() if r.quick or not args.quick}
    if not rows:
        sys.exit(f"no row matches {args.words}; see --list")
    if args.list:
        print("\n".join(f"{name:40} {row.claim}" for name, row in rows.items()))
    elif args.table:
        table.write(every, {})
    elif args.check:
        print(f"{check(rows)} runs for {len(rows)} rows\n{len(rows)} rows can run")
    else:
        book = Book(args.book, source_digest(HERE.parent), args.reuse)
        if book.ignored:
            print(f"{book.ignored} finished runs of other source code are ignored (--reuse accepts them)", file=sys.stderr)
        started = time.perf_counter()
        study(rows, every, book, args.workers)
        print(f"{len(rows)} rows in {(time.perf_counter() - started) / 60:.1f} minutes; table: {table.PAGE}")


if __name__ == "__main__":
    main()
