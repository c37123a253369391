"""Whole rounds in float64: cut, train, pad, merge. And a run of which every client's kept units and reply are recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from paceline.data import Partition
from paceline.methods.stragglers import selfpruning
from paceline.run import RunConfig, prepare
from paceline.tasks import Arrays, Task
from tests.methods.stragglers.nets import CLASSES, Net

SIZES = [5, 9, 4, 7, 6]
"""Samples of each client: unequal. The last client is slow."""

OWN = [[0, 1, 2], [1, 2, 3], [0, 3], [0, 1, 2, 3], [1, 2]]
"""Classes of each client."""

LR, STEPS, SLOW = 0.2, 2, 4
Tensors = dict[str, np.ndarray]


def made(net: Net, seed: int = 3) -> tuple[Task, Partition, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return a task, its split, and the samples of each client in float64."""
    rng, y = torch.Generator().manual_seed(seed), []
    for size, own in zip(SIZES, OWN, strict=True):
        y += [own[i % len(own)] for i in range(size)]
    x, labels = torch.randn(len(y), *net.shape, generator=rng), torch.tensor(y)
    ends = torch.tensor(np.cumsum([0, *SIZES]))
    split = Partition("fixed", torch.arange(len(y)), ends, ends[1:].clone())
    data = Arrays(x, labels)
    task = Task("made", data, data, net.build, CLASSES, lr=LR, batch_size=100)
    return task, split, [(x[a:b].double(), labels[a:b]) for a, b in pairwise(ends)]


def cut(net: Net, theta: Tensors, kept: dict[str, list[int]] | None) -> Tensors:
    """Return the tensors that remain."""
    if kept is None:
        return theta
    return {n: t[np.ix_(*net.indices(n, kept, t.shape))] for n, t in theta.items()}


def padded(net: Net, small: Tensors, like: Tensors, kept: dict[str, list[int]] | None) -> Tensors:
    """Return full-size tensors with `small` at the kept positions and 0 elsewhere."""
    if kept is None:
        return small
    out = {n: np.zeros_like(t) for n, t in like.items()}
    for n, t in out.items():
        t[np.ix_(*net.indices(n, kept, t.shape))] = small[n]
    return out


def trained(
    net: Net,
    theta: Tensors,
    kept: dict[str, list[int]] | None,
    samples: tuple[torch.Tensor, torch.Tensor],
    scale: float = 1.0,
    absent: list[int] | None = None,
    steps: int = STEPS,
) -> tuple[Tensors, Tensors]:
    """Return the change after a few steps on all samples, and a mask of the trained coordinates."""
    start = cut(net, theta, kept)
    w = {n: torch.tensor(t, requires_grad=True) for n, t in start.items()}
    x, y = samples
    for _ in range(steps):
        scores = net.forward(w, x, scale)
        if absent:
            zero = torch.zeros(CLASSES, dtype=torch.bool)
            zero[absent] = True
            scores = torch.where(zero, 0.0, scores)
        log = scores - scores.logsumexp(1, keepdim=True)
        loss = -log[torch.arange(len(y)), y].mean()
        slopes = torch.autograd.grad(loss, list(w.values()))
        w = {n: (t - LR * g).detach().requires_grad_() for (n, t), g in zip(w.items(), slopes, strict=True)}
    change = {n: t.detach().numpy() - start[n] for n, t in w.items()}
    ones = {n: np.ones_like(t) for n, t in start.items()}
    return padded(net, change, theta, kept), padded(net, ones, theta, kept)


def merged(theta: Tensors, changes: list[Tensors], weights: list[Tensors]) -> Tensors:
    """Return theta plus the weighted mean of each coordinate; unchanged where all weights are 0."""
    out = {}
    for n, t in theta.items():
        total, weight = sum(c[n] * w[n] for c, w in zip(changes, weights, strict=True)), sum(w[n] for w in weights)
        out[n] = t + np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), 0.0)
    return out


def full(like: Tensors, value: float) -> Tensors:
    """Return the same value everywhere."""
    return {n: np.full_like(t, value) for n, t in like.items()}


