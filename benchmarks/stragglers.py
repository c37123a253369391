"""Which units should slow clients drop? All rules on the same clients, devices and seeds, at equal virtual time.

    python benchmarks/stragglers.py                        all workloads, fractions and rules (days on two cores; resumes)
    python benchmarks/stragglers.py letters --p 0.5        one workload at one fraction
    python benchmarks/stragglers.py letters skewed-letters --seeds 0,1 --rules random,ordered,saliency
    python benchmarks/stragglers.py letters --p 0.5 --longer 2     rules that do not wait get twice as many rounds
    python benchmarks/stragglers.py --table                prints the table of all finished runs
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
import contextlib
import functools
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent

_COMMON: dict[str, Any] = {"clients": 20, "cohort": 20, "eval_every": 2}


def _slow(compute: float) -> str:
    return f"stragglers:slow=4,up=5e7,compute={compute:g}"


_LETTERS = _COMMON | {
    "task": "fontwriters",
    "model": "femnist_cnn",
    "partition": "dirichlet:0.3",
    "client_samples": 100,
    "rounds": 60,
    "eval_every": 5,
    "fleet": _slow(1e9),
}
_PLAYS = _COMMON | {
    "task": "shakespeare",
    "model": "lstm",
    "task_options": {"hidden": 64, "layers": 1},
    "client_samples": 400,
    "rounds": 20,
    "eval_every": 2,
    "fleet": _slow(1e9),
}
_PICTURES = _COMMON | {
    "task": "cifar10-test-split",
    "model": "vgg9",
    "partition": "dirichlet:0.3",
    "client_samples": 100,
    "rounds": 30,
    "eval_every": 5,
    "fleet": _slow(2e9),
}
_DIGITS = _COMMON | {
    "task": "mnist-5k",
    "model": "mlp",
    "task_options": {"hidden": [64, 64]},
    "partition": "dirichlet:0.3",
    "client_samples": 200,
    "rounds": 30,
    "fleet": _slow(6e7),
}


@dataclass(frozen=True)
class Workload:
    """A task on a fleet, with the learning rates of the search and the local training; `judged` test samples, all of them if 0."""

    config: dict[str, Any]
    rates: tuple[float, ...]
    local: dict[str, Any]
    judged: int = 0


WORKLOADS: dict[str, Workload] = {
    "digits": Workload(_DIGITS, (0.05, 0.1, 0.2), {"batch_size": 20}),
    "skewed-digits": Workload(_DIGITS | {"partition": "groups:0-7/0-7/0-7/0-7/8-9"}, (0.05, 0.1, 0.2), {"batch_size": 20}),
    "letters": Workload(_LETTERS, (0.05, 0.1, 0.2), {"batch_size": 10}),
    "skewed-letters": Workload(_LETTERS | {"partition": "groups:0-49/0-49/0-49/0-49/50-61"}, (0.05, 0.1, 0.2), {"batch_size": 10}),
    "plays": Workload(_PLAYS, (1.0, 2.0, 4.0), {"batch_size": 10}, judged=2000),
    "pictures": Workload(_PICTURES, (0.005, 0.01, 0.02), {"batch_size": 20}),
    "crowd": Workload(
        _DIGITS
        | {
            "clients": 100,
            "cohort": 100,
            "client_samples": 40,
            "fleet": "stragglers:slow=20,up=5e7,compute=1.2e7,churn=0.1",
        },
        (0.05, 0.1, 0.2),
        {"batch_size": 20},
    ),
    "skewed-pictures": Workload(_PICTURES | {"partition": "groups:0-7/0-7/0-7/0-7/8-9"}, (0.005, 0.01, 0.02), {"batch_size": 20}),
}

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("fedavg", {}),
    "drop": ("dropstragglers", {}),
    "random": ("randomdropout", {}),
    "random-unbiased": ("randomdropout", {"merge": "unbiased"}),
    "random-stale": ("randomdropout", {"merge": "stale"}),
    "ordered": ("fjord", {}),
    "heterofl": ("heterofl", {}),
    "fluid": ("fluid", {}),
    "saliency": ("saliency", {}),
    **{
        f"clip-{score}-{reduce}": ("clip", {"score": score, "reduce": reduce})
        for score in ("local", "public", "mixed")
        for reduce in ("max", "mean", "l2")
    },
}
FRACTIONS = (0.5, 0.75)
SEARCH_SEED = 1000
_WHOLE = ("none", "drop")
"""Rules without a fraction."""
_LONGEST = 4
"""At most as many times the workload's rounds."""


