"""Search of the reference tasks' default learning rate and batch size: FedAvg, one local epoch, all other options at their defaults.

    python benchmarks/defaults.py                    all tasks; writes benchmarks/defaults.md (an hour on 2 cores)
    python benchmarks/defaults.py digits mnist-5k    some of them; the other lines of the table stay

The setting with the best mean accuracy of two search seeds wins; it is then run with three other seeds. The tasks' defaults are set by
hand from this table (`paceline.tasks.datasets`), and a line says whether they are those of the winner.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import paceline as pl
from paceline.core.errors import NonFiniteError
from paceline.store.files import atomic_write
from paceline.tasks import load_task

PAGE = Path(__file__).with_suffix(".md")
SEARCH, REPORTED = (1000, 1001), (0, 1, 2)
HEAD = f"""# Default learning rates and batch sizes

FedAvg with 20 clients, all of them in each round, and one local epoch. Search: all pairs of the grid with the seeds {SEARCH}; the best mean
accuracy wins. Accuracy: of the winner, with the seeds {REPORTED}. Command: `python benchmarks/defaults.py`.

| task | rounds | learning rates | batch sizes | winner | accuracy: mean (each seed) | default | date |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


class Study(NamedTuple):
    """One task's search."""

    rounds: int
    rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3)
    sizes: tuple[int, ...] = (5, 10, 20)
    options: dict[str, object] = {}  # noqa: RUF012


STUDIES = {
    "digits": Study(5),
    "mnist-5k": Study(10, sizes=(10, 20)),
    "fashion-mnist": Study(5, (0.02, 0.05, 0.1, 0.2), (10, 20), {"limit": 10_000}),
    "cifar10-test-split": Study(10, (0.02, 0.05, 0.1), (20,)),
    "fontwriters": Study(10, (0.02, 0.05, 0.1, 0.2), (10, 20)),
}


def accuracy(task: str, study: Study, rate: float, size: int, seed: int) -> float:
    """Return the final accuracy; 0 where training diverges."""
    method = pl.methods.FedAvg(lr=rate, batch_size=size)
    try:
        run = pl.run(method, task, rounds=study.rounds, seed=seed, eval_every=study.rounds, task_options=dict(study.options))
    except NonFiniteError:
        return 0.0
    return run.accuracy


def line(name: str, study: Study) -> str:
    """Search one task and return its line of the table."""
    found: dict[tuple[float, int], float] = {}
    for rate, size in itertools.product(study.rates, study.sizes):
        found[rate, size] = statistics.mean(accuracy(name, study, rate, size, seed) for seed in SEARCH)
        print(f"{name}: lr {rate:g}, batch {size}: {found[rate, size]:.3f}", file=sys.stderr, flush=True)
    rate, size = max(found, key=lambda pair: found[pair])
    each = [accuracy(name, study, rate, size, seed) for seed in REPORTED]
    task = load_task(name, **study.options)
    now = f"{task.lr:g}, {task.batch_size}"
    now += (
        ""
        if (task.lr, task.batch_size) == (rate, size)
        else f" ({found.get((task.lr, task.batch_size), float('nan')):.3f} in the search)"
    )
    note = f" of {study.options['limit']} samples" if "limit" in study.options else ""
    shown = f"{statistics.mean(each):.3f} ({', '.join(f'{value:.3f}' for value in each)})"
    cells = [name + note, study.rounds, *(", ".join(map(str, grid)) for grid in (study.rates, study.sizes))]
    return "| " + " | ".join(map(str, [*cells, f"{rate:g}, {size}", shown, now, datetime.date.today()])) + " |"


def page(lines: dict[str, str]) -> str:
    """Return the page: the lines of the table by task, and which tasks have none."""
    left = [name for name in STUDIES if name not in lines]
    note = f"\nNot searched yet, so with defaults set by hand: {', '.join(left)}.\n" if left else ""
    return HEAD + "\n".join(lines[name] for name in STUDIES if name in lines) + "\n" + note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[[], *STUDIES], help="tasks; all by default")
    chosen = parser.parse_args().tasks or list(STUDIES)
    stored = PAGE.read_text().splitlines() if PAGE.exists() else []
    lines = {
        text.split("|")[1].split()[0]: text for text in stored if text.startswith("| ") and "---" not in text and "task" not in text
    }
    for name in chosen:
        lines[name] = line(name, STUDIES[name])
        print(lines[name], flush=True)
        atomic_write(PAGE, page(lines).encode(), mode=0o644)


if __name__ == "__main__":
    main()
