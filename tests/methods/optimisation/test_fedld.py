"""FedLD: the sheet's numbers, the step-by-step rule in numpy against the closed form, and the edges of a Gram matrix."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import paceline as pl
from paceline.core.errors import PlanError
from paceline.core.method import on_client
from paceline.methods.optimisation.fedld import FedLD, FedLDSum, combined, confidence
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing
from tests.methods.quadratics import by_size


def stepwise(g, keep):
    """Return (s, revised updates), written as the paper's steps: project, rescale, sum."""
    clients = len(g)
    h = g @ g.T / clients
    s, e = np.linalg.eigh(h)
    s, e = s[::-1].clip(0), e[:, ::-1]
    revised = np.zeros_like(g)
    for j in range(int(keep * clients + 1e-9)):
        w = g.T @ e[:, j]
        if s[j] <= 1e-12 * s.sum():
            continue
        if sum(row @ w >= 0 for row in g) < sum(row @ w < 0 for row in g):
            w = -w
        for i, row in enumerate(g):
            q = (row @ w) / (w @ w) * w
            if np.linalg.norm(q) > 1e-7 * np.linalg.norm(row):
                revised[i] += q * s[j] / s.sum() * np.linalg.norm(row) / np.linalg.norm(q)
    return s, revised


def test_the_penalty_of_the_sheet():
    z, y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    assert float(confidence(z)) == pytest.approx(0.874130, abs=1e-6)
    assert float(F.cross_entropy(z, y) + 0.1 * confidence(z)) == pytest.approx(0.307508, abs=1e-6)
    each = [float(confidence(row[None])) for row in z]
    assert float(confidence(z, per_sample=True)) == pytest.approx(np.mean(each))
    assert float(confidence(z.repeat(5, 1), per_sample=True)) == pytest.approx(np.mean(each))


def test_three_clients_of_the_sheet():
    g = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    s, revised = stepwise(g, 0.8)
    np.testing.assert_allclose(s, [2, 4 / 3, 0], atol=1e-9)
    np.testing.assert_allclose(revised, [[1.414214, 0.282843], [0.6, 0.6], [0.282843, 1.414214]], atol=1e-6)
    np.testing.assert_allclose(combined(torch.tensor(g), 0.8), [0.765685, 0.765685], atol=1e-6)


def test_four_clients_of_the_sheet():
    g = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 0.0], [-1.0, 1.0]])
    np.testing.assert_allclose(stepwise(g, 0.5)[0], [3.977082, 1.272918, 0, 0], atol=1e-6)
    np.testing.assert_allclose(combined(torch.tensor(g), 0.5), [1.047352, 0.499913], atol=1e-6)


@pytest.mark.parametrize("clients", [2, 3, 5, 8])
@pytest.mark.parametrize("width", [2, 3, 40])
@pytest.mark.parametrize("keep", [0.5, 0.8, 1.0])
def test_the_closed_form_is_the_rule_step_by_step(clients, width, keep):
    g = np.random.default_rng(clients * width).normal(size=(clients, width)) + 0.3
    u = combined(torch.tensor(g), keep)
    np.testing.assert_allclose(u, stepwise(g, keep)[1].mean(0), atol=1e-9)
    assert 0 < float(u.norm()) <= np.linalg.norm(g, axis=1).mean() + 1e-9


def test_updates_without_extent():
    same = torch.tensor([[1.0, -2.0, 3.0]] * 4)
    np.testing.assert_allclose(combined(same, 0.5), same[0], atol=1e-6)
    np.testing.assert_allclose(combined(same[:1], 1.0), same[0], atol=1e-6)
    np.testing.assert_allclose(combined(same[:1], 0.8), same[0], atol=1e-6)
    assert combined(torch.zeros(3, 5), 0.8).tolist() == [0] * 5
    one = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    assert torch.isfinite(combined(one, 1.0)).all()
    np.testing.assert_allclose(combined(torch.tensor([[1.0], [2.0], [6.0]]), 0.8), [3.0])
    np.testing.assert_allclose(combined(torch.tensor([[1.0], [-2.0], [7.0]]), 0.8), [2.0])
    large, small = (combined(factor * torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), 0.8) for factor in (1e12, 1e-12))
    np.testing.assert_allclose(large / 1e12, small / 1e-12, rtol=1e-5)


def finished(method, task, **values):
    values = {"task": "own", "clients": 5, "cohort": 5, "rounds": 2, "partition": "dirichlet:0.5", "vectorize": "off"} | values
    run = prepare(RunConfig.build(values), task=task, method=method)
    run.go()
    return run


def finished_on(split, method, **values):
    run = prepare(
        RunConfig.build({"task": "own", "rounds": 3, "vectorize": "off"} | values), task=make_task(), method=method, split=split
    )
    run.go()
    return run


FIELDS = {"lr": 0.1, "batch_size": 10, "momentum": 0.0, "weight_decay": 0.0}


