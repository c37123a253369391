"""Black-box tasks: objectives against numpy, and what they start from."""

import numpy as np
import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.data import partition_task
from paceline.run import RunConfig, prepare
from paceline.tasks import load_task
from paceline.tasks.blackbox import macro_f1, quadratic


def client_of(task, number=0, clients=4, partition="natural"):
    config = RunConfig.build({"method": "fedzo", "task": "x", "clients": clients, "cohort": clients, "partition": partition})
    worker = prepare(config, task=task).fed.engine.here
    from paceline.core.engine import Call, Each

    return worker.client(Call("walk", None, (number,), 1, "s", Each()), number)


def test_quadratic_is_that_of_its_coefficients_and_averages_to_a_known_minimum():
    task = quadratic(dim=6, clients=4, div=2.0, seed=3)
    coefficients = task.train.x.double().numpy()
    np.testing.assert_allclose(coefficients.mean(0), 1.0, atol=1e-6)
    assert np.abs(coefficients - 1).max() > 0.1
    x = np.random.default_rng(0).uniform(-0.2, 1.2, 6)
    z = 20 * x.clip(0, 1) - 10
    for i in range(4):
        c, linear = coefficients[i][:6], coefficients[i][6:]
        expected = 0.1 / 6 * (c @ z**2 + linear @ z + 1)
        assert task.objective.value(client_of(task, i), torch.from_numpy(x)) == pytest.approx(expected, rel=1e-6)
    best = torch.full((6,), 9.5 / 20, dtype=torch.float64)
    found = np.mean([task.objective.value(client_of(task, i), best) for i in range(4)])
    assert found == pytest.approx(0.1 / 6 * (1 - 6 / 4), abs=1e-6)


def test_start_is_drawn_from_the_cube_by_the_seed():
    task = quadratic(dim=50)
    a, b, c = (task.build(s).x.detach() for s in (1, 1, 2))
    assert a.equal(b)
    assert not a.equal(c)
    assert 0 <= float(a.min()) < float(a.max()) <= 1
    with pytest.raises(ConfigError, match="dim=0"):
        quadratic(dim=0)


def test_macro_f1_by_hand():
    y, found = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0])
    # class 0: TP 1, FP 1, FN 1 -> 1/2; class 1: TP 2, FP 1 -> 4/5; class 2: 0; class 3 is not there
    assert macro_f1(found, y, 4) == pytest.approx((0.5 + 0.8 + 0.0) / 3)
    assert macro_f1(y, y, 4) == 1.0


def test_metric_starts_at_the_network_and_moves_with_its_weights():
    task = load_task("metric", limit=200, hidden=4, epochs=1)
    client = client_of(task, partition="iid")
    half = task.build(0).x.detach().double()
    assert half.unique().tolist() == [0.5]
    x, y = client.train.rows(torch.arange(len(client.train)))
    module = task.objective.module
    expected = 1 - macro_f1(module(x).argmax(1), y, 10)
    assert task.objective.value(client, half) == pytest.approx(expected)
    assert task.objective.value(client, half + 0.5 * torch.sin(torch.arange(len(half)))) != pytest.approx(expected)


def test_attack_is_the_margin_of_the_clients_own_classifier():
    task = load_task("attack", limit=200, clients=3, epochs=1)
    half = torch.full((64,), 0.5, dtype=torch.float64)
    margins = []
    for i in range(3):
        scores = task.objective.modules[i](task.objective.picture)[0].tolist()
        own = scores.pop(task.objective.label)
        margins.append(own - max(scores))
        assert task.objective.value(client_of(task, i, 3), half) == pytest.approx(margins[-1], rel=1e-5)
    assert len(set(margins)) == 3
    assert partition_task(task, "natural", 3, 0).num_clients == 3
