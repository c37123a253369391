"""Mutation testing: change one thing at a time, and see whether a test notices.

    python -m tests.mutants                     all modules; goes on where the last call stopped
    python -m tests.mutants methods/stragglers  modules whose path contains one of these words
    python -m tests.mutants --share 0.1         every tenth mutant of each module, chosen by --seed
    python -m tests.mutants --again             only survivors, once more, after tests changed
    python -m tests.mutants --confirm           only survivors, once more, with everything imported anew
    python -m tests.mutants --report            figures and survivors, without running anything

A mutant runs against the tests that execute the changed line until one fails, those first that killed most mutants of the module per
second. Results go to build/mutants; a mutant that was tried is not run again. Survivors that no test can tell from the original
are listed with the reason in equivalents.json.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.mutants.mutations import Mutant, cached_mutants
from tests.mutants.tests_of import PLACES, TestMap, record
from tests.mutants.trial import Outcome, Trial, WarmSession, cold, preload

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "mutants"
RESULTS = WORK / "results.jsonl"
EQUIVALENTS = Path(__file__).parent / "equivalents.json"
SCOPE = ("methods", "aggregation", "submodels", "data/partition.py")


def all_mutants(words: Iterable[str], share: float = 1.0, seed: int = 0) -> list[Mutant]:
    """Return the mutants of the modules whose path contains one of the words.

    Args:
        words: all modules if there are none.
        share: of the mutants to take: the same share of every module, to within one mutant.
        seed: of the choice.
    """
    words, found = list(words), []
    for part in SCOPE:
        place = ROOT / "src" / "paceline" / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if not words or any(word in path.as_posix() for word in words):
                mutants = cached_mutants(path, ROOT / "src", WORK / "mutants")
                found += sorted(mutants, key=lambda m: random.Random(f"{seed} {m.key}").random())
    if share >= 1:
        return found
    first = random.Random(seed).random() / share
    return [found[int(first + k / share)] for k in range(math.ceil(len(found) * share)) if first + k / share < len(found)]


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


def work(place: int, chosen: list[Mutant], lock: Any, budget: float, confirm: bool) -> None:
    """Try mutants one after the other: first those of functions, in one session of pytest, then the others."""
    imports = WORK / f"imports{place}.json"
    imported = set(json.loads(imports.read_text())) if imports.exists() else set()
    preload(sorted(imported))
    tree = copied(place)
    tests_of = TestMap(WORK, ((e["module"], e["killer"]) for e in outcomes().values() if e.get("killer")))
    wanted = {mutant.key for mutant in chosen}

    def trials(mutants: list[Mutant]) -> Iterator[Trial]:
        for mutant in mutants:
            tests = tests_of.tests(mutant.module, mutant.lines, budget)
            yield Trial(mutant, tests, tests_of.seconds(tests))

    def done(mutant: Mutant, outcome: Outcome) -> None:
        if outcome.killer:
            tests_of.killed(mutant.module, outcome.killer)
        if outcome.imported:
            imported.update(outcome.imported)
            imports.write_text(json.dumps(sorted(imported)))
        shown = {name: value for name, value in asdict(mutant).items() if name != "code"}
        with lock, RESULTS.open("a") as file:
            file.write(json.dumps({"key": mutant.key, **shown, **outcome._replace(imported=())._asdict()}) + "\n")

    before = sum(1 for _ in RESULTS.open()) if RESULTS.exists() else 0
    if not confirm:
        session = os.fork()
        if session == 0:
            try:
                WarmSession(tree, trials(chosen), done).run(PLACES)
            finally:
                os._exit(0)
        os.waitpid(session, 0)
    new = RESULTS.read_text().splitlines()[before:] if RESULTS.exists() else []
    wanted -= {json.loads(line)["key"] for line in new}
    for trial in trials([mutant for mutant in chosen if mutant.key in wanted]):
        done(trial.mutant, cold(trial, tree))


def interval(killed: int, tried: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    z, p = 1.96, killed / tried
    centre, half = p + z * z / (2 * tried), z * math.sqrt(p * (1 - p) / tried + z * z / (4 * tried * tried))
    return (centre - half) / (1 + z * z / tried), (centre + half) / (1 + z * z / tried)


def report(mutants: list[Mutant]) -> None:
    """Print every survivor that is not explained, and the score of each package."""
    got, same = outcomes(), equivalents()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant in mutants:
        outcome = got.get(mutant.key, {}).get("result", "not run")
        if outcome == "survived" and mutant.key in same:
            outcome = "equivalent"
        package = mutant.module.split("/")[1]
        for name in (package, *(["methods + aggregation"] if package in ("methods", "aggregation") else [])):
            counts[name][outcome] += 1
        if outcome == "survived":
            print(f"{mutant.key} {mutant.module}:{mutant.lines[0]} {mutant.definition} {mutant.operator}")
            print(f"  - {mutant.before}\n  + {mutant.after}".replace("\n", "\n    ").replace("\n      +", "\n  +"))
    print(
        "| package | mutants | tried | killed | survived | equivalent | score | 95 % interval |\n|---|---|---|---|---|---|---|---|"
    )
    for package, count in counts.items():
        killed, survived = count["killed"] + count["timeout"], count["survived"]
        if killed + survived:
            low, high = interval(killed, killed + survived)
            score = f"{100 * killed / (killed + survived):.1f} % | {100 * low:.1f} to {100 * high:.1f} %"
        else:
            score = "not run | "
        tried = killed + survived + count["equivalent"]
        print(f"| {package} | {count.total()} | {tried} | {killed} | {survived} | {count['equivalent']} | {score} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of module paths; all modules by default")
    parser.add_argument("--share", type=float, default=1.0, help="share of the mutants of each module, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of that choice")
    parser.add_argument("--again", action="store_true", help="run survivors again")
    parser.add_argument("--confirm", action="store_true", help="run survivors again, with everything imported anew")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of tests for a mutant that none of them notices")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    mutants = all_mutants(args.words, args.share, args.seed)
    if not args.report:
        record(ROOT, WORK, args.workers)
        got, same = outcomes(), equivalents()
        left = [mutant for mutant in mutants if _is_left(got.get(mutant.key), mutant.key in same, args)]
        random.Random(0).shuffle(left)
        print(f"{len(mutants)} mutants, {len(left)} to run", flush=True)
        context = multiprocessing.get_context("spawn")
        lock = context.Lock()
        workers = [
            context.Process(target=work, args=(k, left[k :: args.workers], lock, args.budget, args.confirm))
            for k in range(args.workers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    report(mutants)


def _is_left(entry: dict[str, Any] | None, explained: bool, args: argparse.Namespace) -> bool:
    if entry is None:
        return not (args.again or args.confirm)
    survived = entry["result"] == "survived" and not explained
    return survived and (args.again or (args.confirm and entry["warm"]))
