"""What simulation costs on a GPU: Paceline against what can be written by hand, in one command of less than five minutes.

    python benchmarks/gpu.py                                  one GPU, no network; a table, and JSON in gpu.json
    python benchmarks/gpu.py --only cifar,evaluation          parts of it
    python benchmarks/gpu.py --device cpu --small             the same code, small, without a GPU

Parts: ``parity`` (every method against the CPU), ``cifar`` (pfl-research's benchmark: 1000 users x 50 samples, cohort 50,
5 steps of batch 10, CNN of 1.63 M parameters), ``resnet18`` (GroupNorm; 100 clients x 500, cohort 10, batch 16), ``lstm``
(2 x 256), ``lora`` (a small transformer), ``evaluation`` (10,000 pictures), ``memory`` (200 rounds), ``long`` (1500 rounds
of ``cifar`` with an evaluation every 10, from the start to the end). A part that fails is a row with the error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gpu_study import pfl
from gpu_study.by_hand import FORMS, Loop, Stacked
from gpu_study.workloads import CIFAR, LORA, LSTM, RESNET, Workload
from paceline.core.allocator import keep_freed
from paceline.core.placement import free_memory
from paceline.core.precision import kept_precision, set_precision
from paceline.registry import find_method, method_names
from paceline.run import Run, RunConfig, prepare
from paceline.tasks import Task, blobs

PRECISIONS = ("float32", "tf32", "bf16")
TOLERANCE = 1e-3


@dataclass
class Row:
    """One line of the table.

    Args:
        part: of the benchmark.
        what: was measured.
        value: of the figure; None if it could not be measured.
        unit: of the value.
        note: what else is to be known, or the error.
    """

    part: str
    what: str
    value: float | None
    unit: str = "ms/round"
    note: str = ""


class Bench:
    """The parts of the benchmark, on one device."""

    def __init__(self, device: str, small: bool, compiled: bool) -> None:
        self.device, self.small, self.compiled = device, small, compiled
        self.on_gpu = torch.device(device).type == "cuda"
        self.rows: list[Row] = []
        self.rounds = 2 if small else 15

    # -- tools ---------------------------------------------------------------------------------
    def add(self, part: str, what: str, measure: Callable[[], float], unit: str = "ms/round", note: str = "") -> float | None:
        """Measure, and add a row; an error is a row too."""
        try:
            value = measure()
        except Exception as error:
            value, note = None, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
        self.rows.append(Row(part, what, value, unit, note))
        print(line(self.rows[-1]), flush=True)
        if self.on_gpu:
            torch.cuda.empty_cache()
        return value

    def finish(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def timed(self, work: Callable[[], object], rounds: int | None = None, warm: int = 2) -> float:
        """Return the milliseconds of a round: the median of several, after rounds that warm up."""
        for _ in range(1 if self.small else warm):
            work()
        times = []
        for _ in range(rounds or self.rounds):
            self.finish()
            started = time.perf_counter()
            work()
            self.finish()
            times.append(1e3 * (time.perf_counter() - started))
        return statistics.median(times)

    @contextlib.contextmanager
    def run(self, work: Workload, task: Task, **options: Any) -> Iterator[Run]:
        """Return a run of Paceline that is not evaluated."""
        values = {"method": work.method, "options": work.options, "task": work.name, "clients": work.clients, "cohort": work.cohort}
        values |= {"rounds": 10**6, "eval_every": 10**6, "device": self.device}
        run = prepare(RunConfig.build(values | options), task=task)
        try:
            yield run
        finally:
            run.close()

    def ours(self, work: Workload, task: Task, rounds: int | None = None, warm: int = 4, **options: Any) -> float:
        """Return the milliseconds of a round of Paceline.

        A loop is recorded in the second round and compared in the third: neither may be timed.
        """
        with self.run(work, task, **options) as run:
            print(f"    chunk {run.config.chunk}: {run.path}", flush=True)
            return self.timed(run.step, rounds, warm)

    # -- parts ---------------------------------------------------------------------------------
    def parity(self) -> None:
        """Compare every method, one by one and stacked, with the CPU."""
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from tests.methods.small import SMALL

        names = [name for name in method_names() if find_method(name).__module__.startswith("paceline.")]
        worst: dict[str, float] = {}
        for name in names[::30] if self.small else names:
            for train in ({"vectorize": "off", "chunk": 1}, {"vectorize": "on", "chunk": 3}):
                values = {"method": name, "options": SMALL.get(name, {}), "task": "blobs", "clients": 7, "cohort": 7, "rounds": 3}
                values |= {"fleet": "stragglers", "eval_every": 3, **train}
                found = []
                try:
                    for device in ("cpu", self.device):
                        run = prepare(RunConfig.build(values | {"device": device}), task=blobs(112))
                        run.go()
                        found.append(run.method.model(run.state).vector)
                    apart = float((found[0] - found[1]).norm() / max(float(found[0].norm()), 1e-12))
                except Exception as error:
                    apart = float("inf")
                    print(f"    {name}: {type(error).__name__}: {str(error)[:160]}", flush=True)
                worst[name] = max(worst.get(name, 0.0), apart)
        wrong = {name: apart for name, apart in worst.items() if not apart <= TOLERANCE}
        note = ", ".join(f"{name} {apart:.1e}" for name, apart in wrong.items())
        self.add("parity", f"methods of {len(worst)} that differ by more than {TOLERANCE:g}", lambda: len(wrong), "methods", note)
        self.add("parity", "largest relative difference of a model", lambda: max(worst.values()), "")

    def cifar(self) -> None:
        """Time pfl-research's benchmark."""
        work = CIFAR[self.small]
        task = work.task()
        self.add("cifar", "Paceline, default", lambda: self.ours(work, task))
        for chunk in (2, work.cohort) if self.small else (10, 25, 50):
            self.add(
                "cifar", f"Paceline, on, chunk {chunk}", lambda chunk=chunk: self.ours(work, task, vectorize="on", chunk=chunk)
            )
        for precision in PRECISIONS[1:]:
            self.add(
                "cifar",
                f"Paceline, chunk {work.cohort}, {precision}",
                lambda precision=precision: self.ours(work, task, vectorize="on", chunk=work.cohort, precision=precision),
            )
        for precision in PRECISIONS:
            with kept_precision():
                set_precision(precision)
                if precision != "bf16":
                    self.add(
                        "cifar",
                        f"by hand: loop, {precision}",
                        lambda p=precision: self.by_hand(Loop(work, task, self.device, p), 3),
                    )
                for form in FORMS:
                    if ("graph" in form and not self.on_gpu) or ("compile" in form and not self.compiled):
                        continue
                    self.add(
                        "cifar",
                        f"by hand: {form}, {precision}",
                        lambda form=form, p=precision: self.by_hand(Stacked(work, task, self.device, p, form)),
                    )
        if pfl.installed() and not self.small:
            self.add("cifar", "pfl-research, one process", lambda: 1e3 * pfl.seconds_of_a_round())

    def by_hand(self, form: Loop | Stacked, rounds: int | None = None) -> float:
        """Return the milliseconds of a round."""
        return self.timed(form.round, rounds)

    def pair(self, work: Workload, rounds: int, precisions: tuple[str, ...] = PRECISIONS) -> None:
        """Time a workload one by one and stacked."""
        task = work.task()
        for precision in precisions[:1] if self.small else precisions:
            self.add(
                work.name,
                f"one by one, {precision}",
                lambda p=precision: self.ours(work, task, 1, warm=1, vectorize="off", precision=p),
            )
            alone = self.rows[-1].value
            self.add(
                work.name,
                f"stacked, {precision}",
                lambda p=precision: self.ours(work, task, rounds, vectorize="on", chunk=work.cohort, precision=p),
            )
            together = self.rows[-1].value
            if alone and together:
                self.add(work.name, f"gain, {precision}", lambda a=alone, t=together: a / t, "times")

    def resnet18(self) -> None:
        """Time ResNet-18 with GroupNorm."""
        self.pair(RESNET[self.small], 2, ("float32", "bf16"))

    def lstm(self) -> None:
        """Time two recurrent layers."""
        self.pair(LSTM[self.small], 3, ("float32",))

    def lora(self) -> None:
        """Time LoRA on a small transformer."""
        self.pair(LORA[self.small], 3, ("tf32", "bf16"))

    def evaluation(self) -> None:
        """Time the evaluation of one model."""
        work = CIFAR[self.small]
        task = work.task()

        def measured(precision: str) -> float:
            with self.run(work, task, vectorize="off", precision=precision) as run, kept_precision():
                set_precision(precision)
                params = run.fed.init_params()
                return self.timed(lambda: run.fed.engine.evaluate(params))

        for precision in PRECISIONS[:2]:
            self.add("evaluation", f"{work.evaluated} pictures, {precision}", lambda p=precision: measured(p), "ms")

    def memory(self) -> None:
        """Measure the growth of memory."""
        work = CIFAR[self.small]
        first, last = (2, 4) if self.small else (20, 200)

        def grown() -> float:
            with self.run(work, work.task(), vectorize="on", chunk=work.cohort) as run:
                for _ in range(first):
                    run.step()
                before = self.allocated()
                for _ in range(last - first):
                    run.step()
                return (self.allocated() - before) / 2**20

        self.add("memory", f"growth from round {first} to {last}", grown, "MiB")
        if self.on_gpu:
            self.add("memory", "largest use of torch", lambda: torch.cuda.max_memory_allocated(self.device) / 2**20, "MiB")

    def allocated(self) -> int:
        """Return the bytes in use."""
        self.finish()
        if self.on_gpu:
            return int(torch.cuda.memory_allocated(self.device))
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def long(self) -> None:
        """Time a whole run, from its start to its end."""
        work, rounds = CIFAR[self.small], 4 if self.small else 1500
        task = work.task()

        def whole() -> float:
            started = time.perf_counter()
            with self.run(work, task, rounds=rounds, eval_every=rounds // 2 if self.small else 10) as run:
                run.go()
            return time.perf_counter() - started

        self.add("long", f"{rounds} rounds with evaluations, default settings", whole, "s")


PARTS = ("parity", "cifar", "resnet18", "lstm", "lora", "evaluation", "memory", "long")


def line(row: Row) -> str:
    """Return a row as text."""
    value = "failed" if row.value is None else f"{row.value:.3g}"
    return f"{row.part:<11} {row.what:<52} {value:>9} {row.unit:<9} {row.note}".rstrip()


def main(words: list[str] | None = None) -> list[Row]:
    """Run the benchmark; return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU finishes in seconds")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--seconds", type=float, default=280.0, help="no part begins after this time")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    args = parser.parse_args(words)
    if unknown := set(args.only.split(",")) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    warnings.simplefilter("ignore", UserWarning)
    keep_freed()  # as the command line does
    torch.set_num_threads(1 if args.device == "cpu" else torch.get_num_threads())
    bench, started = Bench(args.device, args.small, not (args.no_compile or args.small)), time.perf_counter()
    where = torch.cuda.get_device_name(args.device) if bench.on_gpu else args.device
    room = free_memory(torch.device(args.device))
    print(f"{where}, torch {torch.__version__}" + (f", {room / 2**30:.0f} GiB free" if room else ""), flush=True)
    for part in args.only.split(","):
        if time.perf_counter() - started > args.seconds:
            bench.rows.append(Row(part, "not begun: no time left", None, ""))
            continue
        try:
            getattr(bench, part)()
        except Exception as error:
            bench.rows.append(Row(part, "stopped", None, "", f"{type(error).__name__}: {str(error)[:200]}"))
    print("\n" + "\n".join(map(line, bench.rows)))
    seconds = time.perf_counter() - started
    record = {"device": where, "torch": torch.__version__, "seconds": seconds, "rows": [asdict(row) for row in bench.rows]}
    args.json.write_text(json.dumps(record, indent=1))
    print(f"\n{seconds:.0f} s; {args.json}")
    return bench.rows


if __name__ == "__main__":
    main()
