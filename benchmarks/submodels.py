"""Step time of sub-models against the full model, on one CPU thread.

All widths take turns within each repetition, so that whatever else the machine does hits them alike; the
table shows medians. A step is forward, loss, backward and the SGD update of a resident module.

    python benchmarks/submodels.py [--repeats 40]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from paceline.core.layout import Layout
from paceline.core.params import Params, Resident
from paceline.submodels.cut import TIERS, Cutter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.submodels.nets import FemnistCNN, vgg9

CASES = {
    "VGG-9, CIFAR-10 size, batch 20": (vgg9, (20, 3, 32, 32), 10),
    "FEMNIST CNN, batch 10": (FemnistCNN, (10, 1, 28, 28), 62),
}
LIMIT = 0.6


def step(resident: Resident, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the seconds of one training step."""
    start = time.perf_counter()
    resident.grads.vector.zero_()
    F.cross_entropy(resident.module(x), y).backward()
    with torch.no_grad():
        resident.params.vector.add_(resident.grads.vector, alpha=-0.01)
    return time.perf_counter() - start


def measure(name: str, repeats: int) -> bool:
    """Print one table; return whether p = 0.5 meets the limit."""
    make, shape, classes = CASES[name]
    torch.manual_seed(0)
    net = make()
    layout = Layout.of(net)
    cutter = Cutter(net, layout, torch.zeros(1, *shape[1:]))
    full = Params.of(net, layout)
    x, y = torch.randn(shape), torch.randint(classes, shape[:1])
    residents = {}
    for p in TIERS:
        sub = cutter.first(p)
        residents[p] = sub.resident()
        residents[p].load(sub.extract(full))
        residents[p].module.train()
        for _ in range(3):
            step(residents[p], x, y)
    times: dict[float, list[float]] = {p: [] for p in TIERS}
    for _ in range(repeats):
        for p in TIERS:
            times[p].append(step(residents[p], x, y))
    median = {p: statistics.median(t) for p, t in times.items()}
    ratio = statistics.median(a / b for a, b in zip(times[0.5], times[1.0], strict=True))
    cuts = []
    for _ in range(10):
        start = time.perf_counter()
        sub = cutter.first(0.5)
        sub.resident().load(sub.extract(full))
        cuts.append(time.perf_counter() - start)
    print(f"\n{name}: {layout.size:,} parameters; cut + load at p = 0.5: {statistics.median(cuts) * 1e3:.2f} ms")
    print(f"{'p':>5} {'params':>10} {'share':>6} {'FLOPs':>6} {'step ms':>8} {'of full':>8}")
    for p in TIERS:
        size = cutter.first(p).layout.size
        print(
            f"{p:5.2f} {size:10,} {size / layout.size:6.3f} {cutter.cost(p):6.3f} "
            f"{median[p] * 1e3:8.2f} {median[p] / median[1.0]:8.3f}"
        )
    verdict = "meets" if ratio <= LIMIT else "MISSES"
    print(f"p = 0.5 takes {ratio:.3f} of the full step (median of paired ratios): {verdict} the limit {LIMIT}")
    return ratio <= LIMIT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    return 0 if all([measure(name, repeats) for name in CASES]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
