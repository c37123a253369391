"""The workloads: random data of the published shapes, and smaller ones that a CPU finishes in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paceline.models import build
from paceline.tasks import Arrays, Task

__all__ = ["CIFAR", "LORA", "LSTM", "RESNET", "Workload"]


@dataclass(frozen=True)
class Workload:
    """A federation on random data.

    Args:
        name: of the workload.
        model: builds the module.
        inputs: makes `count` inputs from a generator.
        classes: number of classes, from which targets are drawn.
        clients, samples, cohort, batch: size of the population and the cohort, samples of a client and of a step.
        evaluated: samples of the central test set.
        each_token: whether each symbol of an input has a target.
        method, options: of the runs.
    """

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[int, torch.Generator], Tensor]
    classes: int
    clients: int
    samples: int
    cohort: int
    batch: int
    evaluated: int
    each_token: bool = False
    method: str = "fedavg"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps of a client in a round."""
        return -(-self.samples // self.batch)

    def task(self) -> Task:
        """Return the task."""
        generator = torch.Generator().manual_seed(0)

        def arrays(count: int) -> Arrays:
            x = self.inputs(count, generator)
            shape = x.shape if self.each_token else (count,)
            return Arrays(x, torch.randint(0, self.classes, shape, generator=generator))

        train, test = arrays(self.clients * self.samples), arrays(self.evaluated)
        return Task(self.name, train, test, self.model, self.classes, lr=0.05, batch_size=self.batch)


def images(count: int, generator: torch.Generator, side: int = 32) -> Tensor:
    """Return pictures of three channels."""
    return torch.randn(count, 3, side, side, generator=generator)


def tokens(count: int, generator: torch.Generator, length: int, symbols: int) -> Tensor:
    """Return sequences of symbols."""
    return torch.randint(0, symbols, (count, length), generator=generator)


def cnn(side: int = 32, wide: int = 1) -> nn.Module:
    """Return the network of pfl-research's benchmark: 1.63 M parameters for 32 x 32 pictures."""
    inner = 64 // wide * ((side - 4) // 2) ** 2
    return nn.Sequential(
        nn.Conv2d(3, 32 // wide, 3), nn.ReLU(), nn.Conv2d(32 // wide, 64 // wide, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(inner, 128 // wide), nn.ReLU(), nn.Linear(128 // wide, 10),
    )  # fmt: skip


class Characters(nn.Module):
    """Two recurrent layers that predict the class of a text from its last state."""

    def __init__(self, symbols: int, width: int, classes: int) -> None:
        super().__init__()
        self.table, self.cells = nn.Embedding(symbols, 8), nn.LSTM(8, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores, shape [N, classes]."""
        out: Tensor = self.head(self.cells(self.table(x))[0][:, -1])
        return out


CIFAR = {
    False: Workload("cifar", cnn, images, 10, clients=1000, samples=50, cohort=50, batch=10, evaluated=10_000),
    True: Workload("cifar", partial(cnn, 12, 8), partial(images, side=12), 10, 12, 20, cohort=6, batch=10, evaluated=100),
}
RESNET = {
    False: Workload(
        "resnet18", partial(build, "resnet18"), images, 10, clients=100, samples=500, cohort=10, batch=16, evaluated=1000
    ),
    True: Workload(
        "resnet18", partial(build, "resnet18", shape=(3, 8, 8), width=4, groups=2), partial(images, side=8), 10, 4, 4, 2, 2, 8
    ),
}
LSTM = {
    False: Workload(
        "lstm",
        partial(Characters, 96, 256, 96),
        partial(tokens, length=80, symbols=96),
        96,
        100,
        40,
        cohort=20,
        batch=10,
        evaluated=1000,
    ),
    True: Workload("lstm", partial(Characters, 16, 8, 16), partial(tokens, length=6, symbols=16), 16, 4, 4, 2, 2, 8),
}
_WIDE = {"shape": (128,), "num_classes": 512, "dim": 512, "depth": 8, "heads": 8}
_NARROW = {"shape": (8,), "num_classes": 16, "dim": 8, "depth": 1, "heads": 2}
LORA = {
    False: Workload(
        "lora", partial(build, "char_model", **_WIDE), partial(tokens, length=128, symbols=512), 512, 64, 16, 8, 4, 64,
        each_token=True, method="fedit", options={"rank": 16},
    ),
    True: Workload(
        "lora", partial(build, "char_model", **_NARROW), partial(tokens, length=8, symbols=16), 16, 4, 4, 2, 2, 4,
        each_token=True, method="fedit", options={"rank": 2},
    ),
}  # fmt: skip
"""Each workload in full, and small."""
