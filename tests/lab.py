"""A user's own module with a thing of every kind, and installed packages: folders with the metadata that Python reads."""

from __future__ import annotations

from pathlib import Path

__all__ = ["LAB", "OWN", "distribution"]

LAB = '''
import math
import torch
from subprocess import Popen
from dataclasses import dataclass
from torch import nn
from paceline.adversaries.behaviours import Adversary, SignFlip
from paceline.aggregation import Plain
from paceline.devices import Fleet
from paceline.engines import LocalEngine
from paceline.metrics import ClassMetric
from paceline.methods.optimisation import fedprox
from paceline.participation.processes import Participation, RateProcess
from paceline.tasks import blobs


@dataclass(frozen=True)
class FedProx(fedprox.FedProx):
    """Twice the pull."""

    mu: float = 2.0


def task(seed=0, samples: int = 60):
    """Five clouds."""
    return blobs(samples=samples)


class Net(nn.Module):
    def __init__(self, shape, num_classes, width: int = 4):
        super().__init__()
        size = math.prod(shape)
        self.flat, self.a, self.b = nn.Flatten(), nn.Linear(size, width), nn.Linear(width, num_classes)

    def forward(self, x):
        return self.b(self.a(self.flat(x)).relu())


def chain(shape, num_classes, width: int = 4):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU(), nn.Linear(width, num_classes))


class Share(ClassMetric):
    def count(self, scores, targets):
        return {"right": (scores.argmax(1) == targets).sum(), "count": torch.tensor(len(targets))}

    def figures(self, total):
        return {"share": int(total["right"]) / max(int(total["count"]), 1)}


class Engine(LocalEngine):
    pass


@dataclass(frozen=True)
class Sums(Plain):
    scale: int = 1


@dataclass(frozen=True)
class Trams(Fleet):
    delay: float = 0.0
    name = "trams"


@dataclass(frozen=True)
class Weekends(Participation):
    every: int = 7

    def available(self, client, round):
        return round % self.every > 0


@dataclass(frozen=True)
class Half(RateProcess):
    def available(self, client, round):
        return self.rates(client) > 0.4


@dataclass(frozen=True)
class Loud(SignFlip):
    scale: float = 3.0
'''
"""The module ``mylab``."""

OWN = {
    "method": "FedProx", "task": "task", "model": "Net", "metric": "Share", "engine": "Engine", "aggregation": "Sums",
    "fleet": "Trams", "participation": "Weekends", "adversary": "Loud",
}  # fmt: skip
"""What of ``mylab`` is of which kind."""


def distribution(folder: Path, name: str, **groups: dict[str, str]) -> None:
    """Write the metadata of a package with entry points.

    Args:
        folder: to be put on the path.
        name: of the package.
        groups: ``{name: target}`` for each group, which is named without ``paceline.``.
    """
    place = folder / f"{name}-1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[paceline.{group}]", *(f"{point} = {target}" for point, target in points.items()), "")
    ]
    (place / "entry_points.txt").write_text("\n".join(lines))