@dataclass(frozen=True)
class Asked:
    """One run: of the workload's rounds, or of `times` as many."""

    workload: str
    rule: str
    p: float
    rate: float
    seed: int
    times: int = 1

    def config(self) -> dict[str, Any]:
        """Return the run's configuration."""
        load = WORKLOADS[self.workload]
        method, options = RULES[self.rule]
        options = {**load.local, **options, "lr": self.rate} | ({} if self.rule in _WHOLE else {"smallest": self.p})
        rounds = load.config["rounds"] * self.times
        return {**load.config, "rounds": rounds, "vectorize": "off", "method": method, "options": options, "seed": self.seed}

    @property
    def key(self) -> str:
        """Return what identifies the run in the book: all of its configuration, and how many samples judge it if not all do."""
        judged = WORKLOADS[self.workload].judged
        return json.dumps(self.config() | ({"judged": judged} if judged else {}), sort_keys=True)

    def prepare(self) -> Any:
        """Prepare the run, on a part of the test set if the workload asks for it."""
        from paceline.run import RunConfig, prepare
        from paceline.tasks.load import load_task

        config, judged = RunConfig.build(self.config()), WORKLOADS[self.workload].judged
        if not judged:
            return prepare(config)
        task = load_task(config.task, config.model, config.seed, **config.task_options)
        index = torch.linspace(0, len(task.test) - 1, judged).round().long()  # evenly, as samples of one text follow each other
        return prepare(config, task=replace(task, test=task.test.subset(index)))


class Curves:
    """Accuracy over virtual time of finished runs, in a file with one JSON record per line."""

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, {}
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):  # half-written by a call that was stopped
                record = json.loads(line)
                self.known[record["key"]] = record

    def get(self, asked: Asked) -> dict[str, Any] | None:
        """Return the record of a run, if it is finished."""
        return self.known.get(asked.key)

    def longest(self, asked: Asked) -> dict[str, Any] | None:
        """Return the record of the longest of a run's continuations, which begin alike, or of the run itself."""
        longer = (self.get(replace(asked, times=times)) for times in range(_LONGEST, 0, -1))
        return next((record for record in longer if record is not None), None)

    def run(self, asked: Asked) -> None:
        """Carry out a run; one that diverges has an empty curve."""
        from paceline.core.errors import NonFiniteError, SumOverflowError

        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        began, curve, total = time.process_time(), [], math.inf
        with contextlib.suppress(NonFiniteError, SumOverflowError):
            result = asked.prepare().go()
            curve = [[r["virtual_seconds"], round(r["accuracy"], 5)] for r in result.history if "accuracy" in r]
            total = result.total_seconds
        record = {"key": asked.key, "curve": curve, "total": total, "cpu": round(time.process_time() - began, 1)}
        self.known[asked.key] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def at(record: dict[str, Any], seconds: float) -> float:
    """Return the accuracy of a run at a virtual time, on the line between two evaluations; 0 before the first one."""
    last = next((point for point in reversed(record["curve"]) if point[0] <= seconds * (1 + 1e-6)), None)
    after = next((point for point in record["curve"] if point[0] > seconds * (1 + 1e-6)), None)
    if last is None or after is None:
        return last[1] if last is not None else 0.0
    return float(last[1] + (after[1] - last[1]) * (seconds - last[0]) / (after[0] - last[0]))


def seconds_to(record: dict[str, Any], accuracy: float) -> float:
    """Return the virtual time at which a run first has an accuracy, on the line between two evaluations; infinite if it never has."""
    before = [0.0, 0.0]
    for when, score in record["curve"]:
        if score >= accuracy:
            return float(before[0] + (when - before[0]) * (accuracy - before[1]) / (score - before[1]))
        before = [when, score]
    return math.inf


