"""Attacks: the worked example, bounds, an independent PGD, and what an attack must not touch."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paceline.blocks.adversarial import InputAttack, InputBall, attacked, evaluating, input_gradient, random_start, trades
from paceline.core.client import ClientData
from paceline.core.layout import Layout
from paceline.core.params import Params, Resident
from paceline.tasks import load_task
from paceline.tasks.schemas import schema_of


def logistic(scores, y):
    return F.softplus(-y * scores.flatten()).mean()


@pytest.fixture
def linear():
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0]]))
    return module, torch.tensor([[0.5, 0.5]]), torch.ones(1)


def net(seed=0, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def test_the_worked_example(linear):
    module, x, y = linear
    gradient = input_gradient(module, logistic, y)
    assert logistic(module(x), y).item() == pytest.approx(0.974077, abs=1e-6)
    np.testing.assert_allclose(gradient(x), [[-0.622459, 1.244919]], atol=1e-6)
    twice = input_gradient(module, logistic, torch.ones(2))(x.repeat(2, 1))
    torch.testing.assert_close(twice, gradient(x).repeat(2, 1))
    fast = InputAttack.fgsm(0.1)(gradient, x, InputBall(0.1))
    np.testing.assert_allclose(fast, [[0.4, 0.6]], atol=1e-6)
    assert float(logistic(module(fast), y)) == pytest.approx(1.171101, abs=1e-6)
    round_ball = InputAttack.fgsm(0.1)(gradient, x, InputBall(0.1, norm="2"))
    np.testing.assert_allclose(round_ball, [[0.455279, 0.589443]], atol=1e-6)
    assert float(logistic(module(round_ball), y)) == pytest.approx(1.119021, abs=1e-6)


@pytest.mark.parametrize("attack", [InputAttack(1, 0.2), InputAttack(4), InputAttack(20, 0.03)])
def test_on_a_linear_model_every_long_enough_attack_is_fgsm(linear, attack):
    module, x, y = linear
    np.testing.assert_allclose(attack(input_gradient(module, logistic, y), x, InputBall(0.1)), [[0.4, 0.6]], atol=1e-6)


def pgd(module, x, y, radius, size, steps, start, low, high, unit, norm):
    """Return what PGD finds, written with numpy arrays and one sample at a time."""
    out = []
    for row, label, begin in zip(x.numpy(), y, start.numpy(), strict=True):
        shift = begin.clip(-radius, radius) if norm == "inf" else begin * min(1, radius / max(np.linalg.norm(begin), 1e-12))
        bad = np.clip(row + unit * shift, low, high)
        for _ in range(steps):
            leaf = torch.tensor(bad, dtype=torch.float32, requires_grad=True)
            F.cross_entropy(module(leaf[None]), label[None]).backward()
            g = leaf.grad.numpy() * unit
            move = np.sign(g) if norm == "inf" else g / (np.linalg.norm(g) + 1e-12)
            shift = (bad - row) / unit + size * move
            shift = shift.clip(-radius, radius) if norm == "inf" else shift * min(1, radius / max(np.linalg.norm(shift), 1e-12))
            bad = np.clip(row + unit * shift, low, high)
        out.append(bad)
    return np.array(out)


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("started", [False, True])
def test_pgd_is_that_of_a_loop_over_samples(norm, started):
    module, generator = net(), torch.Generator().manual_seed(1)
    x, y = torch.rand(9, 4, generator=generator) * 3 - 1.5, torch.arange(9) % 3
    unit, low, high = torch.tensor([2.0, 1.0, 0.5, 3.0]), torch.full((4,), -1.4), torch.full((4,), 1.4)
    x = x.clamp(-1.4, 1.4)
    begin = random_start(x, 0.4, generator) if started else torch.zeros_like(x)
    found = InputAttack(5, 0.11)(
        input_gradient(module, F.cross_entropy, y), x, InputBall(0.3, unit, low, high, norm), begin if started else None
    )
    wanted = pgd(module, x, y, 0.3, 0.11, 5, begin, -1.4, 1.4, unit.numpy(), norm)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_perturbations_stay_within_radius_and_brightness(norm):
    task = load_task("digits", limit=60)
    picture = schema_of(task).picture
    ball = InputBall.of(task, 0.15, norm)
    module = task.build(0)
    x, y = task.train.x, task.train.y
    start = random_start(x, 0.15, torch.Generator().manual_seed(0))
    bad = InputAttack(4)(input_gradient(module, F.cross_entropy, y), x, ball, start)
    before, after = (v * picture.deviation[0] + picture.mean[0] for v in (x, bad))
    delta = (after - before).flatten(1)
    assert float((delta.abs().amax(1) if norm == "inf" else delta.norm(dim=1)).max()) <= 0.15 + 1e-5
    assert float(after.min()) >= -1e-6
    assert float(after.max()) <= 1 + 1e-6
    assert float(delta.abs().max()) > 0.1 if norm == "inf" else float(delta.norm(dim=1).max()) > 0.1
    assert float(F.cross_entropy(module(bad), y)) > float(F.cross_entropy(module(x), y))


def test_a_task_without_pictures_has_no_range():
    ball = InputBall.of(object(), 0.5)
    assert (ball.unit, ball.low, ball.radius) == (1.0, -math.inf, 0.5)
    x = torch.tensor([[1e9]])
    assert ball.clip(x) is x


def test_no_radius_changes_nothing():
    task = load_task("digits", limit=20)
    module = task.build(0)
    gradient = input_gradient(module, F.cross_entropy, task.train.y)
    for norm in ("inf", "2"):
        assert torch.equal(InputAttack(3)(gradient, task.train.x, InputBall.of(task, 0.0, norm)), task.train.x)


def test_an_attack_leaves_gradients_statistics_modes_and_streams_alone():
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    module[0].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    drawn = torch.get_rng_state()
    with evaluating(module):
        assert not any(part.training for part in module.modules())
        InputAttack(2)(
            input_gradient(module, F.cross_entropy, torch.arange(5) % 3),
            torch.randn(5, 4, generator=torch.Generator()),
            InputBall(0.1),
        )
    assert [part.training for part in module.modules()] == [True, False, True, True, True]
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(drawn, torch.get_rng_state())


def test_the_gradient_is_the_same_under_vmap_and_a_constant():
    module, x, y = net(), torch.randn(2, 5, 4), torch.arange(10).view(2, 5) % 3
    plain = torch.stack([InputAttack(3)(input_gradient(module, F.cross_entropy, y[k]), x[k], InputBall(0.2)) for k in range(2)])
    found = torch.func.vmap(lambda x, y: InputAttack(3)(input_gradient(module, F.cross_entropy, y), x, InputBall(0.2)))(x, y)
    torch.testing.assert_close(found, plain)
    assert not found.requires_grad


def test_a_random_start_fills_the_box_and_follows_its_stream():
    x = torch.zeros(200, 8)
    one, again = (random_start(x, 0.3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, again)
    assert float(one.max()) == pytest.approx(0.3, abs=0.01)
    assert float(one.min()) == pytest.approx(-0.3, abs=0.01)
    assert float(one.mean()) == pytest.approx(0, abs=0.02)


def test_attacked_samples_are_those_of_single_batches():
    module = net()
    layout = Layout.of(module)
    params = Params.of(module, layout)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    data = ClientData(x, y, torch.tensor([3, 1, 7, 2, 11]))
    bad = attacked(Resident(net(1), layout), params, data, F.cross_entropy, InputAttack(3), InputBall(0.2), batch_size=2)
    wanted = InputAttack(3)(input_gradient(module, F.cross_entropy, y[data.index]), x[data.index], InputBall(0.2))
    torch.testing.assert_close(bad.x, wanted)
    assert bad.y.tolist() == y[data.index].tolist()
    assert bad.index.tolist() == list(range(5))
    drawn = attacked(Resident(net(1), layout), params, data, F.cross_entropy, InputAttack(1), InputBall(0.2), torch.Generator())
    assert not torch.allclose(drawn.x, wanted)
    none = ClientData(x, y, torch.zeros(0, dtype=torch.int64))
    assert attacked(Resident(net(1), layout), params, none, F.cross_entropy, InputAttack(3), InputBall(0.2)) is none


def test_trades_by_hand():
    clean, bad, y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.5, 0.0]]), torch.tensor([0, 1])
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (clean.numpy(), bad.numpy()))
    wanted = -np.log(p[[0, 1], [0, 1]]).mean() + 6 * (p * np.log(p / q)).sum(1).mean()
    assert float(trades(clean, bad, y, 6.0)) == pytest.approx(wanted, rel=1e-5)