def scores(net: Net, change: Tensors, theta: Tensors, mask: Tensors | None = None, eps: float = 1e-3) -> dict[str, np.ndarray]:
    """Return for each unit the largest |change| / (|theta| + eps rms of the layer) of its bundle; NaN if nothing was trained."""
    layers: dict[str, list[str]] = {}
    for n in theta:
        layers.setdefault(n.rpartition(".")[0], []).append(n)
    ratio = {}
    for names in layers.values():
        rms = np.sqrt(np.mean(np.concatenate([theta[n].ravel() for n in names]) ** 2))
        for n in names:
            below = np.abs(theta[n]) + eps * rms
            ratio[n] = np.where(change[n] == 0, 0.0, np.abs(change[n]) / np.where(below == 0, 1.0, below))
    out = {}
    shapes = {n: t.shape for n, t in theta.items()}
    for group, units in net.units.items():
        out[group] = np.full(units, np.nan)
        for j in range(units):
            bundle = net.bundle(group, j, shapes)
            found = [ratio[n][bundle[n] & (True if mask is None else mask[n] > 0)] for n in theta]
            found = np.concatenate(found)
            if len(found):
                out[group][j] = found.max()
    return out


@dataclass
class Seen:
    """What one round of a run did."""

    before: Tensors
    after: Tensors
    state: Any
    buffers: Tensors
    fraction: dict[int, float] = field(default_factory=dict)
    kept: dict[int, list[dict[str, list[int]]]] = field(default_factory=dict)
    memory: dict[int, dict[str, Any]] = field(default_factory=dict)
    sent: dict[int, Any] = field(default_factory=dict)


def tensors(net: Net, params: Any) -> Tensors:
    """Return the parameters (not the running statistics) in float64."""
    return {n: params[n].double().numpy().copy() for n in net.axes}


def run(
    monkeypatch: Any, net: Net, method: str, number: int, fleet: str = "stragglers:share=0.2,slow=5,compute=1e5", **options: Any
):
    """Yield what each round of a run did."""
    task, split, _ = made(net)
    values = {"method": method, "task": "made", "clients": 5, "cohort": 5, "rounds": number, "vectorize": "off", "fleet": fleet}
    config = RunConfig.build(values | {"options": {"epochs": STEPS} | options})
    prepared = prepare(config, task=task, split=split)
    fed, engine = prepared.fed, prepared.fed.engine
    state, seen = prepared.method.init(fed), {}
    worker, real, cutting = engine.here, engine.here.invoke, selfpruning.train_submodel
    acting = []

    def invoke(me: Any, function: str, message: Any) -> Any:
        acting.append(me.id)
        if isinstance(message, dict) and isinstance(message.get("own"), dict):
            seen["sent"][me.id] = message["own"]
        return real(me, function, message)

    def train_submodel(client: Any, params: Any, sub: Any, *args: Any, **more: Any) -> Any:
        seen["kept"].setdefault(client.id, []).append({g: u.tolist() for g, u in sub.kept.items()})
        return cutting(client, params, sub, *args, **more)

    monkeypatch.setattr(worker, "invoke", invoke)
    monkeypatch.setattr(selfpruning, "train_submodel", train_submodel)
    monkeypatch.setattr("paceline.methods.stragglers.fjord.train_submodel", train_submodel)
    for at in range(1, number + 1):
        fed.start_round(at)
        seen = {"kept": {}, "sent": {}}
        before = tensors(net, state.params)
        state = prepared.method.round(fed, state)
        memories = fed.engine.commit()
        rest = {e.name: state.params[e.name].double().numpy().copy() for e in state.params.layout.entries if e.name not in net.axes}
        yield Seen(
            before,
            tensors(net, state.params),
            state,
            rest,
            {c: m["fraction"] for c, m in memories.items() if "fraction" in m},
            seen["kept"],
            {c: dict(m) for c, m in memories.items()},
            seen["sent"],
        )
    fed.engine.close()


def close(found: Tensors, expected: Tensors) -> None:
    """Assert that all tensors are equal to the precision of float32 sums."""
    for n, t in expected.items():
        np.testing.assert_allclose(found[n], t, rtol=2e-4, atol=2e-5, err_msg=n)
