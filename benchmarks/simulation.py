"""What simulation costs: Paceline against a plain PyTorch loop over as many steps of the same batches.

All are timed in turn in one process, so that the machine's drift hits all; the ratio is the figure that counts. Where each
client takes one step, the loop that a programmer would write by hand for this case is timed too ("fused"): one backward pass
over the samples of the whole cohort.

    lr    logistic regression 784x10; 1000 clients x 20 samples, cohort 200, batch 20, 1 epoch
    lr2   the same with 2 epochs
    cnn   conv 5x5 32, conv 5x5 64, dense 512 (1.66 M parameters); 100 clients x 200 samples, cohort 20, batch 20

    python benchmarks/simulation.py lr --no-one-step        the stacked path where the one-batch path would do
    python benchmarks/simulation.py cnn --workers 2
    python benchmarks/simulation.py lr --peak               start-up and peak memory, each in a process of its own
    python benchmarks/simulation.py scale                   memory against population and cohort
    python benchmarks/simulation.py gpu --device cuda       1000 users x 50 samples, cohort 50, 5 steps of batch 10
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from paceline.core.allocator import keep_freed
from paceline.core.generators import drawing
from paceline.data import Partition
from paceline.models import build
from paceline.run import Run, RunConfig, prepare
from paceline.tasks import Arrays, Task

WORKLOADS: dict[str, dict[str, Any]] = {
    "lr": {"model": "logistic", "shape": (784,), "clients": 1000, "samples": 20, "cohort": 200, "epochs": 1},
    "lr2": {"model": "logistic", "shape": (784,), "clients": 1000, "samples": 20, "cohort": 200, "epochs": 2},
    "cnn": {"model": "cnn", "shape": (1, 28, 28), "clients": 100, "samples": 200, "cohort": 20, "epochs": 1},
    "gpu": {
        "model": "cnn",
        "shape": (3, 32, 32),
        "clients": 1000,
        "samples": 50,
        "cohort": 50,
        "epochs": 1,
        "batch": 10,
    },
}
EVALUATED = 2000


def make_task(spec: dict[str, Any]) -> Task:
    generator = torch.Generator().manual_seed(0)
    total = spec["clients"] * spec["samples"]

    def arrays(count: int) -> Arrays:
        x = torch.randn(count, *spec["shape"], generator=generator)
        return Arrays(x, torch.randint(0, 10, (count,), generator=generator))

    model = partial(build, spec["model"], shape=spec["shape"], num_classes=10)
    return Task("benchmark", arrays(total), arrays(EVALUATED), model, 10, lr=0.05, batch_size=spec.get("batch", 20))


def make_run(task: Task, spec: dict[str, Any], args: argparse.Namespace) -> Run:
    config = RunConfig(
        task="benchmark",
        options={"epochs": spec["epochs"]},
        clients=spec["clients"],
        cohort=spec["cohort"],
        rounds=10**6,
        engine=args.engine,
        workers=args.workers,
        vectorize=args.vectorize,
        chunk=args.chunk,
        one_step=args.one_step,
        kernels=args.kernels,
        device=args.device,
    )
    return prepare(config, task=task)


class Plain:
    """One model over as many steps, and the same evaluation."""

    def __init__(self, task: Task, spec: dict[str, Any], device: str) -> None:
        self.task, self.spec, self.device = task, spec, device
        self.model = task.build(0).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=task.lr)
        self.x, self.y = task.train.x.to(device), task.train.y.to(device)
        self.test = (task.test.x.to(device), task.test.y.to(device))

    def round(self) -> None:
        self.model.train()
        order = torch.randperm(len(self.x))[: self.spec["cohort"] * self.spec["samples"]].to(self.device)
        for _ in range(self.spec["epochs"]):
            for rows in order.split(self.task.batch_size):
                self.step(rows)
        self.evaluate()

    def step(self, rows: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(self.x.index_select(0, rows)), self.y.index_select(0, rows)).backward()
        self.optimizer.step()

    def evaluate(self) -> None:
        self.model.eval()
        with torch.no_grad():
            for x, y in zip(*(t.split(500) for t in self.test), strict=True):
                out = self.model(x)
                F.cross_entropy(out, y)
                (out.argmax(1) == y).sum()


class Fused(Plain):
    """What one step of every client comes to: one step on the samples of the whole cohort, and the same evaluation.

    A client's samples lie one after the other, or where `split` has them: scattered over all data, so that they are read slower.
    """

    split: Partition | None = None

    def round(self) -> None:
        self.model.train()
        cohort, samples = self.spec["cohort"], self.spec["samples"]
        clients = torch.randperm(self.spec["clients"])[:cohort]
        rows = clients[:, None] * samples + torch.arange(samples) if self.split is None else self.split.together(clients.tolist())
        self.step(rows.reshape(-1).to(self.device))
        self.evaluate()


class Ours:
    """Rounds of FedAvg, each with the central evaluation."""

    def __init__(self, run: Run) -> None:
        keep_freed()  # as the command line does
        self.run, self.number = run, 0
        self.state = run.method.init(run.fed)

    def round(self) -> None:
        self.number += 1
        fed = self.run.fed
        fed.start_round(self.number)
        self.state = self.run.method.round(fed, self.state)
        fed.engine.evaluate(self.run.method.model(self.state))
        fed.engine.commit()


def timed(work: Any, device: str) -> tuple[float, float]:
    """Return (wall, CPU of this process and its ended children) seconds."""
    if device != "cpu":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(name: str, args: argparse.Namespace) -> None:
    spec = WORKLOADS[name]
    task = make_task(spec)
    run = make_run(task, spec, args)
    plain, ours = Plain(task, spec, args.device), Ours(run)
    fused = Fused(task, spec, args.device) if spec["epochs"] == 1 and spec["samples"] <= task.batch_size else None
    scattered = Fused(task, spec, args.device) if fused else None
    if scattered:
        scattered.split = run.fed.engine.setup.split
    figures: list[tuple[float, ...]] = []
    with drawing(0, args.device):  # as `Run.go` does for all rounds
        for number in range(args.rounds + 2):
            found = (*timed(plain.round, args.device), *timed(ours.round, args.device))
            found += timed(fused.round, args.device) if fused else ()
            found += timed(scattered.round, args.device) if scattered else ()
            if number >= 2:  # the first ones warm all up
                figures.append(found)
    run.fed.engine.close()
    walls = [f[0] for f in figures], [f[2] for f in figures]
    ratios = [b / a for a, b in zip(*walls, strict=True)]
    path = f"chunk {run.config.chunk}; {run.path}"
    print(f"{name}: engine {args.engine}, {args.workers} worker(s), vectorize {args.vectorize}, one_step {args.one_step} ({path})")
    print(f"  plain     {statistics.median(walls[0]):.4f} s/round wall, {statistics.median(f[1] for f in figures):.4f} s CPU")
    ours_cpu = statistics.median(f[3] for f in figures)
    print(f"  paceline  {statistics.median(walls[1]):.4f} s/round wall, {ours_cpu:.4f} s CPU in this process")
    print(f"  ratio     {statistics.median(ratios):.3f} (quartiles {quartiles(ratios)}, {len(ratios)} paired rounds)")
    if args.workers == 1 and args.engine == "local":  # what other work on the machine disturbs least
        cpus = [f[3] / f[1] for f in figures]
        print(f"  of CPU    {statistics.median(cpus):.3f} (quartiles {quartiles(cpus)})")
    if fused:
        places = (("wall", 2, 4), ("CPU", 3, 5), ("wall, of the partition's rows", 2, 6), ("CPU, of the partition's rows", 3, 7))
        for what, ours_at, fused_at in places:
            ratios = [f[ours_at] / f[fused_at] for f in figures]
            seconds = statistics.median(f[fused_at] for f in figures)
            print(
                f"  fused     {seconds:.4f} s/round {what}; ratio {statistics.median(ratios):.3f} (quartiles {quartiles(ratios)})"
            )


def quartiles(values: list[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.3f} to {high:.3f}"


def pss() -> float:
    """Return this process's share of memory in MiB, with that of its worker processes."""
    task = next(Path("/proc/self/task").iterdir())
    total = 0.0
    for number in ["self", *(task / "children").read_text().split()]:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
    return total


