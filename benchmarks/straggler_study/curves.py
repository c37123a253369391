"""Accuracy over virtual time of finished runs, and which runs are missing."""

from __future__ import annotations

import contextlib
import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from straggler_study.workloads import LONGEST, SEARCH_SEED, WHOLE, WORKLOADS, Asked, fractions

__all__ = ["Curves", "at", "best_rate", "equal_time", "left", "planned", "seconds_to"]


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
        longer = (self.get(replace(asked, times=times)) for times in range(LONGEST, 0, -1))
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


def equal_time(book: Curves, workload: str, p: float, seed: int, rules: Sequence[str]) -> float:
    """Return when the fastest rule that trains on the stragglers completes its rounds, with any rate; infinite if none has."""
    asked = (Asked(workload, rule, p, rate, seed) for rule in rules if rule not in WHOLE for rate in WORKLOADS[workload].rates)
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
