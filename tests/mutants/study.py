"""Mutation testing: change one thing at a time, and see whether a test notices.

    python -m tests.mutants                     all packages; goes on where the last call stopped
    python -m tests.mutants methods/stragglers  modules whose path contains one of these words
    python -m tests.mutants --share 0.05        a random sample of the mutants (the same sample in every call)
    python -m tests.mutants --report            figures and survivors, without running anything

A mutant runs against the tests that execute the changed line, quickest first, until one fails. Results go to build/mutants; a mutant
whose module has not changed is not run again, and survivors are run again when the tests changed (--again). Survivors that no test can
tell from the original are listed with the reason in equivalents.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.mutants.mutations import Mutant, mutants_of
from tests.mutants.tests_of import TestMap, record
from tests.mutants.trial import preload, tried

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "mutants"
RESULTS = WORK / "results.jsonl"
EQUIVALENTS = Path(__file__).parent / "equivalents.json"
PACKAGES = ("methods", "aggregation", "submodels")
BUDGET = 30.0
"""Seconds of tests for a mutant that none of them notices."""


def all_mutants(words: Iterable[str], share: float) -> list[Mutant]:
    """Return the mutants of the modules whose path contains one of the words; a sample of each module if `share` < 1."""
    words, found = list(words), []
    for package in PACKAGES:
        for path in sorted((ROOT / "src" / "paceline" / package).rglob("*.py")):
            if not words or any(word in path.as_posix() for word in words):
                mutants = sorted(mutants_of(path, ROOT / "src"), key=lambda m: m.key)
                found += mutants if share >= 1 else [m for m in mutants if random.Random(m.key).random() < share]
    return found


def outcomes() -> dict[str, dict[str, Any]]:
    """Return the last outcome of each mutant by key."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {entry["key"]: entry for entry in map(json.loads, filter(None, lines))}


def equivalents() -> dict[str, str]:
    """Return the reasons why survivors are equivalent, by key."""
    return {entry["key"]: entry["why"] for entry in json.loads(EQUIVALENTS.read_text())}


def copied(place: int) -> Path:
    """Return a copy of the source tree for one worker."""
    tree = WORK / f"tree{place}"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("src", "tests", "docs", "examples", "benchmarks", "deploy"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, tree / name)
    return tree


def work(place: int, chosen: list[Mutant], lock: Any) -> None:
    """Try mutants one after the other."""
    preload()
    tree, tests_of = copied(place), TestMap(WORK)
    for mutant in chosen:
        tests = tests_of.tests(mutant.module, mutant.lines, BUDGET)
        outcome = tried(mutant, tree, tests, tests_of.seconds(tests))
        shown = {"module": mutant.module, "definition": mutant.definition, "operator": mutant.operator, "line": mutant.lines[0]}
        entry = {
            "key": mutant.key,
            "outcome": outcome,
            "tests": len(tests),
            **shown,
            "before": mutant.before,
            "after": mutant.after,
        }
        with lock, RESULTS.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def report(mutants: list[Mutant]) -> None:
    """Print the score of each package and every survivor that is not explained."""
    got, same = outcomes(), equivalents()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant in mutants:
        outcome = got.get(mutant.key, {}).get("outcome", "not run")
        if outcome == "survived" and mutant.key in same:
            outcome = "equivalent"
        counts[mutant.module.split("/")[1]][outcome] += 1
        if outcome == "survived":
            print(f"{mutant.key} {mutant.module}:{mutant.lines[0]} {mutant.definition} {mutant.operator}")
            print(f"  - {mutant.before}\n  + {mutant.after}".replace("\n", "\n    ").replace("\n      +", "\n  +"))
    for package, count in counts.items():
        killed, survived = count["killed"] + count["timeout"], count["survived"]
        score = f"{100 * killed / (killed + survived):.1f} %" if killed + survived else "not run"
        print(f"{package:12} score {score}: {dict(count)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of module paths; all modules by default")
    parser.add_argument("--share", type=float, default=1.0, help="share of the mutants, chosen at random")
    parser.add_argument("--again", action="store_true", help="record the tests of each line anew, and run survivors again")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    mutants = all_mutants(args.words, args.share)
    if not args.report:
        if args.again or not (WORK / "durations.json").exists():
            record(ROOT, WORK, args.workers)
        got = outcomes()
        finished = {key for key, entry in got.items() if entry["outcome"] != "survived" or not args.again}
        left = [mutant for mutant in mutants if mutant.key not in finished]
        random.Random(0).shuffle(left)
        print(f"{len(mutants)} mutants, {len(left)} to run", flush=True)
        context = multiprocessing.get_context("spawn")
        lock = context.Lock()
        workers = [context.Process(target=work, args=(k, left[k :: args.workers], lock)) for k in range(args.workers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    report(mutants)
