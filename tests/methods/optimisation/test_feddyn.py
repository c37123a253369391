"""FedDyn against numpy, and whether it stacks."""

import numpy as np
import pytest
import torch
from torch import nn

from paceline.data import Partition
from paceline.run import RunConfig, prepare
from paceline.tasks import Arrays, Task

ROWS = [(0, 6), (6, 10), (10, 12)]


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.2, 0.1]))

    def forward(self, x):
        return x @ self.w


@pytest.fixture
def line():
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(12, 3, generator=generator), torch.randn(12, generator=generator)
    loss = lambda out, y: ((out - y) ** 2).mean()  # noqa: E731
    return Task("line", Arrays(x, y), Arrays(x[:2], torch.zeros(2, dtype=torch.int64)), Line, 1, loss=loss, lr=0.1, batch_size=50)


def oracle(task, alpha, epochs, rounds):
    x, y, w, h = task.train.x.double().numpy(), task.train.y.double().numpy(), np.array([0.3, -0.2, 0.1]), np.zeros(3)
    duals = [np.zeros(3) for _ in ROWS]
    for _ in range(rounds):
        deltas = []
        for k, (a, b) in enumerate(ROWS):
            at = w.copy()
            for _ in range(epochs):
                grad = 2 * x[a:b].T @ (x[a:b] @ at - y[a:b]) / (b - a)
                at = at - 0.1 * (grad - duals[k] + alpha * (at - w))
            duals[k] = duals[k] - alpha * (at - w)
            deltas.append(at - w)
        h = h - alpha * np.mean(deltas, 0)
        w = w + np.mean(deltas, 0) - h / alpha
    return w


@pytest.mark.parametrize("vectorize", ["off", "on"])
def test_rounds_follow_the_formulas(line, vectorize):
    split = Partition("fixed", torch.arange(12), torch.tensor([0, 6, 10, 12]), torch.tensor([6, 10, 12]))
    config = RunConfig(
        method="feddyn",
        options={"alpha": 0.2, "epochs": 3},
        task="line",
        clients=3,
        cohort=3,
        rounds=4,
        vectorize=vectorize,
        chunk=3,
    )
    prepared = prepare(config, task=line, split=split)
    state = prepared.method.init(prepared.fed)
    for number in range(1, 5):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
        prepared.fed.engine.commit()
    np.testing.assert_allclose(state.params.vector, oracle(line, 0.2, 3, 4), rtol=2e-5)


def test_it_learns_and_runs_under_masks(federate):
    plain = federate(method="feddyn", rounds=8, partition="dirichlet:0.5")
    secure = federate(method="feddyn", rounds=8, partition="dirichlet:0.5", aggregation="secure")
    assert plain.accuracy > 0.6
    assert secure.accuracy == pytest.approx(plain.accuracy, abs=0.05)
