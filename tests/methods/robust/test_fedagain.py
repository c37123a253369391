"""FedAgain: the numbers of the paper's rule, both forms against each other and against hand arithmetic, and who loses trust."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import paceline as pl
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.data import Partition
from paceline.methods.robust.fedagain import FedAgain, FedAgainSum, divergence, robust_error, trust
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing
from tests.methods.quadratics import by_size

SGD = {"optimizer": "sgd", "lr": 0.1}


def finished(method, task=None, split=None, **values):
    config = {"method": "fedagain", "task": "own", "clients": 4, "cohort": 4, "rounds": 1, "vectorize": "off", **values}
    run = prepare(RunConfig.build(config), task=task or make_task(), method=method, split=split)
    return run, run.go()


def vector(method, **values):
    run, _ = finished(method, **values)
    return run.state.params.vector


def test_the_numbers_of_three_clients():
    e, delta = torch.tensor([0.02, 0.02, 0.08]).double(), torch.tensor([0.01, 0.02, 0.04]).double()
    tau = trust(e, delta)
    np.testing.assert_allclose(tau, [4999.250, 2499.750, 312.488], atol=1e-3)
    np.testing.assert_allclose(tau / tau.sum(), [0.639987, 0.320009, 0.040004], atol=1e-6)
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [10.0, 10.0]]).double()
    np.testing.assert_allclose(tau / tau.sum() @ w, [1.040024, 0.720046], atol=1e-6)


def test_divergence_is_one_minus_the_cosine():
    assert divergence(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])) == pytest.approx(0.292893, abs=1e-6)
    a = torch.randn(1000)
    assert divergence(a, a) == 0
    assert float(trust(torch.tensor(0.0), torch.tensor(0.0))) == pytest.approx(1e12)
    b = a + 1e-5 * torch.randn(1000)  # 1 - cos is about 5e-11: nothing is left of it in float32, and half in float64
    x, y = a.numpy().astype(np.longdouble), b.numpy().astype(np.longdouble)
    assert divergence(a, b) == pytest.approx(float(1 - x @ y / np.sqrt((x @ x) * (y @ y))), rel=1e-6)


def begun(method, split=None):
    """Return the federation at the start of round 1, and the initial parameters."""
    config = {"method": method.slug(), "clients": 4, "cohort": 4, "task": "own", "vectorize": "off"}
    run = prepare(RunConfig.build(config), task=make_task(), split=split, method=method)
    run.fed.start_round(1)
    return run.fed, run.fed.init_params()


def by_hand(method, split):
    """Return the model after a round, and the shares, from the clients' own replies and plain numpy."""
    fed, params = begun(method, split)
    replies = fed.each(method.train, params, over=range(4))
    w = params.vector.double().numpy()
    trained = [w + replies[c]["delta"].vector.double().numpy() for c in range(4)]
    delta = np.array([1 - w @ t / np.sqrt((w @ w) * (t @ t)) for t in trained])
    tau = 1 / ((np.array([replies[c]["error"] for c in range(4)]) + 1e-6) * (delta + 1e-6))
    return tau / tau.sum() @ np.array(trained), tau / tau.sum()


def test_a_round_is_the_mean_weighted_by_trust():
    method, split = FedAgain(**SGD), by_size([10, 30, 50, 70])
    wanted, shares = by_hand(method, split)
    run, result = finished(method, split=split)
    np.testing.assert_allclose(run.state.params.vector, wanted, atol=1e-6)
    notes = result.history[-1]
    np.testing.assert_allclose([notes[f"note_weight_{c}"] for c in range(4)], shares, rtol=1e-6)
    assert notes["note_effective_clients"] == pytest.approx(1 / (shares**2).sum())
    assert shares.max() > 1.5 * shares.min()