def alone(name: str, args: argparse.Namespace) -> None:
    """In a process of its own: start-up to the end of the first round, and the peak of memory after some rounds."""
    spec = WORKLOADS[name]
    task = make_task(spec)
    before = time.process_time()
    work = Plain(task, spec, args.device) if args.alone == "plain" else Ours(make_run(task, spec, args))
    work.round()
    first = time.process_time() - before
    peak = pss()
    for _ in range(3):
        work.round()
        peak = max(peak, pss())
    print(json.dumps({"cpu": time.process_time(), "first": first, "pss": peak}))


def peak(name: str, args: argparse.Namespace) -> None:
    found = {}
    for which in ("plain", "paceline"):
        command = [sys.executable, __file__, name, "--alone", which, "--workers", str(args.workers)]
        command += ["--vectorize", args.vectorize, "--engine", args.engine]
        command += ["--chunk", str(args.chunk)] if args.chunk else []
        command += ["--kernels", args.kernels]
        command += [] if args.one_step else ["--no-one-step"]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        figures = found[which] = json.loads(ended.stdout.splitlines()[-1])
        text = f"import to the fourth round {figures['cpu']:.2f} CPU s, preparing and first round {figures['first']:.2f} CPU s"
        print(f"{name} {which:9}: {text}, peak PSS {figures['pss']:.0f} MiB")
    print(f"{name} ratio of PSS: {found['paceline']['pss'] / found['plain']['pss']:.3f}")


