"""Quadratics: client i has f_i(w) = 1/2 sum_d a_id (w_d - b_id)^2, so that every gradient is known."""

import numpy as np
import torch
from torch import nn

from paceline.data import Partition
from paceline.run import RunConfig, prepare
from paceline.tasks import Arrays, Task


class Point(nn.Module):
    """A vector w; a sample's output is sqrt(a) w."""

    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(start, dtype=torch.float32).clone())

    def forward(self, x):
        return x * self.w


def half_square(out, y):
    return 0.5 * ((out - y) ** 2).sum(-1).mean()


def quadratics(optima, curvatures=None, start=0.0, noise=0.0, samples=1, seed=0, sizes=None):
    """Return a task of which client i has `samples` points whose optima lie around ``optima[i]`` with its mean there.

    Args:
        optima: b, shape [clients] or [clients, dims].
        curvatures: a, of the same shape; ones by default.
        start: the first w.
        noise: deviation of the points' optima.
        samples: points of each client.
        seed: of the noise.
        sizes: points of each client, where they differ.
    """
    b = np.asarray(optima, float).reshape(len(optima), -1)
    a = np.ones_like(b) if curvatures is None else np.asarray(curvatures, float).reshape(b.shape)
    sizes = [samples] * len(b) if sizes is None else sizes
    rng, points, owner = np.random.default_rng(seed), [], np.repeat(np.arange(len(b)), sizes)
    for client, size in enumerate(sizes):
        off = noise * rng.normal(size=(size, b.shape[1]))
        points.append(b[client] + off - off.mean(0))
    x = torch.tensor(a[owner] ** 0.5, dtype=torch.float32)
    y = x * torch.tensor(np.concatenate(points), dtype=torch.float32)
    data = Arrays(x, y, torch.tensor(owner), [str(i) for i in range(len(b))])
    first = np.broadcast_to(np.asarray(start, float), (b.shape[1],)).copy()
    return Task("quadratics", data, data, lambda: Point(first), 1, loss=half_square, lr=0.1, batch_size=max(sizes))


def by_size(sizes):
    """Return the partition that gives consecutive samples to clients, so many to each; 0 is an empty client."""
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return Partition("by size", torch.arange(int(offsets[-1])), offsets, offsets[1:].clone())


def play(task, method, rounds, drop=None, meet=lambda fed: None, split=None, **changes):
    """Yield (w as numpy, state, fed) after each round; rounds in which nobody is there are passed over.

    `meet` gets the federation before the first round; `split` takes the place of the samples' owners.
    """
    clients = len(task.train.owners if split is None else split)
    values = {"method": method, "task": "q", "partition": "natural", "clients": clients, "cohort": clients, "rounds": rounds}
    prepared = prepare(RunConfig.build(values | {"vectorize": "off"} | changes), task=task, drop=drop, split=split)
    fed, state = prepared.fed, prepared.method.init(prepared.fed)
    meet(fed)
    for number in range(1, rounds + 1):
        fed.start_round(number)
        if fed.available(1):
            state = prepared.method.round(fed, state)
            fed.engine.commit()
        yield prepared.method.model(state).vector.double().numpy().copy(), state, fed
    fed.engine.close()


def numbers(task, method, rounds, **changes):
    """Return w after each round, for one dimension."""
    return [float(w[0]) for w, _, _ in play(task, method, rounds, **changes)]
