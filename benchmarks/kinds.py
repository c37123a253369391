"""What FedAvg reaches on the built-in tasks of several kinds with their defaults, as the table of docs/bring_your_own.md.

python benchmarks/kinds.py [TASK...]; seeds 0, 1 and 2 of each, on one core a few minutes each.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import NamedTuple

import paceline as pl


class Asked(NamedTuple):
    rounds: int
    partition: str
    clients: int


TASKS = {
    "heart-disease": Asked(20, "natural", 4),
    "cd4": Asked(20, "iid", 10),
    "watch-activity": Asked(30, "natural", 20),
    "life-expectancy": Asked(50, "natural", 202),
    "mri-tissue": Asked(30, "natural", 4),
    "20newsgroups": Asked(10, "iid", 10),
    "film-genres": Asked(20, "natural", 10),
    "spoken-digits": Asked(40, "natural", 5),
    "emoji-pairs": Asked(20, "iid", 10),
}


def main(names: list[str]) -> None:
    print(
        "| task | clients | rounds | figure | mean of 3 seeds | lowest to highest | seconds |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for name in names or TASKS:
        asked, begun, found = TASKS[name], time.perf_counter(), []
        for seed in range(3):
            result = pl.run(
                "fedavg", name, rounds=asked.rounds, partition=asked.partition, clients=asked.clients, seed=seed, progress=False
            )
            last = result.history[-1]
            figure = str(last.get("metric", "accuracy"))
            found.append(float(last[figure]))
        spent = (time.perf_counter() - begun) / 3
        middle = statistics.fmean(found)
        print(
            f"| `{name}` | {asked.clients} ({asked.partition}) | {asked.rounds} | {figure} | {middle:.3f} "
            f"| {min(found):.3f} to {max(found):.3f} | {spent:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
