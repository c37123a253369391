"""Tables of finished runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from straggler_study.curves import Curves, at, best_rate, equal_time, planned, seconds_to
from straggler_study.workloads import WHOLE, WORKLOADS, Asked, fractions

__all__ = ["Found", "goal", "spread", "table"]

HEAD = ("workload", "p", "rule", "lr", "seeds", "accuracy at equal time", "after as many rounds", "against random")
TIMES = ("s per round", "rounds", "at their end", "s to the target")


@dataclass(frozen=True)
class Found:
    """A rule's runs with the reported seeds: its rate, records by seed, and how many runs have ended, with those that diverged."""

    rate: float
    records: dict[int, dict[str, Any]]
    ended: int = 0

    @classmethod
    def of(cls, book: Curves, workload: str, rule: str, p: float, rules: Sequence[str], seeds: Sequence[int]) -> Found:
        """Return what is finished; nothing before the search has ended."""
        rate = best_rate(book, workload, rule, p, rules)
        if rate is None:
            return cls(0.0, {})
        records = {seed: book.longest(Asked(workload, rule, p, rate, seed)) for seed in seeds}
        ended = {seed: record for seed, record in records.items() if record is not None}
        return cls(rate, {seed: record for seed, record in ended.items() if record["curve"]}, len(ended))


def table(book: Curves, workloads: Sequence[str], rules: Sequence[str], ps: Sequence[float], seeds: Sequence[int]) -> str:
    """Return the table of finished runs, in Markdown.

    The target is the mean accuracy at the end of `none`, less a point.
    """
    lines = [f"| {' | '.join(HEAD + TIMES)} |", "| --- " * len(HEAD + TIMES) + "|"]
    for workload in workloads:
        rounds, every = (WORKLOADS[workload].config[name] for name in ("rounds", "eval_every"))
        for p in ps:
            by = {
                rule: Found.of(book, workload, rule, fractions(rule, ps)[0] if rule in WHOLE else p, rules, seeds) for rule in rules
            }
            until = {seed: equal_time(book, workload, p, seed, rules) for seed in seeds}
            whole = by["none"].records if "none" in by else {}
            target = goal(whole.values()) if whole else math.inf
            for rule, found in by.items():
                if not found.records:
                    continue
                equal = {seed: at(record, until[seed]) for seed, record in found.records.items()}
                other = by["random"].records if "random" in by and rule != "random" else {}
                gains = [score - at(other[seed], until[seed]) for seed, score in equal.items() if seed in other]
                after = [planned(record, workload) for record in found.records.values()]
                percent = [list(equal.values()), [accuracy for _, accuracy in after]]
                cells = [workload, f"{p:g}", rule, f"{found.rate:g}", str(len(equal))]
                cells += [f"{100 * statistics.fmean(v):.1f}{spread(v)}" for v in percent]
                cells.append(f"{100 * statistics.fmean(gains):+.1f}{spread(gains)}" if gains else "")
                cells.append(f"{statistics.fmean(seconds for seconds, _ in after) / rounds:.3g}")
                last = [record["curve"][-1][1] for record in found.records.values()]
                cells.append("/".join(str(n) for n in sorted({len(r["curve"]) * every for r in found.records.values()})))
                cells.append(f"{100 * statistics.fmean(last):.1f}{spread(last)}")
                reached = [s for r in found.records.values() if math.isfinite(s := seconds_to(r, target))]
                share = "" if len(reached) == len(equal) else f" ({len(reached)} of {len(equal)})"
                cells.append(f"{statistics.fmean(reached):.0f}{share}" if reached else "never")
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def goal(whole: Iterable[dict[str, Any]]) -> float:
    """Return the target: a point below the mean accuracy that runs of `none` end with."""
    return statistics.fmean(record["curve"][-1][1] for record in whole) - 0.01


def spread(values: Sequence[float]) -> str:
    """Return the deviation of shares in percent, for a cell; nothing for a single one."""
    return f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
