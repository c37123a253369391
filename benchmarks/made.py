"""Tasks made for the rows of effects: quadratics of which the optimum is known, and pictures with the groups' own labels."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paceline.blocks.augmentations import tilt
from paceline.core.params import Params
from paceline.data import Partition
from paceline.methods.optimisation.fedlex import FedLEx
from paceline.metrics import ClassMetric
from paceline.tasks import Arrays, Task, load_task

__all__ = [
    "MeanConfidence",
    "ShuffledFedLEx",
    "distance",
    "late_accuracy",
    "late_deviation",
    "late_loss",
    "moved",
    "permuted_labels",
    "quadratics",
    "separated_pairs",
    "squared",
]


class Point(nn.Module):
    """A vector w; a sample (r, s) has the residual r w - s as its output."""

    def __init__(self, start: Any) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(start, dtype=torch.float32).clone())

    def forward(self, x: Tensor) -> Tensor:
        scale, target = x.chunk(2, dim=-1)
        return scale * self.w - target


def _half_square(residual: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (residual**2).sum(-1).mean()


def quadratics(b: Any, a: Any = None, noise: float = 0.0, seed: int = 0, samples: int = 200) -> Task:
    """Return clients with f_i(w) = 1/2 sum_d a_id (w_d - b_id)^2, that start at the origin.

    The test loss is half the squared distance to the optimum of the mean of all f_i.

    Args:
        b: optima, shape [clients, dims].
        a: curvatures of the same shape; ones by default.
        noise: deviation of single samples' optima.
        seed: of the noise.
        samples: of each client; many more than a round takes.
    """
    b = np.asarray(b, float)
    a = np.ones_like(b) if a is None else np.asarray(a, float)
    off = noise * np.random.default_rng((seed, 1)).normal(size=(len(b), samples, b.shape[1]))
    points = b[:, None] + off - off.mean(1, keepdims=True)
    scale = np.broadcast_to(a[:, None] ** 0.5, points.shape)
    owner = torch.arange(len(b)).repeat_interleave(samples)
    train = Arrays(_sample(scale, scale * points), torch.zeros_like(owner), owner, [str(i) for i in range(len(b))])
    best = (a * b).sum(0) / a.sum(0)
    test = Arrays(_sample(np.ones_like(best), best), torch.zeros(1, dtype=torch.int64))
    return Task("quadratics", train, test, lambda: Point(np.zeros(b.shape[1])), 1, loss=_half_square, lr=0.02, batch_size=1)


def _sample(scale: Any, target: Any) -> Tensor:
    both = np.concatenate([scale, target], axis=-1)
    return torch.tensor(both.reshape(-1, both.shape[-1]), dtype=torch.float32)


def _tail(summary: Any, name: str = "loss") -> list[float]:
    values = [r[name] for r in summary.history if name in r]
    return values[len(values) // 2 :]


def distance(summary: Any) -> float:
    """Return the mean distance to the optimum over the last half of the rounds."""
    tail = _tail(summary)
    return sum(math.sqrt(2 * loss) for loss in tail) / len(tail)


def squared(summary: Any) -> float:
    """Return the mean squared distance to the optimum over the last half of the rounds."""
    tail = _tail(summary)
    return sum(2 * loss for loss in tail) / len(tail)


def late_accuracy(summary: Any) -> float:
    """Return the mean accuracy over the last half of the evaluations: with few clients in a round, one alone depends on which."""
    tail = _tail(summary, "accuracy")
    return sum(tail) / len(tail)


def late_deviation(summary: Any) -> float:
    """Return the deviation of the accuracy over the last half of the evaluations."""
    return statistics.stdev(_tail(summary, "accuracy"))


def late_loss(summary: Any) -> float:
    """Return the mean loss over the last half of the evaluations."""
    tail = _tail(summary)
    return sum(tail) / len(tail)


def permuted_labels(seed: int, of: str, groups: int, members: int, samples: int, hidden: list[int]) -> dict[str, Any]:
    """Return a data set whose inputs are alike everywhere, while each group of clients names the classes in its own way.

    Each client has `samples` for training and a fifth as many for its tests.
    """
    base = load_task(of, model="mlp", seed=seed, hidden=hidden)
    rng, clients = np.random.default_rng((seed, 2)), groups * members
    each, held = samples + samples // 5, samples // 5
    rows = torch.as_tensor(rng.permutation(len(base.train))[: clients * each])
    group = np.arange(clients) // members
    names = torch.as_tensor(np.stack([rng.permutation(base.num_classes) for _ in range(groups)]))
    y = base.train.y[rows].clone()
    y = names[torch.as_tensor(np.repeat(group, each)), y]
    task = dataclasses.replace(base, train=Arrays(base.train.x[rows], y))
    ends = each * torch.arange(1, clients + 1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
    split = Partition("permuted labels", torch.arange(clients * each), offsets, ends - held, groups=tuple(group.tolist()))
    return {"task": task, "split": split}


class FixedHead(nn.Module):
    """A wide layer of ReLU units that is trained, under signs that are not: 2 scores, of which one is the other's opposite."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, width)
        nn.init.normal_(self.layer.weight, std=width**-0.5)
        nn.init.zeros_(self.layer.bias)
        signs = torch.where(torch.rand(width) < 0.5, -1.0, 1.0)
        self.register_buffer("signs", signs * width ** (-1 / 3))

    def forward(self, x: Tensor) -> Tensor:
        score = self.layer(x).relu() @ self.signs
        return torch.stack([-score, score], -1) / 2