def scale(args: argparse.Namespace) -> None:
    """Memory and time against population and cohort; each line in a process of its own."""
    print("population   cohort   s/round   peak RSS MiB")
    for clients, cohort in (
        (1_000, 200),
        (10_000, 200),
        (100_000, 200),
        (1_000_000, 200),
        (1_000_000, 1_000),
        (1_000_000, 10_000),
    ):
        command = [
            sys.executable,
            __file__,
            "scale",
            "--alone",
            f"{clients},{cohort}",
            "--vectorize",
            args.vectorize,
        ]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def one_scale(clients: int, cohort: int, args: argparse.Namespace) -> None:
    """20 samples for each client, drawn from the same 20,000: what counts is the number of clients."""
    task = make_task(WORKLOADS["lr"])
    offsets = torch.arange(clients + 1) * 20
    split = Partition("repeated", torch.arange(clients * 20) % len(task.train), offsets, offsets[1:])
    config = RunConfig(
        task="benchmark",
        clients=clients,
        cohort=cohort,
        rounds=10**6,
        vectorize=args.vectorize,
        chunk=args.chunk,
    )
    ours = Ours(prepare(config, task=task, split=split))
    ours.round()
    started = time.perf_counter()
    for _ in range(3):
        ours.round()
    seconds = (time.perf_counter() - started) / 3
    print(f"{clients:10}   {cohort:6}   {seconds:7.3f}   {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:12.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=[*WORKLOADS, "all", "scale"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--vectorize", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--no-one-step", dest="one_step", action="store_false")
    parser.add_argument("--kernels", default="auto", help="auto, plain, or some of graph,compile,views")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", action="store_true", help="start-up and peak memory in place of times")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.workload == "scale":
        one_scale(*map(int, args.alone.split(",")), args) if args.alone else scale(args)
        return
    for name in ("lr", "lr2", "cnn") if args.workload == "all" else (args.workload,):
        if args.alone:
            alone(name, args)
        elif args.peak:
            peak(name, args)
        else:
            compare(name, args)


if __name__ == "__main__":
    main()
