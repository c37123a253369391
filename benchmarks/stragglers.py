"""Which units should slow clients drop? All rules on the same clients, devices and seeds, at equal virtual time.

    python benchmarks/stragglers.py                        all workloads, fractions and rules (days on two cores; resumes)
    python benchmarks/stragglers.py letters --p 0.5        one workload at one fraction
    python benchmarks/stragglers.py letters skewed-letters --seeds 0,1 --rules random,ordered,saliency
    python benchmarks/stragglers.py letters --p 0.5 --longer 2     rules that do not wait get twice as many rounds
    python benchmarks/stragglers.py --table                prints the table of all finished runs
    python benchmarks/stragglers.py --page                 writes the tables of docs/methods/stragglers.md
    python benchmarks/stragglers.py --list                 lists workloads, rules and how many runs are left

20 clients, 4 of them with a quarter of the others' compute, so that each keeps the fraction p of its units, whatever its rule. In
``skewed-...`` the slow clients alone have some of the classes. ``crowd`` has 100 clients, 20 of them slow, each away in a tenth of
the rounds. Each rule's learning rate is the best of three on a seed of its own (accuracy at equal time); then it runs with the seeds
0 to 4. *Equal time* is the time in which the fastest rule that trains on the stragglers completes the workload's rounds, and the
target is what waiting for all ends with, less a point. Finished runs are lines of ``--book``; several processes may share the work,
each with other workloads, fractions or seeds.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from straggler_study import page  # noqa: E402
from straggler_study.curves import Curves, left  # noqa: E402
from straggler_study.tables import table  # noqa: E402
from straggler_study.workloads import FRACTIONS, LONGEST, RULES, WORKLOADS  # noqa: E402


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--p", type=float, action="append", help="kept fraction; 0.5 and 0.75 by default")
    parser.add_argument("--rules", default=",".join(RULES), help="comma-separated")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--longer", type=int, default=1, choices=range(1, LONGEST + 1), help="times the rounds, without waiting")
    parser.add_argument("--book", type=Path, default=HERE / "stragglers.jsonl", help="file of finished runs")
    parser.add_argument("--table", action="store_true", help="print the table without running anything")
    parser.add_argument(
        "--page", action="store_true", help="write the tables of docs/methods/stragglers.md, without running anything"
    )
    parser.add_argument("--list", action="store_true", help="list what there is, and how many runs are left")
    args = parser.parse_args()
    chosen, rules = args.workloads or list(WORKLOADS), args.rules.split(",")
    unknown = [name for name in chosen if name not in WORKLOADS] + [name for name in rules if name not in RULES]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; workloads are {', '.join(WORKLOADS)}, rules {', '.join(RULES)}")
    book = Curves(args.book)
    asked = (book, chosen, rules, args.p or FRACTIONS, [int(seed) for seed in args.seeds.split(",")])
    missing = functools.partial(left, *asked, args.longer)
    if args.list:
        print(f"workloads: {', '.join(WORKLOADS)}\nrules: {', '.join(RULES)}")
        print(f"{sum(1 for _ in missing())} runs left, and those of rules whose search has not ended")
        return
    if args.page:
        page.write(book)
        return
    while not args.table and (one := next(missing(), None)) is not None:
        began = time.perf_counter()
        book.run(one)
        print(f"{one} in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    print(table(*asked))


if __name__ == "__main__":
    main()
