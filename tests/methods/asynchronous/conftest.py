"""Quadratics: client i has f_i(w) = a_i / 2 (w - b_i)^2, so that every gradient is known."""

import numpy as np
import pytest
import torch
from torch import nn

from paceline.run import RunConfig, prepare
from paceline.tasks import Arrays, Task


def half_square(out, y):
    return 0.5 * ((out - y) ** 2).mean()


def scalar(start):
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, start)
    return module


def quadratics(optima, curvatures=None, start=0.0, noise=0.0, samples=1, seed=0):
    """Return a task of which client i has `samples` points with optima around ``optima[i]``."""
    rng = np.random.default_rng(seed)
    b = np.repeat(np.asarray(optima, float), samples)
    if noise:
        b = b + noise * (rng.normal(size=len(b)).reshape(-1, samples) @ centre(samples)).ravel()
    a = np.repeat(np.asarray(curvatures if curvatures is not None else np.ones(len(optima)), float), samples) ** 0.5
    owner = torch.arange(len(optima)).repeat_interleave(samples)
    x, y = torch.tensor(a, dtype=torch.float32)[:, None], torch.tensor(a * b, dtype=torch.float32)[:, None]
    data = Arrays(x, y, owner, [str(i) for i in range(len(optima))])
    return Task("quadratics", data, data, lambda: scalar(start), 1, loss=half_square, lr=0.1, batch_size=samples)


def centre(n):
    """Return the matrix that takes a row's mean away, so that noise leaves each client's optimum where it is."""
    return np.eye(n) - 1.0 / n


@pytest.fixture
def play():
    """Return a function that yields (weight, state, fed) after each round of a run on quadratics."""

    def go(task, method, rounds, clients, drop=None, **changes):
        values = {"method": method, "task": "q", "partition": "natural", "clients": clients, "cohort": clients, "rounds": rounds}
        prepared = prepare(RunConfig.build(values | {"fleet": "spread"} | changes), task=task, drop=drop)
        state = prepared.method.init(prepared.fed)
        for number in range(1, rounds + 1):
            prepared.fed.start_round(number)
            state = prepared.method.round(prepared.fed, state)
            prepared.fed.engine.commit()
            yield float(state.params.vector[0]), state, prepared.fed
        prepared.fed.engine.close()

    return go
