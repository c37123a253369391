"""FedNova against numpy, and its optimum where clients take unequally many steps."""

import numpy as np
import pytest

from paceline.core.errors import ConfigError
from paceline.methods import FedNova

from ..quadratics import numbers, play, quadratics

OPTIMA = [-3.0, 0.0, 5.0]


def path(rho, mu, steps, lr):
    """Return the sum of the factors of the gradients in a client's change, from the recursion of its steps."""
    factors = np.zeros(steps)
    velocity, at = np.zeros(steps), np.zeros(steps)
    for step in range(steps):
        gradient = np.eye(steps)[step] + mu * at
        velocity = rho * velocity + gradient
        at = at - lr * velocity
        factors = -at / lr
    return factors.sum()


@pytest.mark.parametrize(("rho", "mu"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.7), (1.0, 0.0)])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_length_of_the_path(rho, mu, steps):
    assert FedNova(momentum=rho, mu=mu).length(steps, 0.1) == pytest.approx(path(rho, mu, steps, 0.1))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.5}, {"mu": 0.4}], ids=["sgd", "momentum", "proximal"])
def test_rounds_follow_the_formulas(options):
    task = quadratics(OPTIMA, sizes=[1, 3, 2], start=1.0)
    rho, mu, lr, w = options.get("momentum", 0.0), options.get("mu", 0.0), 0.07, 1.0  # the task's is 0.1
    expected = []
    for _ in range(4):
        total, mean, length = 6.0, 0.0, 0.0
        for optimum, size in zip(OPTIMA, [1, 3, 2], strict=True):
            at, v, steps = w, 0.0, 2 * size  # batches of one sample
            for _ in range(steps):
                v = rho * v + (at - optimum) + mu * (at - w)
                at -= lr * v
            a = path(rho, mu, steps, lr)
            mean, length = mean + size / total * (at - w) / a, length + size / total * a
        w += 0.8 * length * mean
        expected.append(w)
    got = numbers(task, "fednova", 4, options={"lr": lr, "epochs": 2, "batch_size": 1, "server_lr": 0.8, **options})
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_unequal_steps_do_not_move_the_optimum():
    """With few and many steps, FedAvg stops elsewhere."""
    task = quadratics(OPTIMA, sizes=[1, 1, 8], start=1.0)
    optimum = np.average(OPTIMA, weights=[1, 1, 8])
    ends = {}
    for name in ("fednova", "fedavg"):
        *_, (w, _, _) = play(task, name, 300, options={"lr": 0.01, "epochs": 2, "batch_size": 1})
        ends[name] = abs(float(w[0]) - optimum)
    assert ends["fednova"] < 0.15 * ends["fedavg"]


def test_momentum_and_the_proximal_term_exclude_each_other():
    with pytest.raises(ConfigError, match="set one of them to 0"):
        FedNova(mu=0.1, momentum=0.9)
