"""Black-box tasks: clients can only evaluate an objective at points of the unit cube.

`quadratic` is synthetic with a known minimum. The others hide models: `metric` is 1 - F1 of a network whose weights are
shifted, which has no gradient; `attack` is the confidence of the clients' own classifiers in one shifted image. An
objective clips its argument to the cube. A point is stored in a module (`HeldSamples`), so that it has a layout like a
model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from paceline.blocks.blackbox import Objective
from paceline.core.client import Client
from paceline.core.errors import ConfigError
from paceline.core.random import derive, numpy_rng
from paceline.core.task import Arrays, Task
from paceline.models.pretraining import pretrain
from paceline.tasks.recipe import task_card

__all__ = [
    "Attack",
    "BlackBoxTask",
    "HeldSamples",
    "MetricObjective",
    "Quadratic",
    "attack",
    "macro_f1",
    "metric",
    "quadratic",
]


class HeldSamples(nn.Module):
    """A point, drawn from the unit cube or given.

    Args:
        dim: d.
        at: value of every coordinate; None draws them.
    """

    def __init__(self, dim: int, at: float | None = None) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.rand(dim) if at is None else torch.full((dim,), at))

    def forward(self, given: Tensor) -> Tensor:
        """Return one zero score per sample: only the objective matters."""
        return given.flatten(1)[:, :1] * 0


@dataclass(frozen=True, kw_only=True)
class BlackBoxTask(Task):
    """A task whose clients only evaluate an objective.

    Args:
        objective: the objective.
    """

    objective: Objective


def _task(name: str, samples: Arrays, objective: Objective, dim: int, at: float | None, notes: str) -> BlackBoxTask:
    return BlackBoxTask(
        name=name,
        train=samples,
        test=samples,
        model=partial(HeldSamples, dim, at),
        num_classes=int(samples.y.max()) + 1,
        batch_size=1,
        notes=notes,
        objective=objective,
    )


def _own(client: Client) -> tuple[Tensor, Tensor]:
    rows = client.train.index
    return client.train.x[rows], client.train.y[rows]


class Quadratic:
    """f_i(x) = (0.1 / d) (c . z^2 + c' . z + 1) with z = 20 x - 10 and a sample (c, c'); the mean over samples."""

    def value(self, client: Client, x: Tensor) -> float:
        """Return f_i(x)."""
        given = _own(client)[0].double().cpu()
        z = 20 * x.clamp(0, 1) - 10
        c, linear = torch.split(given, len(x), 1)
        return float((c @ z**2 + linear @ z + 1).mean()) * 0.1 / len(x)


@task_card("a synthetic quadratic that clients can only evaluate", "none")
def quadratic(model: None = None, seed: int = 0, dim: int = 300, clients: int = 5, div: float = 0.5) -> BlackBoxTask:
    """Return the synthetic task: coefficients c_i = 1 + div (p_i - 1 / N) with p from Dirichlet(1 / N), so their mean is 1.

    F has its minimum (0.1 / d) (1 - d / 4) at z = -1/2. Each of the `clients` samples belongs to one client.

    Args:
        model: unused.
        seed: seed of the coefficients.
        dim: d.
        clients: N, number of samples.
        div: heterogeneity of the clients.

    Raises:
        ConfigError: a value is out of range.
    """
    if min(dim, clients) < 1 or div < 0:
        raise ConfigError(f"dim={dim} and clients={clients} must be at least 1, and div={div} at least 0")
    rng = numpy_rng(seed, "quadratic", dim, clients)
    shares = rng.dirichlet(np.full(clients, 1 / clients), size=2 * dim).T
    x = torch.from_numpy(1 + div * (shares - 1 / clients)).float()
    samples = Arrays(x, torch.zeros(clients, dtype=torch.int64), torch.arange(clients), [str(i) for i in range(clients)])
    return _task(
        "quadratic",
        samples,
        Quadratic(),
        dim,
        None,
        f"a quadratic of {dim} coordinates, by {clients} clients",
    )


def macro_f1(found: Tensor, y: Tensor, classes: int) -> float:
    """Return the mean of 2 TP / (2 TP + FP + FN) over the classes present."""
    table = torch.bincount(y * classes + found, minlength=classes**2).view(classes, classes).double()
    right, there = table.diagonal(), table.sum(1) > 0
    score = 2 * right / (table.sum(0) + table.sum(1)).clamp(min=1)
    return float(score[there].mean())


@dataclass(frozen=True)
class MetricObjective:
    """1 - macro F1 on the client's samples, of a network whose weights are shifted by up to `reach`; it has no gradient.

    Args:
        module: the network; its weights correspond to x = 1/2.
        weights: all of them as one vector.
        reach: largest shift.
        classes: number of classes.
    """

    module: nn.Module
    weights: Tensor
    reach: float
    classes: int

    def value(self, client: Client, x: Tensor) -> float:
        """Return 1 - F1."""
        inputs, y = _own(client)
        if not len(y):
            return 1.0
        shifted = self.weights + self.reach * (2 * x.clamp(0, 1) - 1).float()
        named, start = {}, 0
        for name, parameter in self.module.named_parameters():
            named[name] = shifted[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        with torch.no_grad():
            out: Tensor = torch.func.functional_call(self.module, named, (inputs.cpu(),))
        return 1 - macro_f1(out.argmax(1), y.cpu(), self.classes)


@task_card("shift a network's weights to a better F1, which has no gradient", "mlp", "digits")
def metric(
    model: str | None = None,
    seed: int = 0,
    of: str = "digits",
    hidden: int = 8,
    epochs: int = 2,
    reach: float = 0.2,
    limit: int = 600,
) -> BlackBoxTask:
    """Return the task of better F1: a small network, trained a little on a part of a named task, whose weights are searched."""
    from paceline.tasks.load import load_task

    base = load_task(of, model=model or "mlp", seed=seed, hidden=hidden, limit=limit)
    module = base.build(derive(seed, "metric"))
    pretrain(module, base.train.x, base.train.y, epochs=epochs, seed=seed)
    weights = parameters_to_vector(module.parameters()).detach()
    objective = MetricObjective(module.requires_grad_(False), weights, reach, base.num_classes)
    return _task(
        f"metric of {of}",
        base.train,
        objective,
        len(weights),
        0.5,
        f"1 - F1 of a network of {len(weights)} weights",
    )


@dataclass(frozen=True)
class Attack:
    """Confidence of a client's own classifier: score of the image's class - best other score; misclassified below 0.

    Args:
        modules: classifiers; a client's sample selects its own.
        picture: shape [1, ...].
        label: class of the image.
        reach: largest shift of a pixel.
    """

    modules: tuple[nn.Module, ...]
    picture: Tensor
    label: int
    reach: float

    def value(self, client: Client, x: Tensor) -> float:
        """Return the mean over the client's classifiers."""
        shifted = self.picture + self.reach * (2 * x.clamp(0, 1) - 1).float().view_as(self.picture)
        with torch.no_grad():
            scores = [self.modules[int(i)](shifted)[0] for i in _own(client)[0][:, 0]]
        others = [torch.cat([s[: self.label], s[self.label + 1 :]]).max() for s in scores]
        return sum(float(s[self.label] - o) for s, o in zip(scores, others, strict=True)) / max(len(scores), 1)