def test_without_the_penalty_the_sum_is_fedavg_bit_for_bit():
    one, other = finished(FedLDSum(**FIELDS, margin=0.0), make_task()), finished(pl.methods.FedAvg(lr=0.1), make_task())
    assert torch.equal(one.state.params.vector, other.state.params.vector)
    assert not torch.equal(finished(FedLDSum(**FIELDS), make_task()).state.params.vector, other.state.params.vector)


def test_a_step_with_the_penalty_is_that_of_autograd():
    task = make_task()
    run = finished(FedLDSum(**FIELDS | {"batch_size": 240}, margin=0.7), task, clients=1, cohort=1, rounds=1, partition="iid")
    module, start = task.build(0), run.fed.init_params()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(start[name])
    z = module(task.train.x)
    p = z.exp() / z.exp().sum(1, keepdim=True)
    (F.cross_entropy(z, task.train.y) + 0.7 * torch.log(1 + (p**2).sum())).backward()
    wanted = torch.cat([(q - 0.1 * q.grad).detach().flatten() for q in module.parameters()])
    torch.testing.assert_close(run.state.params.vector, wanted, atol=1e-5, rtol=1e-4)


SENT = []


class Watched(FedLD):
    """FedLD that notes the updates of each round."""

    def round(self, fed, state):
        each = fed.each

        def watched(*args, **options):
            replies = each(*args, **options)
            SENT.append([r for _, r in sorted(replies.items())])
            return replies

        fed.each = watched
        try:
            return super().round(fed, state)
        finally:
            del fed.each


@pytest.mark.parametrize(("renorm", "rate"), [("none", 1.0), ("mean", 0.5)])
def test_the_rounds_of_the_server_are_those_of_numpy(renorm, rate):
    """The first round is the plain mean; in the second one each tensor is combined by itself."""
    SENT.clear()
    run = finished(Watched(**FIELDS, renorm=renorm, server_lr=rate), make_task())
    at = run.fed.init_params()
    assert len(SENT) == 2
    for round, replies in enumerate(SENT, 1):
        for entry in at.layout.entries:
            g = torch.stack([r[entry.name].flatten() for r in replies]).double().numpy()
            u = g.mean(0) if round == 1 else stepwise(g, 0.8)[1].mean(0)
            u = u * np.linalg.norm(g.mean(0)) / np.linalg.norm(u) if renorm == "mean" else u
            at[entry.name].add_(rate * torch.tensor(u).float().view(entry.shape))
    torch.testing.assert_close(run.state.params.vector, at.vector, atol=1e-6, rtol=1e-5)
    assert run.state.history.vector.any()


def test_the_history_moves_by_a_hundredth_of_each_later_step():
    at = [finished(FedLD(**FIELDS), make_task(), rounds=rounds).state for rounds in (1, 2, 3)]
    start = finished(FedLD(**FIELDS | {"lr": 0.0}), make_task(), rounds=1).state.params
    history = at[0].params - start
    torch.testing.assert_close(at[0].history.vector, history.vector)
    for before, after in pairwise(at):
        history = 0.99 * history + 0.01 * (after.params - before.params)
        torch.testing.assert_close(after.history.vector, history.vector, atol=1e-7, rtol=1e-5)


class Broken(FedLD):
    """FedLD in which one client sends no numbers."""

    @on_client(each=True)
    def submit(self, client, message):
        return super().submit(client, message) * (math.nan if client.id == 1 else 1.0)


def test_an_update_that_is_not_finite_is_refused_and_counted():
    run = finished(Broken(**FIELDS), make_task())
    assert run.fed.last.notes["refused"] == 1
    assert torch.isfinite(run.state.params.vector).all()
    assert finished(FedLD(**FIELDS), make_task()).fed.last.notes["refused"] == 0


def test_running_statistics_are_averaged():
    def normed():
        return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    run = finished(FedLD(**FIELDS), make_task(model=normed), rounds=4)
    assert all((value > 0).all() for key, value in run.state.params.items() if "running_var" in key)


def test_a_client_without_samples_has_no_say():
    one, other = (
        finished_on(by_size(sizes), FedLD(**FIELDS), clients=len(sizes), cohort=len(sizes))
        for sizes in ([40, 30, 50], [40, 30, 50, 0])
    )
    torch.testing.assert_close(one.state.params.vector, other.state.params.vector)


def test_masks_are_refused_with_the_form_that_needs_sums_only():
    with pytest.raises(PlanError, match="use fedldsum"):
        finished(FedLD(), make_task(), aggregation="secure-arithmetic")


def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic():
    assert_masks_change_nothing(make_task(), "fedldsum")


def test_the_penalty_lowers_confidence_at_the_same_accuracy():
    found = {}
    for margin in (0.0, 3.0):
        run = finished(FedLDSum(**FIELDS, epochs=2, margin=margin), make_task(samples=480), rounds=8)
        module = run.task.build(0)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(run.state.params[name])
            p = module(run.task.test.x).softmax(1)
        found[margin] = float(p.amax(1).mean()), float((p.argmax(1) == run.task.test.y).float().mean())
    assert found[3.0][0] < found[0.0][0] - 0.02
    assert found[3.0][1] > found[0.0][1] - 0.05
