"""The local loop against numpy: hooks, momentum, weight decay, batches."""

import numpy as np
import pytest
import torch
from torch import nn

from paceline.core.client import SGD, AdamW, Client, ClientData, Hooks, Memory
from paceline.core.errors import ConfigError, NonFiniteError
from paceline.core.layout import Layout
from paceline.core.params import Params, Resident
from paceline.tasks import Arrays, Task

X = torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0], [-1.0, 1.5], [0.3, 0.7]])
Y = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.25]))

    def forward(self, x):
        return x @ self.w

    def doubled(self, x):
        return 2 * (x @ self.w)


def squares(out, y):
    return ((out - y) ** 2).mean()


def make_client(rows=5, batch_size=5):
    task = Task("line", Arrays(X, Y), Arrays(X, Y), Line, 1, loss=squares, lr=0.1, batch_size=batch_size)
    module = Line()
    layout = Layout.of(module)
    data = [ClientData(X, Y, torch.arange(rows)), ClientData(X, Y, torch.arange(0))]
    client = Client(0, 1, lambda: 11, Resident(module, layout), task, data.__getitem__, Memory())
    return client, Params(torch.tensor([0.5, -0.25]), layout)


def slope(w):
    x, y = X.numpy(), Y.numpy()
    return 2 * x.T @ (x @ w - y) / len(y)


def test_momentum_and_weight_decay_follow_the_formulas():
    client, start = make_client()
    out = client.sgd(start, optimizer=SGD(momentum=0.9, weight_decay=0.1), epochs=4)
    w, v = start.vector.numpy().astype(float), np.zeros(2)
    for _ in range(4):
        v = 0.9 * v + slope(w) + 0.1 * w
        w = w - 0.1 * v
    np.testing.assert_allclose(out.params.vector, w, rtol=1e-5)
    assert (out.steps, out.samples) == (4, 20)


def test_correct_sees_the_gradient_and_the_current_point():
    client, start = make_client()
    out = client.sgd(start, hooks=Hooks(correct=lambda grad, at: grad + 0.5 * (at - start)), epochs=3)
    w = start.vector.numpy().astype(float)
    for _ in range(3):
        w = w - 0.1 * (slope(w) + 0.5 * (w - start.vector.numpy()))
    np.testing.assert_allclose(out.params.vector, w, rtol=1e-5)


def test_direction_may_ask_for_gradients_anywhere():
    client, start = make_client()

    def direction(gradient, at):
        first = gradient(at)
        return 0.5 * first + 0.5 * gradient(at + 0.3 * first / first.norm())

    out = client.sgd(start, hooks=Hooks(direction=direction), epochs=3)
    w = start.vector.numpy().astype(float)
    for _ in range(3):
        g = slope(w)
        w = w - 0.1 * (0.5 * g + 0.5 * slope(w + 0.3 * g / np.linalg.norm(g)))
    np.testing.assert_allclose(out.params.vector, w, rtol=1e-5)
    assert out.loss == pytest.approx(
        np.mean([np.mean((X.numpy() @ u - Y.numpy()) ** 2) for u in _path(start, direction)]), rel=1e-5
    )


def _path(start, direction):
    points, w = [], start.vector.numpy().astype(float)
    for _ in range(3):
        points.append(w)
        g = slope(w)
        w = w - 0.1 * (0.5 * g + 0.5 * slope(w + 0.3 * g / np.linalg.norm(g)))
    return points


def test_objective_may_call_other_parts_of_the_module():
    client, start = make_client()
    out = client.sgd(start, hooks=Hooks(objective=lambda module, x, y: squares(module.doubled(x), y)))
    w = start.vector.numpy().astype(float)
    grad = 2 * (2 * X.numpy()).T @ (2 * X.numpy() @ w - Y.numpy()) / 5
    np.testing.assert_allclose(out.params.vector, w - 0.1 * grad, rtol=1e-5)


def test_after_projects_each_step():
    client, start = make_client()
    out = client.sgd(start, hooks=Hooks(after=lambda at: at / at.norm()), epochs=5)
    assert float(out.params.norm()) == pytest.approx(1.0)


def test_steps_may_end_in_mid_pass_and_batches_differ_in_size():
    client, start = make_client(batch_size=2)
    out = client.sgd(start, steps=4)
    assert (out.steps, out.samples) == (4, 2 + 2 + 1 + 2)