@task_card("one shift of a picture that misleads the clients' own classifiers", "mlp", "digits")
def attack(
    model: str | None = None,
    seed: int = 0,
    of: str = "digits",
    clients: int = 10,
    portion: float = 0.7,
    reach: float = 0.5,
    epochs: int = 5,
    picture: int = 0,
    limit: int = 1000,
) -> BlackBoxTask:
    """Return the task of one shift of an image that misleads all clients: each classifier saw a `portion` of the classes.

    The image is the test sample with index `picture`; every classifier saw its class.
    """
    from paceline.tasks.load import load_task

    base = load_task(of, model=model, seed=seed, limit=limit)
    x, y, modules = base.train.x, base.train.y, []
    label = int(base.test.y[picture])
    for i in range(clients):
        others = [c for c in numpy_rng(seed, "attack", i).permutation(base.num_classes).tolist() if c != label]
        known = torch.tensor([label, *others[: max(round(portion * base.num_classes) - 1, 1)]])
        rows = torch.isin(y, known)
        module = base.build(derive(seed, "attack", i))
        pretrain(module, x[rows], y[rows], epochs=epochs, seed=derive(seed, i))
        modules.append(module.eval().requires_grad_(False))
    shown = base.test.x[picture : picture + 1]
    owners = torch.arange(clients)
    samples = Arrays(owners[:, None].float(), torch.zeros_like(owners), owners, [str(i) for i in range(clients)])
    notes = f"a shift of one picture of {of}, class {base.classes[label]}, against {clients} classifiers"
    return _task(f"attack on {of}", samples, Attack(tuple(modules), shown, label, reach), shown.numel(), 0.5, notes)