@pytest.mark.parametrize("fields", [{}, {"most": 0.26}, {"by_samples": True}])
def test_the_sum_only_form_is_the_published_one(fields):
    for split in (by_size([10, 30, 50, 70]), by_size([20, 0, 60, 1])):
        one, two = (vector(made(**SGD, **fields), split=split, rounds=2) for made in (FedAgain, FedAgainSum))
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
    fedavg = vector(pl.methods.FedAvg(lr=0.1, epochs=3, batch_size=32), split=split, rounds=2)
    assert not torch.allclose(one, fedavg, atol=1e-4)


def test_equal_clients_end_with_the_bits_of_fedavg():
    offsets = torch.arange(5) * 60
    split = Partition("same", torch.arange(60).repeat(4), offsets, offsets[1:].clone())
    fields = {"lr": 0.1, "epochs": 2, "batch_size": 60}  # one batch, so that the order has no effect
    ends = [vector(m(**fields), split=split, rounds=3) for m in (partial(FedAgain, optimizer="sgd"), pl.methods.FedAvg)]
    assert torch.equal(*ends)


def test_the_benchmark_error_is_measured_before_training():
    errors = []
    for epochs in (1, 3):
        method = FedAgain(epochs=epochs)
        fed, params = begun(method)
        errors.append({c: r["error"] for c, r in fed.each(method.train, params, over=range(4)).items()})
    assert errors[0] == errors[1]


def test_no_client_moves_the_model_by_more_than_its_limit():
    """What is cut off stays with the received model, in both forms."""
    split = by_size([1, 60, 60, 60])
    for made in (FedAgain, FedAgainSum):
        free, capped = (vector(made(**SGD, most=most), split=split) for most in (None, 0.01))
        fed, params = begun(FedAgain(**SGD), split)
        replies, start = fed.each(FedAgain(**SGD).train, params, over=range(4)), params.vector
        torch.testing.assert_close(capped - start, 0.01 * sum(r["delta"].vector for r in replies.values()), atol=1e-6, rtol=1e-4)
        assert (free - start).norm() > 20 * (capped - start).norm()


def shares(errors, apart, **fields):
    """Return the shares of clients whose updates have given divergences from (1, 0)."""
    angle = torch.acos(1 - torch.tensor(apart).double())
    g = torch.stack([angle.cos() - 1, angle.sin()], 1)
    params = Params(torch.tensor([1.0, 0.0]), Layout.of(nn.Linear(2, 1, bias=False)))
    return FedAgain(**fields).shares(params, g, torch.tensor(errors).double(), torch.tensor([1.0, 2.0, 4.0]))


def test_options_of_the_shares():
    e, d = [0.02, 0.02, 0.08], [0.01, 0.02, 0.04]
    np.testing.assert_allclose(shares(e, d), [0.639987, 0.320009, 0.040004], atol=1e-5)
    np.testing.assert_allclose(shares(e, d, most=0.5), [0.5, 0.320009, 0.040004], atol=1e-5)
    by = np.array([0.639987, 0.320009, 0.040004]) * [1, 2, 4]
    np.testing.assert_allclose(shares(e, d, by_samples=True), by / by.sum(), atol=1e-5)
    np.testing.assert_allclose(shares(e, d, rule="equal"), [1 / 3] * 3)
    z = [(np.array(v) - np.mean(v)) / np.std(v) for v in (e, d)]
    p = np.exp(-2 * z[0] - 0.5 * z[1])
    np.testing.assert_allclose(shares(e, d, rule="softmax", alpha=2.0, beta=0.5), p / p.sum(), atol=1e-6)
    assert shares(e, [0.0, 0.02, 0.04])[0] > 0.999  # a client that does not train
    tau = 1 / ((np.array(e) + 1e-6) * (np.array([0.002, 0.02, 0.04]) + 1e-6))
    np.testing.assert_allclose(shares(e, [0.0, 0.02, 0.04], floor=True), tau / tau.sum(), atol=1e-5)
    np.testing.assert_allclose(robust_error(torch.tensor([1.0, 2.0, 4.0])), [1 + 1 / 1.4826, 1, 1 + 2 / 1.4826], rtol=1e-6)
    low = shares([0.001, 0.02, 0.021], [0.01] * 3, error="robust-z")
    assert low[0] < 0.1 < shares([0.001, 0.02, 0.021], [0.01] * 3)[0]