def planned(record: dict[str, Any], workload: str) -> tuple[float, float]:
    """Return a run's virtual time and accuracy after the workload's rounds, of which it may have more."""
    config = WORKLOADS[workload].config
    return tuple(record["curve"][config["rounds"] // config["eval_every"] - 1])  # one entry for each evaluation


def fractions(rule: str, wanted: Sequence[float]) -> Sequence[float]:
    """Return the fractions that a rule is run with."""
    return wanted[:1] if rule in _WHOLE else wanted


def equal_time(book: Curves, workload: str, p: float, seed: int, rules: Sequence[str]) -> float:
    """Return when the fastest rule that trains on the stragglers completes its rounds, with any rate; infinite if none has."""
    asked = (Asked(workload, rule, p, rate, seed) for rule in rules if rule not in _WHOLE for rate in WORKLOADS[workload].rates)
    records = (book.longest(one) for one in asked)
    return min((planned(record, workload)[0] for record in records if record is not None and record["curve"]), default=math.inf)


def best_rate(book: Curves, workload: str, rule: str, p: float, rules: Sequence[str]) -> float | None:
    """Return the rate with the best accuracy at equal time on the search seed; None before the search has ended."""
    until, found = equal_time(book, workload, p, SEARCH_SEED, rules), {}
    for rate in WORKLOADS[workload].rates:
        record = book.get(Asked(workload, rule, p, rate, SEARCH_SEED))
        if record is None:
            return None
        found[rate] = at(record, until)
    return max(found, key=lambda rate: found[rate])


def left(
    book: Curves, workloads: Sequence[str], rules: Sequence[str], ps: Sequence[float], seeds: Sequence[int], longer: int = 1
) -> Iterator[Asked]:
    """Yield the runs that are missing: of each workload the searches first. Only rules that do not wait for all run `longer`."""
    for workload in workloads:
        for rule in rules:
            for p in fractions(rule, ps):
                for rate in WORKLOADS[workload].rates:
                    if book.get(asked := Asked(workload, rule, p, rate, SEARCH_SEED)) is None:
                        yield asked
        for seed in seeds:
            for rule in rules:
                for p in fractions(rule, ps):
                    best = best_rate(book, workload, rule, p, rules)
                    times = 1 if rule == "none" else longer
                    if best is not None and book.get(asked := Asked(workload, rule, p, best, seed, times)) is None:
                        yield asked


HEAD = ("workload", "p", "rule", "lr", "seeds", "accuracy at equal time", "after as many rounds", "against random")
TIMES = ("s per round", "rounds", "at their end", "s to the target")


@dataclass(frozen=True)
class Found:
    """A rule's runs with the reported seeds: its rate, and records by seed."""

    rate: float
    records: dict[int, dict[str, Any]]

    @classmethod
    def of(cls, book: Curves, workload: str, rule: str, p: float, rules: Sequence[str], seeds: Sequence[int]) -> Found:
        """Return what is finished; nothing before the search has ended."""
        rate = best_rate(book, workload, rule, p, rules)
        if rate is None:
            return cls(0.0, {})
        records = {seed: book.longest(Asked(workload, rule, p, rate, seed)) for seed in seeds}
        return cls(rate, {seed: record for seed, record in records.items() if record is not None and record["curve"]})


def table(book: Curves, workloads: Sequence[str], rules: Sequence[str], ps: Sequence[float], seeds: Sequence[int]) -> str:
    """Return the table of finished runs, in Markdown.

    The target is the mean accuracy at the end of `none`, less a point.
    """
    lines = [f"| {' | '.join(HEAD + TIMES)} |", "| --- " * len(HEAD + TIMES) + "|"]
    for workload in workloads:
        rounds, every = (WORKLOADS[workload].config[name] for name in ("rounds", "eval_every"))
        for p in ps:
            by = {
                rule: Found.of(book, workload, rule, fractions(rule, ps)[0] if rule in _WHOLE else p, rules, seeds)
                for rule in rules
            }
            until = {seed: equal_time(book, workload, p, seed, rules) for seed in seeds}
            whole = by["none"].records if "none" in by else {}
            target = statistics.fmean(r["curve"][-1][1] for r in whole.values()) - 0.01 if whole else math.inf
            for rule, found in by.items():
                if not found.records:
                    continue
                equal = {seed: at(record, until[seed]) for seed, record in found.records.items()}
                other = by["random"].records if "random" in by and rule != "random" else {}
                gains = [score - at(other[seed], until[seed]) for seed, score in equal.items() if seed in other]
                after = [planned(record, workload) for record in found.records.values()]
                percent = [list(equal.values()), [accuracy for _, accuracy in after]]
                cells = [workload, f"{p:g}", rule, f"{found.rate:g}", str(len(equal))]
                cells += [f"{100 * statistics.fmean(v):.1f}{_spread(v)}" for v in percent]
                cells.append(f"{100 * statistics.fmean(gains):+.1f}{_spread(gains)}" if gains else "")
                cells.append(f"{statistics.fmean(seconds for seconds, _ in after) / rounds:.3g}")
                last = [record["curve"][-1][1] for record in found.records.values()]
                cells.append("/".join(str(n) for n in sorted({len(r["curve"]) * every for r in found.records.values()})))
                cells.append(f"{100 * statistics.fmean(last):.1f}{_spread(last)}")
                reached = [s for r in found.records.values() if math.isfinite(s := seconds_to(r, target))]
                share = "" if len(reached) == len(equal) else f" ({len(reached)} of {len(equal)})"
                cells.append(f"{statistics.fmean(reached):.0f}{share}" if reached else "never")
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--p", type=float, action="append", help="kept fraction; 0.5 and 0.75 by default")
    parser.add_argument("--rules", default=",".join(RULES), help="comma-separated")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--longer", type=int, default=1, choices=range(1, _LONGEST + 1), help="times the rounds, without waiting")
    parser.add_argument("--book", type=Path, default=HERE / "stragglers.jsonl", help="file of finished runs")
    parser.add_argument("--table", action="store_true", help="print the table without running anything")
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
    while not args.table and (one := next(missing(), None)) is not None:
        began = time.perf_counter()
        book.run(one)
        print(f"{one} in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    print(table(*asked))


if __name__ == "__main__":
    main()