def separated_pairs(seed: int, pairs: int, inputs: int, gap: float, width: int) -> dict[str, Any]:
    """Return unit vectors in pairs with different labels that lie `gap` apart, and nearer to each other than to all others."""
    rng = np.random.default_rng((seed, 3))
    centres: list[Any] = []
    while len(centres) < pairs:
        new = rng.normal(size=inputs)
        new *= math.sqrt(0.75) / np.linalg.norm(new)  # the last coordinate of a sample is 1/2
        if all(np.linalg.norm(new - old) >= 2 * gap for old in centres):
            centres.append(new)
    sides = rng.normal(size=(pairs, inputs))
    x = np.empty((pairs, 2, inputs + 1))
    for centre, side, pair in zip(centres, sides, x, strict=True):
        across = side - centre * (side @ centre) / (centre @ centre)
        across *= gap / 2 / np.linalg.norm(across)
        along = centre * math.sqrt(1 - (across @ across) / 0.75)
        pair[:, :-1] = along + across, along - across
    x[..., -1] = 0.5
    data = Arrays(torch.tensor(x.reshape(2 * pairs, -1), dtype=torch.float32), torch.arange(2 * pairs) % 2)
    return {"task": Task("separated pairs", data, data, lambda: FixedHead(inputs + 1, width), 2, lr=0.1, batch_size=len(data.y))}


def moved(seed: int, of: str, model: str, limit: int) -> dict[str, Any]:
    """Return a data set of pictures whose test pictures are turned by up to 25 degrees and shifted by up to a tenth of the side."""
    task = load_task(of, model=model, seed=seed, limit=limit)
    x = tilt(25.0, shift=0.2)(task.test.x, torch.Generator().manual_seed(seed))
    return {"task": dataclasses.replace(task, test=Arrays(x, task.test.y))}


@dataclasses.dataclass(frozen=True)
class ShuffledFedLEx(FedLEx):
    """FedLEx whose factors are shuffled in each tensor: the same steps on average, without what exploration found."""

    def scaled(self, displacement: Params) -> Params:
        """Return the guidance with shuffled entries."""
        found = super().scaled(displacement).clone()
        stream = torch.Generator().manual_seed(0)
        for entry in found.layout.entries:
            tensor = found[entry.name].view(-1)
            tensor.copy_(tensor[torch.randperm(entry.size, generator=stream).to(tensor.device)])
        return found


class MeanConfidence(ClassMetric):
    """Mean of the largest probability of a sample's classes."""

    higher_is_better = False

    def count(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the summed confidence and the number of samples."""
        return {"confidence": scores.double().softmax(1).amax(1).sum(), "count": torch.tensor(len(targets))}

    def figures(self, total: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean."""
        return {"mean_confidence": float(total["confidence"]) / max(int(total["count"]), 1)}
