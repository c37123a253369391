"""AutoFLIP: the sheet's masks and steps, a numpy run, masked weights that stay 0, uploads, and FedAvg without pruning."""

import numpy as np
import pytest
import torch
from torch import nn

import paceline as pl
from paceline.core.client import AdamW, Client
from paceline.core.errors import PlanError
from paceline.core.params import Params
from paceline.core.training import Trained
from paceline.methods.compression.autoflip import AutoFLIP
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing
from tests.methods.oracles import classifier, displaced, gradient
from tests.methods.quadratics import by_size

PLAIN = {"optimizer": "sgd", "lr": 0.1, "lr_decay": 1.0, "epochs": 1, "batch_size": None, "explore_epochs": 2, "patience": 2}
CLIENTS = {"clients": 4, "cohort": 4, "rounds": 2}


def finished(method, task, split=None, **values):
    made = RunConfig.build({"task": "own", "vectorize": "off", **CLIENTS, **values})
    run = prepare(made, task=task, method=method, split=split)
    run.go()
    return run


def linear(width, value):
    layer = nn.Linear(width, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def line(width, value):
    return pl.Task.from_tensors(torch.randn(20, width), torch.randn(20, 1), lambda: linear(width, value), loss="mse", test=0.2)


def ending_at(monkeypatch, *ends):
    """Let the trainings of each client end at given weights, one after the other."""
    calls = {}

    def sgd(self, start, **options):
        count = calls[self.id] = calls.get(self.id, -1) + 1
        value = torch.tensor(ends[count][self.id])
        return Trained(Params(value, start.layout), 1, self.num_samples, 0.0)

    monkeypatch.setattr(Client, "sgd", sgd)


def test_displacement_guidance_and_mask_of_the_sheet(monkeypatch):
    ends = [[1.0, 2.0, 0.0, 3.0, 0.5], [1.0, 0.0, 0.0, 1.0, 0.5], [3.0, 2.0, 0.0, 2.0, 0.5]]
    minmax, robust = [0.785714, 0.571429, 0, 1, 0.053571], [0.292683, 0, -0.780488, 0.585366, -0.707317]
    for fields, guidance, mask in (
        ({}, minmax, [1, 1, 0, 1, 0]),
        ({"prune": 0.9}, minmax, [0, 0, 0, 1, 0]),
        ({"prune": 0.9, "floor": 0.6, "scale": "robust"}, robust, [1, 1, 0, 1, 0]),
    ):
        ending_at(monkeypatch, ends, ends)
        run = finished(AutoFLIP(explore_epochs=1, **fields), line(5, 0.0), by_size([1, 5, 2]), clients=3, cohort=3, rounds=1)
        np.testing.assert_allclose(run.state.guidance.vector, guidance, atol=1e-6)
        assert run.state.mask.vector.tolist() == mask


def test_the_step_of_the_sheet(monkeypatch):
    ending_at(monkeypatch, [[1.0, 1.0]] * 2, [[2.0, 0.0], [4.0, 2.0]])
    run = finished(AutoFLIP(explore_epochs=1), line(2, 1.0), by_size([1, 3]), clients=2, cohort=2, rounds=1)
    np.testing.assert_allclose(run.state.momentum.vector, [-0.25, -0.05], atol=1e-6)
    np.testing.assert_allclose(run.state.params.vector, [1.25, 1.05], atol=1e-6)


def test_without_pruning_it_is_fedavg_bit_for_bit():
    values = {"partition": "dirichlet:0.5", "cohort": 3}
    one = finished(AutoFLIP(**PLAIN, prune=0.0, server_momentum=0.0), make_task(), **values)
    other = finished(pl.methods.FedAvg(lr=0.1), make_task(), **values)
    assert torch.equal(one.state.params.vector, other.state.params.vector)


@pytest.mark.parametrize("update", ["fixed", "round", "agreement"])
def test_rounds_are_those_of_numpy(update):
    """Full batches and a linear model whose bias is the head's, so that the weight alone is masked."""
    task = make_task(model=lambda: nn.Linear(12, 4))
    options = PLAIN | {"batch_size": 1000, "explore_epochs": 3, "patience": 3, "prune": 0.4, "every": 2, "gamma": 0.6}
    method = AutoFLIP(**options, mask_update=update, server_momentum=0.5)
    made = RunConfig.build({"task": "own", "partition": "dirichlet:0.5", **CLIENTS, "cohort": 2, "rounds": 3})
    run = prepare(made, task=task, method=method)
    w, b, data = classifier(run, 4)
    squares = [displaced(w, b, x, y, steps=3, lr=0.1)[0] for x, y in data]

    def guided(who):
        d = np.mean([squares[i] for i in who], 0)
        return (d - d.min()) / (d.max() - d.min())

    g, vw, vb = guided(range(4)), 0.0, 0.0
    m = g > np.quantile(g, 0.4)
    for round in (1, 2, 3):
        run.step()
        cohort = sorted(run.fed.last.arrived)
        if update == "round":
            g = guided(cohort)
            m = g > np.quantile(g, 0.4)
        w = w * m
        steps = [gradient(w, b, *data[i]) for i in cohort]
        sizes = np.array([len(data[i][1]) for i in cohort])
        dw, db = (0.1 * sum(n * s[k] for n, s in zip(sizes, steps, strict=True)) / sizes.sum() for k in range(2))
        vw, vb = 0.5 * vw + 0.5 * dw * m, 0.5 * vb + 0.5 * db
        w, b = (w - vw) * m, b - vb
        if update == "agreement" and round == 2:
            g = 0.6 * g + 0.4 * np.abs(np.mean([-np.sign(s[0] * m) for s in steps], 0))
            m = g > np.quantile(g, 0.4)
            w = w * m
    np.testing.assert_array_equal(run.state.mask["weight"], m)
    np.testing.assert_allclose(run.state.guidance["weight"], g, atol=1e-4)
    assert (run.state.mask["bias"] == 1).all()
    np.testing.assert_allclose(run.state.params["weight"], w, atol=1e-6)
    np.testing.assert_allclose(run.state.params["bias"], b, atol=1e-6)


@pytest.mark.parametrize("update", ["fixed", "round", "agreement"])
def test_masked_weights_and_their_moments_are_zero_after_every_step(monkeypatch, update):
    seen, sgd, direction = [], Client.sgd, AdamW.direction

    def watched(self, start, **options):
        local = sgd(self, start, **options)
        if "hooks" in options:
            seen.append((start.vector, local.params.vector, moments[-1]))
        return local

    def recorded(self, step, gradient, weights, state):
        moments.append(state)
        return direction(self, step, gradient, weights, state)

    moments = []
    monkeypatch.setattr(Client, "sgd", watched)
    monkeypatch.setattr(AdamW, "direction", recorded)
    options = {"explore_epochs": 1, "epochs": 2, "batch_size": 20, "lr": 0.01, "prune": 0.6, "every": 1, "weight_decay": 0.1}
    run = finished(AutoFLIP(**options, mask_update=update), make_task())
    gone = run.state.mask.vector == 0
    assert 0.4 < float(gone.float().mean()) < 0.7
    assert not run.state.params.vector[gone].any()
    for start, end, moment in seen:
        zero = start == 0
        assert zero.any()
        assert not end[zero & (moment[1] == 0)].any()
        assert (moment[1][zero] == 0).float().mean() > 0.9  # but for biases, which begin at 0 or are not masked
    assert len(seen) == 8


def test_only_what_survives_is_sent():
    task = make_task(model=lambda: nn.Sequential(nn.Linear(12, 500), nn.ReLU(), nn.Linear(500, 4)))
    ends = [finished(m, task, rounds=2) for m in (AutoFLIP(**PLAIN, prune=0.3), pl.methods.FedAvg(lr=0.1))]
    pruned, whole = (run.fed.last for run in ends)
    assert pruned.bytes_up <= 0.75 * whole.bytes_up
    assert pruned.bytes_down <= 0.8 * whole.bytes_down
    assert pruned.notes["kept"] == pytest.approx(0.7, abs=0.02)


def test_what_is_protected_is_not_masked():
    shares, masks = {}, {}
    for protected in ("nothing", "last-bias", "biases", "head"):
        mask = finished(AutoFLIP(**PLAIN, prune=0.5, protected=protected, floor=0.0), make_task(), rounds=1).state.mask
        masks[protected] = mask
        shares[protected] = {e.name: float(mask[e.name].mean()) < 1 for e in mask.layout.entries}
    assert all(shares["nothing"].values())
    assert [name for name, masked in shares["last-bias"].items() if not masked] == ["4.bias"]
    assert not shares["biases"]["4.bias"]
    assert shares["biases"]["4.weight"]
    assert (masks["biases"]["0.bias"] == 1).equal(masks["biases"]["0.weight"].any(1)), "units without weights alone lose their bias"
    assert (masks["head"]["4.weight"].all(0)).equal(masks["head"]["2.weight"].any(1))


def test_a_random_mask_explores_nothing():
    run = finished(AutoFLIP(**PLAIN, criterion="random", prune=0.5), make_task())
    assert not run.fed.engine.memories.get(0, {})
    again = finished(AutoFLIP(**PLAIN, criterion="random", prune=0.5), make_task(), seed=1)
    assert not torch.equal(run.state.mask.vector, again.state.mask.vector)
    assert float(run.state.mask.vector.mean()) == pytest.approx(0.5, abs=0.05)
    fewer = finished(AutoFLIP(**PLAIN, criterion="random", prune=0.5, dead=0.4), make_task(), rounds=1).state.mask
    units = run.state.mask["0.weight"].mean(1)
    assert (units <= 0.4).any()
    assert not fewer["0.weight"][units <= 0.4].any()


def test_regrown_weights_begin_at_zero_and_are_trained():
    options = PLAIN | {"prune": 0.6, "mask_update": "agreement", "every": 1}
    some, none = (finished(AutoFLIP(**options, regrow=share), make_task(), rounds=1).state for share in (0.5, 0.0))
    back = (some.mask.vector == 1) & (none.mask.vector == 0)
    assert float(back.float().mean()) == pytest.approx(0.3, abs=0.1)
    assert not some.params.vector[back].any()
    grown = finished(AutoFLIP(**options, regrow=0.5), make_task(), rounds=2).state
    assert (grown.params.vector[back & (grown.mask.vector == 1)] != 0).float().mean() > 0.5


def test_refusals():
    with pytest.raises(PlanError, match="explorers=1"):
        finished(AutoFLIP(**PLAIN, mask_update="round", explorers=0.5), make_task())
    with pytest.raises(PlanError, match="mask_update=agreement or regrow=0"):
        finished(AutoFLIP(**PLAIN, regrow=0.1), make_task())


@pytest.mark.parametrize(
    "update", ["fixed", pytest.param("round", marks=pytest.mark.slow), pytest.param("agreement", marks=pytest.mark.slow)]
)
def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic(update):
    options = PLAIN | {"mask_update": update, "every": 2}
    assert_masks_change_nothing(make_task(), "autoflip", functions=("recall", "train"), options=options)
