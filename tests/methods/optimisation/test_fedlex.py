"""FedLEx: exploration and guidance against a numpy run, masked entries, and FedAvg where the guidance is 1."""

import numpy as np
import pytest
import torch
from torch import nn

import paceline as pl
from paceline.core.client import Client
from paceline.core.errors import PlanError
from paceline.core.params import Params
from paceline.methods.optimisation.fedlex import FedLEx
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing
from tests.methods.oracles import classifier, displaced, gradient
from tests.methods.quadratics import by_size

PLAIN = {"optimizer": "sgd", "lr": 0.1, "lr_decay": 1.0, "epochs": 1, "batch_size": None, "explore_epochs": 2}
WHOLE = PLAIN | {"batch_size": 1000}
"""Batches of all samples, so that their order has no effect."""

CLIENTS = {"clients": 4, "cohort": 4, "rounds": 2}


def finished(method, task, **values):
    run = prepare(RunConfig.build({"task": "own", "vectorize": "off", **CLIENTS, **values}), task=task, method=method)
    run.go()
    return run


def vector(method, task, **values):
    return finished(method, task, **values).state.params.vector


def softmax_task():
    return make_task(model=lambda: nn.Linear(12, 4))


def minmax(d):
    return (d - d.min()) / (d.max() - d.min())


@pytest.mark.parametrize("guide", ["fixed", "round"])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_two_rounds_are_those_of_numpy(guide, beta):
    """Full batches, so that no order of samples matters; the guidance that follows the cohort begins in round 2."""
    task = softmax_task()
    method = FedLEx(**WHOLE | {"explore_epochs": 3}, guide=guide, server_momentum=beta)
    run = prepare(RunConfig.build({"task": "own", "partition": "quantity:1", **CLIENTS}), task=task, method=method)
    w, b, data = classifier(run, 4)
    squares = [displaced(w, b, x, y, steps=3, lr=0.1) for x, y in data]
    g = [minmax(np.mean([s[i] for s in squares], 0)) for i in range(2)]
    sizes, velocity = np.array([len(y) for _, y in data]), [0.0, 0.0]
    for round in (1, 2):
        used = g if guide == "fixed" or round == 2 else [1.0, 1.0]
        steps = [[used[i] * part for i, part in enumerate(gradient(w, b, x, y))] for x, y in data]
        mean = [sum(n * s[i] for n, s in zip(sizes, steps, strict=True)) / sizes.sum() for i in range(2)]
        velocity = [beta * v + (1 - beta) * 0.1 * m for v, m in zip(velocity, mean, strict=True)]
        w, b = w - velocity[0], b - velocity[1]
    run.go()
    np.testing.assert_allclose(run.state.params["weight"], w, atol=1e-6)
    np.testing.assert_allclose(run.state.params["bias"], b, atol=1e-6)
    np.testing.assert_allclose(run.state.guidance["weight"], g[0], atol=1e-4)


def guided(monkeypatch, value):
    monkeypatch.setattr(FedLEx, "scaled", lambda self, d: d.zeros() + value if not isinstance(value, Params) else value)


def test_a_guidance_of_one_is_fedavg_bit_for_bit(monkeypatch):
    guided(monkeypatch, 1.0)
    values = {"partition": "dirichlet:0.5", "cohort": 3}
    one = vector(FedLEx(**PLAIN, server_momentum=0.0), make_task(), **values)
    assert torch.equal(one, vector(pl.methods.FedAvg(lr=0.1), make_task(), **values))


def test_a_guidance_of_zero_changes_nothing(monkeypatch):
    guided(monkeypatch, 0.0)
    run = finished(FedLEx(**PLAIN, guide="fixed"), make_task())
    assert torch.equal(run.state.params.vector, run.fed.init_params().vector)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_entries_of_zero_are_never_trained(monkeypatch, optimizer, apply_to):
    layout = finished(FedLEx(**PLAIN), make_task(), rounds=1).state.params.layout
    mask = Params((torch.arange(layout.size) % 3 > 0).float(), layout)
    guided(monkeypatch, mask)
    run = finished(FedLEx(**PLAIN | {"optimizer": optimizer}, guide="fixed", apply_to=apply_to), make_task())
    moved = run.state.params.vector != run.fed.init_params().vector
    assert not moved[mask.vector == 0].any()
    assert moved[mask.vector == 1].float().mean() > 0.9


def test_the_first_round_moves_by_a_tenth(monkeypatch):
    guided(monkeypatch, 1.0)
    ends = {beta: finished(FedLEx(**PLAIN, server_momentum=beta), make_task(), rounds=1) for beta in (0.0, 0.9)}
    start = ends[0.0].fed.init_params().vector
    torch.testing.assert_close(
        ends[0.9].state.params.vector - start, 0.1 * (ends[0.0].state.params.vector - start), atol=1e-6, rtol=1e-4
    )


@pytest.mark.parametrize(("patience", "passes"), [(1, 2), (2, 3), (4, 5), (6, 1)])
def test_patience_ends_an_exploration(monkeypatch, patience, passes):
    """A rate of 0 never lowers the loss: the first pass is the best, the scouts stay at the base, and the guidance is 1.

    A patience that cannot end before the exploration takes a single call.
    """
    sgd, count = Client.sgd, []
    monkeypatch.setattr(Client, "sgd", lambda self, *args, **options: count.append(1) or sgd(self, *args, **options))
    run = finished(FedLEx(**WHOLE | {"explore_epochs": 6, "lr": 0.0}, patience=patience, guide="fixed"), make_task(), rounds=1)
    assert len(count) == 4 * passes + 4
    assert (run.state.guidance.vector == 1).all()