def test_clients_that_lie_are_found_on_samples_of_the_server():
    class Liar(FedAgain):
        def learn(self, client, start):
            local, error = super().learn(client, start)
            return (start + 1.0 * (start - local), 0.0) if client.assigned([True, False, False, False]) else (local, error)

    weights = []
    for benchmark in ("client", "server"):
        _, result = finished(Liar(**SGD, benchmark=benchmark), rounds=4)
        weights.append(result.history[-1]["note_weight_0"])
    assert weights[0] > 0.9
    assert weights[1] < 0.2


def test_updates_that_are_not_finite_and_clients_without_samples_have_no_say():
    class Broken(FedAgain):
        def learn(self, client, start):
            local, error = super().learn(client, start)
            return (local * float("nan"), error) if client.assigned([True, False, False, False]) else (local, error)

    run, result = finished(Broken(**SGD), split=by_size([40, 40, 40, 0]))
    assert torch.isfinite(run.state.params.vector).all()
    assert result.history[-1]["note_refused"] == 1
    assert {k for k in result.history[-1] if k.startswith("note_weight")} == {"note_weight_1", "note_weight_2"}


@pytest.mark.parametrize(("told", "refused"), [(float("nan"), 1), (float("inf"), 1), (-1e-6, 0), (-0.5, 0)])
def test_no_reported_error_stops_or_reverses_the_others(told, refused):
    """One client reports an impossible error: without a number it is left out, below 0 it counts as 0, and all weights stay shares."""

    class Liar(FedAgain):
        def learn(self, client, start):
            local, error = super().learn(client, start)
            return local, told if client.assigned([True, False, False, False]) else error

    run, result = finished(Liar(**SGD))
    notes = {k: v for k, v in result.history[-1].items() if k.startswith("note_weight")}
    assert result.history[-1]["note_refused"] == refused
    assert len(notes) == 4 - refused
    assert all(0 <= value <= 1 for value in notes.values())
    assert sum(notes.values()) == pytest.approx(1)
    assert not torch.equal(run.state.params.vector, run.fed.init_params().vector)


def test_an_update_of_an_earlier_round_is_never_sent():
    """A client whose update was not collected, and that is not in the next cohort's first sum, weighs nothing."""
    method = FedAgainSum(**SGD)
    fed, params = begun(method)
    fed.sum(method.train, params, over=[0, 1, 2, 3])
    assert fed.sum(method.weight, (0.0, 1.0), over=[3]) > 0
    fed.engine.commit()
    fed.start_round(2)
    fed.sum(method.train, params, over=[0, 1])
    assert fed.sum(method.weight, (0.0, 1.0), over=[3]) == 0
    sent = fed.sum(method.send, (0.0, 1.0), over=[3])
    assert sent["weight"] == 0
    assert not sent["delta"].vector.any()


@pytest.mark.parametrize("options", [{}, {"most": 0.2}])
def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic(options):
    options |= {"lr": 0.01, "epochs": 1}
    secure = {"threshold": 5, "gamma": 0.05, "bits": 22, "clip": 1.0}
    masked = assert_masks_change_nothing(make_task(), "fedagainsum", options=options, secure=secure)
    open_ = prepare(
        RunConfig.build({"method": "fedagainsum", "task": "own", "clients": 8, "cohort": 8, "rounds": 3, "options": options}),
        task=make_task(),
        drop=lambda round, lost, function: round == 2 and lost == 3 and function == "train",
    ).go()
    assert masked.history[-1]["loss"] == pytest.approx(open_.history[-1]["loss"], abs=2e-3)