def test_a_client_without_samples_returns_its_start():
    client, start = make_client(rows=0)
    out = client.sgd(start, epochs=2)
    assert out.params.vector.equal(start.vector)
    assert (out.steps, out.samples, out.loss) == (0, 0, 0.0)


def test_divergence_is_named():
    client, start = make_client()
    with pytest.raises(NonFiniteError, match="lower lr"):
        client.sgd(start, optimizer=SGD(1e30), epochs=6)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": -1}, {"epochs": -1}])
def test_impossible_amounts_of_work_are_refused(options):
    client, start = make_client()
    with pytest.raises(ConfigError, match="={}".format(*options.values())):
        client.sgd(start, **options)


def test_later_loops_of_a_client_draw_other_orders():
    client, start = make_client(batch_size=1)
    first, second = client.sgd(start).params, client.sgd(start).params
    assert not first.vector.equal(second.vector)
    again, _ = make_client(batch_size=1)
    assert again.sgd(start).params.vector.equal(first.vector)


def test_adamw_is_that_of_torch():
    client, start = make_client()
    out = client.sgd(start, optimizer=AdamW(0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1), epochs=6)
    w = torch.nn.Parameter(start.vector.clone())
    rule = torch.optim.AdamW([w], lr=0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for _ in range(6):
        rule.zero_grad()
        squares(X @ w, Y).backward()
        rule.step()
    torch.testing.assert_close(out.params.vector, w.detach(), rtol=1e-5, atol=1e-6)


def test_a_schedule_scales_the_learning_rate_step_by_step():
    client, start = make_client()
    out = client.sgd(start, optimizer=SGD(momentum=0.9, schedule=lambda step, steps: 1 - step / steps), epochs=4)
    w, v = start.vector.numpy().astype(float), np.zeros(2)
    for step in range(4):
        v = 0.9 * v + slope(w)
        w = w - 0.1 * (1 - step / 4) * v
    np.testing.assert_allclose(out.params.vector, w, rtol=1e-5)


def test_a_last_batch_of_one_uses_batchnorms_running_statistics():
    torch.manual_seed(0)
    x, y = torch.randn(5, 3), torch.randn(5)
    task = Task("norm", Arrays(x, y), Arrays(x, y), None, 1, loss=lambda out, y: squares(out[:, 0], y), lr=0.1, batch_size=2)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    layout = Layout.of(module)
    client = Client(0, 1, lambda: 11, Resident(module, layout), task, lambda _: ClientData(x, y, torch.arange(5)), Memory())
    out = client.sgd(Params.of(module, layout))
    assert (out.steps, out.samples) == (3, 5)
    assert int(module[1].num_batches_tracked) == 2


def test_dropout_draws_from_the_client_s_own_stream():
    def trained(seed, before):
        torch.manual_seed(before)  # what others drew does not matter, and nothing is taken from it
        x, y = torch.ones(6, 8), torch.zeros(6)
        task = Task("drop", Arrays(x, y), Arrays(x, y), None, 1, loss=lambda out, y: squares(out[:, 0], y), lr=0.1, batch_size=3)
        module = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 1))
        layout = Layout.of(module)
        start = Params(torch.linspace(-1, 1, layout.size), layout)
        client = Client(0, 1, lambda: seed, Resident(module, layout), task, lambda _: ClientData(x, y, torch.arange(6)), Memory())
        state = torch.get_rng_state()
        first, second = client.sgd(start).params, client.sgd(start).params
        assert torch.get_rng_state().equal(state)
        return first.vector, second.vector

    one, again, other = trained(1, 5), trained(1, 6), trained(2, 5)
    assert one[0].equal(again[0])
    assert one[1].equal(again[1])
    assert not one[0].equal(one[1])
    assert not one[0].equal(other[0])


def test_training_on_a_part_of_the_samples_is_training_on_them_alone():
    client, start = make_client()
    part = client.train.part(torch.tensor([3, 1]))
    assert len(part) == 2
    out = client.sgd(start, data=part)
    x, y = X[[3, 1]].numpy(), Y[[3, 1]].numpy()
    w = start.vector.numpy()
    np.testing.assert_allclose(out.params.vector, w - 0.1 * 2 * x.T @ (x @ w - y) / 2, rtol=1e-5)
    assert (out.steps, out.samples, client.num_samples) == (1, 2, 5)