def test_few_passes_are_like_one_long_exploration():
    options = PLAIN | {"explore_epochs": 4}
    one, other = (finished(FedLEx(**options, patience=p, guide="fixed"), softmax_task()) for p in (3, 4))
    np.testing.assert_allclose(one.state.guidance.vector, other.state.guidance.vector, atol=0.1)


def test_few_explorers_give_a_fixed_guidance():
    run = finished(FedLEx(**PLAIN, explorers=0.5), make_task(), rounds=3)
    few, every = run.state.guidance, finished(FedLEx(**PLAIN, guide="fixed"), make_task()).state.guidance
    assert not torch.allclose(few.vector, every.vector)
    assert not run.method.follows
    assert "square" not in run.fed.engine.memories.get(0, {})
    with pytest.raises(PlanError, match="guide=round needs all clients"):
        finished(FedLEx(**PLAIN, explorers=0.5, guide="round"), make_task())


@pytest.mark.parametrize("base", ["cohort", "client"])
def test_the_base_is_trained_first(base):
    based = finished(FedLEx(**PLAIN, base=base), make_task(), rounds=1)
    assert not torch.allclose(based.state.base.vector, based.fed.init_params().vector)
    again = finished(FedLEx(**PLAIN, base=base, start_from="initial", guide="fixed"), make_task(), rounds=1)
    torch.testing.assert_close(again.state.base.vector, based.state.base.vector)
    assert not torch.allclose(again.state.params.vector, based.state.params.vector)
    if base == "client":
        first = finished(pl.methods.FedAvg(lr=0.1, batch_size=1000), make_task(), rounds=1, cohort=4)
        alone = finished(FedLEx(**WHOLE, base="cohort"), make_task(), rounds=1)
        torch.testing.assert_close(alone.state.base.vector, first.state.params.vector, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(alone.state.base.vector, based.state.base.vector)


def test_one_clients_base_is_a_pass_of_the_first_client_at_the_rate_of_the_first_round():
    task = softmax_task()
    run = finished(FedLEx(**WHOLE | {"lr_decay": 0.5}, base="client"), task, rounds=1)
    start, rows = run.fed.init_params(), run.fed.engine.setup.split(0)[0]
    x, y = task.train.x[rows].numpy(), task.train.y[rows].numpy()
    step, _ = gradient(start["weight"].numpy(), start["bias"].numpy(), x, y)
    np.testing.assert_allclose(run.state.base["weight"], start["weight"].numpy() - 0.1 * step, atol=1e-6)


@pytest.mark.parametrize(("base", "trainings"), [("cohort", 2 + 4 + 2), ("client", 1 + 4 + 2)])
@pytest.mark.parametrize("start", ["base", "initial"])
def test_training_begins_where_it_is_told_to(monkeypatch, base, trainings, start):
    """With a guidance of 0 nobody moves in training; the base is that of two clients, or of one."""
    guided(monkeypatch, 0.0)
    sgd, count = Client.sgd, []
    monkeypatch.setattr(Client, "sgd", lambda self, *args, **options: count.append(1) or sgd(self, *args, **options))
    run = finished(FedLEx(**PLAIN, guide="fixed", base=base, start_from=start), softmax_task(), rounds=1, cohort=2)
    first = run.fed.init_params().vector
    assert not torch.equal(run.state.base.vector, first)
    assert torch.equal(run.state.params.vector, run.state.base.vector if start == "base" else first)
    assert len(count) == trainings


def test_explorers_count_alike_and_explore_at_the_rate_of_the_first_round():
    """Also with a single sample, and none without samples. Those that follow the cohort store what they found."""
    split, values = by_size([1, 40, 20, 0]), {"rounds": 1}
    method = FedLEx(**WHOLE | {"lr_decay": 0.5}, guide="round")
    run = prepare(RunConfig.build({"task": "own", **CLIENTS, **values}), task=softmax_task(), method=method, split=split)
    run.go()
    found = [run.fed.engine.memories[client]["square"] for client in range(3)]
    fixed = FedLEx(**WHOLE, guide="fixed")
    other = prepare(RunConfig.build({"task": "own", **CLIENTS, **values}), task=softmax_task(), method=fixed, split=split)
    other.go()
    wanted = fixed.scaled((1 / 3) * (found[0] + found[1] + found[2]))
    torch.testing.assert_close(other.state.guidance.vector, wanted.vector, atol=1e-5, rtol=1e-4)


def test_one_clients_base_is_refused_under_masks():
    with pytest.raises(PlanError, match="base=initial or cohort"):
        finished(FedLEx(**PLAIN, base="client"), make_task(), aggregation="secure-arithmetic")


def test_robust_guidance_is_clamped():
    for most in (0.5, None):
        guide = finished(FedLEx(**PLAIN, scale="robust", guide="fixed", most=most), make_task(), rounds=1).state.guidance.vector
        assert (float(guide.min()) < 0) == (most is None)
        assert (float(guide.max()) > 0.5) == (most is None)


def test_a_unit_mean_keeps_the_size_of_steps():
    guide = finished(FedLEx(**PLAIN, unit_mean=True, guide="fixed"), make_task(), rounds=1).state.guidance
    assert all(float(guide[e.name].mean()) == pytest.approx(1, abs=1e-4) for e in guide.layout.entries)


def test_the_rate_decays_by_round():
    rule = FedLEx(lr=0.1, lr_decay=0.5).rule(3)
    assert rule.lr == pytest.approx(0.025)
    assert FedLEx().rule(1).lr == 3e-4


@pytest.mark.parametrize("guide", ["fixed", "round"])
def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic(guide):
    assert_masks_change_nothing(make_task(), "fedlex", options=PLAIN | {"guide": guide})
