"""What the framework costs: a FedAvg round against a plain PyTorch loop over the same sample gradients.

Workload: the classic FEMNIST CNN (conv 5x5 32, conv 5x5 64, dense 512, 62 classes; 1.69 M parameters),
100 clients x 200 samples, cohort 20, batch 20, one local epoch. Both are timed in turn in one process, so
that the machine's drift hits both. A second part measures peak memory against the cohort's size.

    python benchmarks/fedavg_overhead.py [--rounds 5] [--threads 1] [--memory]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.models import build
from paceline.run import RunConfig, prepare
from paceline.tasks import Arrays, Task

CLIENTS, SAMPLES, BATCH = 100, 200, 20


def workload(clients: int = CLIENTS) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clients * SAMPLES, 1, 28, 28, generator=generator)
    y = torch.randint(0, 62, (clients * SAMPLES,), generator=generator)
    data = Arrays(x, y)
    return Task("femnist-shaped", data, data.subset(torch.arange(100)), lambda: build("cnn", num_classes=62), 62, lr=0.05, batch_size=BATCH)


def plain_round(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, batches: list[Tensor]) -> float:
    started = time.perf_counter()
    model.train()
    for rows in batches:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x.index_select(0, rows)), y.index_select(0, rows)).backward()
        optimizer.step()
    return time.perf_counter() - started


def overhead(rounds: int, cohort: int) -> None:
    task = workload()
    threads = torch.get_num_threads()
    config = RunConfig(task="femnist-shaped", clients=CLIENTS, cohort=cohort, rounds=rounds + 1, threads=threads)
    prepared = prepare(config, task=task)
    model = task.build(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    state = prepared.method.init(prepared.fed)
    ours, plain = [], []
    for number in range(1, rounds + 2):  # the first round warms both up
        order = torch.randperm(len(task.train))[: cohort * SAMPLES]
        plain.append(plain_round(model, optimizer, task.train.x, task.train.y, list(order.split(BATCH))))
        prepared.fed.start_round(number)
        started = time.perf_counter()
        state = prepared.method.round(prepared.fed, state)
        prepared.fed.engine.commit()
        ours.append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(ours[1:], plain[1:], strict=True)]
    print(f"{rounds} rounds, cohort {cohort}, {torch.get_num_threads()} thread(s)")
    print(f"plain loop  {statistics.median(plain[1:]):.3f} s/round")
    print(f"paceline    {statistics.median(ours[1:]):.3f} s/round")
    print(f"ratio       {statistics.median(ratios):.3f}  (min {min(ratios):.3f}, max {max(ratios):.3f}; bar: at most 1.15)")


def peak(cohort: int, plain: bool) -> None:
    """Print this process's peak resident memory after one round, or after the plain loop's same steps."""
    task = workload(CLIENTS)
    if plain:
        model = task.build(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        order = torch.randperm(len(task.train))[: cohort * SAMPLES]
        plain_round(model, optimizer, task.train.x, task.train.y, list(order.split(BATCH)))
    else:
        config = RunConfig(task="femnist-shaped", clients=CLIENTS, cohort=cohort, rounds=1)
        prepared = prepare(config, task=task)
        prepared.fed.start_round(1)
        prepared.method.round(prepared.fed, prepared.method.init(prepared.fed))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cohort", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="peak memory for cohorts of 5 to 100")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        peak(args.peak, args.plain)
    elif args.memory:
        print("cohort   paceline MiB   plain loop over as many steps MiB")
        for cohort in (5, 20, 50, 100):
            peaks = []
            for extra in ([], ["--plain"]):
                command = [sys.executable, __file__, "--peak", str(cohort), *extra]
                peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
            print(f"{cohort:6}   {peaks[0]:12.0f}   {peaks[1]:12.0f}")
    else:
        overhead(args.rounds, args.cohort)


if __name__ == "__main__":
    main()
