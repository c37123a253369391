"""FedAMD: the worked numbers, its special cases, numpy, what the server counts, and what it is for."""

import numpy as np
import pytest
import torch

from paceline.core.client import Client
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.engines.worker import Worker
from paceline.methods.participation.fedamd import AnchorState, FedAmd
from paceline.run import prepare
from tests.methods.quadratics import by_size, numbers, play, quadratics
from tests.methods.resuming import assert_resumes, assert_server_sums_what_clients_keep

TWO = {"optima": [0.0, 3.0], "curvatures": [1.0, 2.0], "start": 1.0}  # gradients x and 2 (x - 3)
WORKED = {"lr": 0.1, "steps": 2}


class Fixed(FedAmd):
    """Client 1 is the anchor, client 0 mines."""

    def is_anchor(self, fed, client):
        return client == 1


class Odd(FedAmd):
    """Roles by turns."""

    def is_anchor(self, fed, client):
        return (fed.round + client) % 3 == 0


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic"])
def test_the_worked_numbers(aggregation):
    """v = (1, -4); miner 0 goes 1 -> 1.15 -> 1.285, and client 1 keeps -4, as x was where it had been."""
    extra = {"secure": {"bits": 24}} if aggregation != "plain" else {}
    changes = {"aggregation": aggregation, "options": WORKED, **extra}
    if aggregation == "plain":
        ((w, state, fed),) = play(quadratics(**TWO), f"{__name__}:Fixed", 1, **changes)
        assert float(w[0]) == pytest.approx(1.285, abs=1e-6)
        assert float(state.mean.vector) == pytest.approx(-1.5, abs=1e-6)
        assert [float(fed.engine.memories[c]["gradient"].vector) for c in (0, 1)] == pytest.approx([1.0, -4.0])
    else:  # three clients at least: a third one, which is like the second and never mines
        task = quadratics([0.0, 3.0, 3.0], [1.0, 2.0, 2.0], start=1.0)
        ((w, state, _),) = play(task, f"{__name__}:Alone", 1, **changes)
        v = (1.0 - 4.0 - 4.0) / 3
        assert float(state.mean.vector) == pytest.approx(v, abs=1e-5)
        assert float(w[0]) == pytest.approx(1.0 - 0.1 * v - 0.1 * (v - 0.1 * v), abs=1e-5)


class Alone(FedAmd):
    """Client 0 mines, all others are anchors."""

    def is_anchor(self, fed, client):
        return client > 0


def test_the_first_step_needs_no_data():
    """K = 1: every update is lr v, whatever the client has."""
    task = quadratics([5.0, -3.0, 40.0], start=1.0, noise=2.0, samples=4)
    (first, second) = numbers(task, "fedamd", 2, options={"anchor": 0.0, "steps": 1, "lr": 0.1, "batch_size": 1})
    v = np.mean([1.0 - b for b in (5.0, -3.0, 40.0)])
    assert (first, second) == pytest.approx((1.0 - 0.1 * v, 1.0 - 0.2 * v), abs=1e-5)


def test_nobody_an_anchor_and_everybody_one():
    task = quadratics(**TWO)
    means = [float(state.mean.vector) for _, state, _ in play(task, "fedamd", 4, options=WORKED | {"anchor": 0.0})]
    assert means == pytest.approx([-1.5] * 4)
    assert numbers(task, "fedamd", 4, options=WORKED | {"anchor": 1.0}) == [1.0] * 4


def test_one_client_that_alternates_is_gradient_descent():
    """An anchor before each step of K = 1."""
    task = quadratics([[2.0, -1.0]], [[1.0, 3.0]], start=1.0)
    models = [w for w, *_ in play(task, "fedamd", 8, options={"period": 2, "steps": 1, "lr": 0.1})]
    w, b, a = np.ones(2), np.array([2.0, -1.0]), np.array([1.0, 3.0])
    for number in range(0, 8, 2):
        np.testing.assert_allclose(models[number], w, atol=1e-6)
        w = w - 0.1 * a * (w - b)
        np.testing.assert_allclose(models[number + 1], w, atol=1e-6)


def oracle(b, a, rounds, lr, steps, eta, anchor, per_step=False):
    n, x = len(b), np.ones(b.shape[1])
    v = a * (x - b)
    out = []
    for number in range(1, rounds + 1):
        mean, deltas = v.mean(0), []
        new = v.copy()
        for i in range(n):
            if anchor(number, i):
                new[i] = a[i] * (x - b[i])
                continue
            y, before, g = x.copy(), x.copy(), mean
            for _ in range(steps):
                g = g - a[i] * (before - b[i]) + a[i] * (y - b[i])
                before, y = y, y - lr * g
            deltas.append((x - y) / (steps if per_step else 1))
        x = x - eta * np.mean(deltas, 0) if deltas else x
        v = new
        out.append(x)
    return np.array(out)


@pytest.mark.parametrize(("aggregation", "vectorize"), [("plain", "off"), ("plain", "on"), ("secure-arithmetic", "off")])
@pytest.mark.parametrize("per_step", [False, True])
def test_rounds_follow_the_formulas(aggregation, vectorize, per_step):
    """Miners go by the mean of before the anchors of the same round."""
    rng = np.random.default_rng(3)
    b, a = rng.normal(size=(6, 3)), rng.uniform(0.5, 2.0, (6, 3))
    options = {"lr": 0.1, "steps": 4, "server_lr": 0.8, "per_step": per_step}
    changes = {"vectorize": vectorize, "chunk": 6} if vectorize == "on" else {}
    changes |= {"aggregation": aggregation} | ({"secure": {"bits": 24}} if aggregation != "plain" else {})
    got = [w for w, *_ in play(quadratics(b, a, start=1.0), f"{__name__}:Odd", 6, options=options, **changes)]
    expected = oracle(b, a, 6, 0.1, 4, 0.8, lambda r, i: (r + i) % 3 == 0, per_step)
    np.testing.assert_allclose(got, expected, atol=1e-5 if aggregation == "plain" else 1e-4)


def test_roles_are_drawn_by_p_or_come_by_the_period(task, config):
    def drawn(**options):
        fed = prepare(config(method="fedamd", options=options), task=task).fed
        method, out = FedAmd(**options), []
        for number in range(1, 201):
            fed.start_round(number)
            out.append([method.is_anchor(fed, c) for c in range(6)])
        return np.array(out)

    assert drawn(anchor=0.3).mean() == pytest.approx(0.3, abs=0.04)
    assert (drawn(anchor=0.3).std(1) > 0).any()
    by_turns = drawn(period=5)
    assert by_turns[0].all()
    assert by_turns[5].all()
    assert by_turns.sum() == 6 * 40


def test_large_batches_are_drawn_where_they_are_limited():
    task = quadratics([[0.0], [4.0]], start=1.0, noise=1.0, samples=50)
    whole = next(iter(play(task, "fedamd", 1, options={"anchor": 0.0})))[1]
    part = next(iter(play(task, "fedamd", 1, options={"anchor": 0.0, "large_batch": 10})))[1]
    assert float(whole.mean.vector) == pytest.approx(-1.0, abs=1e-5)
    assert 1e-4 < abs(float(part.mean.vector) + 1.0) < 1.5


def test_those_who_come_later_enter_the_mean_when_they_are_anchors(tmp_path):
    """Client 1 was away in the first round: v is the mean over those who were seen."""
    trace = tmp_path / "trace.csv"
    trace.write_text("client,first,last\n0,1,9\n1,2,9\n")
    options = WORKED | {"anchor": 0.0, "steps": 1}
    first, second = list(play(quadratics(**TWO), f"{__name__}:Fixed", 2, participation=f"trace:{trace}", options=options))
    assert float(first[1].mean.vector) == pytest.approx(1.0)
    x = float(first[0][0])
    assert x == pytest.approx(0.9)
    assert float(second[1].mean.vector) == pytest.approx((1.0 + 2 * (x - 3)) / 2, abs=1e-6)


# -- in a federation -----------------------------------------------------------------------------------
LEARNS = {"lr": 0.1, "batch_size": 10, "steps": 8, "anchor": 0.4}


def test_it_learns_also_under_masks_and_with_drop_outs(federate):
    common = {"method": "fedamd", "rounds": 7, "clients": 8, "cohort": 8, "partition": "dirichlet:1", "options": LEARNS}
    common |= {"secure": {"gamma": 0.3, "delta": 0.3}}
    plain = federate(drop=lambda r, c, f: f != "anchored" and (c + r) % 8 == 0, **common)
    assert plain.accuracy > 0.7
    secure = federate(aggregation="secure", drop=lambda r, c, f: f.endswith("masked") and (c + r) % 8 == 0, **common)
    assert secure.accuracy == pytest.approx(plain.accuracy, abs=0.08)


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, task):
    assert_resumes(tmp_path, task, method="fedamd", cohort=4, options=LEARNS)


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic"])
def test_the_sum_is_that_of_the_gradients_that_clients_keep(task, config, aggregation):
    link, secure = ("3e5", {}) if aggregation == "plain" else ("6e5", {"bits": 24, "gamma": 0.0})
    fleet = f"mobile:link={link},least=0.9,vary=1.0,compute=1e8"
    common = {"method": "fedamd", "clients": 8, "cohort": 8, "rounds": 12, "options": LEARNS}
    made = config(aggregation=aggregation, secure=secure, fleet=fleet, deadline=0.4, **common)
    prepared = prepare(made, task=task)
    total = assert_server_sums_what_clients_keep(prepared, 12, "gradient", lambda state: state.total.vector, 1e-3)
    assert total.abs().max() > 0.01


def distance(seed, method, rounds, clients=20, **options):
    """Return the mean distance to the optimum in the last quarter of the rounds, on 5-dimensional quadratics."""
    rng = np.random.default_rng(seed)
    b, a = 1.5 * rng.normal(size=(clients, 5)), rng.uniform(0.5, 1.5, (clients, 5))
    best = (a * b).sum(0) / a.sum(0)
    task = quadratics(b, a, noise=0.5, samples=10, seed=seed)
    steps = play(
        task, method, rounds, cohort=4, seed=seed, vectorize="on", chunk=4, options={"lr": 0.02, "batch_size": 1} | options
    )
    return float(np.mean([np.linalg.norm(w - best) for w, *_ in steps][-rounds // 4 :]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_anchors_and_miners_come_nearer_to_the_optimum(seed):
    """The claim is made after 500 rounds; where the gradients of the first model are forgotten, 200 suffice."""
    assert distance(seed, "fedamd", 200, anchor=0.3, steps=10) < distance(seed, "fedavg", 200, epochs=1)


def test_the_mean_of_no_gradients_is_zero():
    layout = Layout.build([("w", (3,), "param")])
    zeros = Params(torch.zeros(3), layout)
    assert AnchorState(params=zeros, total=zeros).mean.vector.tolist() == [0.0] * 3
    assert AnchorState(params=zeros, total=zeros + 6.0, members=[1, 4, 2]).mean.vector.tolist() == [2.0] * 3


def test_a_step_is_one_batch_of_the_clients_samples(monkeypatch):
    """Miners of 12 samples with batches of 4, and anchors with large batches of 5: each local training is one step."""
    seen, sgd = [], Client.sgd

    def spy(self, *args, **values):
        local = sgd(self, *args, **values)
        seen.append((local.steps, local.samples if hasattr(local, "samples") else values["batch_size"]))
        return local

    monkeypatch.setattr(Client, "sgd", spy)
    task = quadratics([0.0, 3.0, 1.0], samples=12, noise=0.3)
    for _ in play(task, f"{__name__}:Odd", 4, options={"lr": 0.1, "steps": 3, "batch_size": 4, "large_batch": 5}):
        pass
    assert {steps for steps, _ in seen} == {1}
    assert {size for _, size in seen} == {4, 5}


def test_miners_count_alike_however_many_samples_they_have(monkeypatch):
    """1, 2 and 5 samples; a client without any has no say."""
    seen, invoke = {}, Worker.invoke

    def spy(self, me, function, message):
        reply = invoke(self, me, function, message)
        if function == "mined":
            seen[me.id] = reply.weight
        return reply

    monkeypatch.setattr(Worker, "invoke", spy)
    task = quadratics([0.0, 3.0, 1.0, 2.0], sizes=[1, 2, 5, 1])
    for _ in play(task, "fedamd", 2, options={"lr": 0.1, "steps": 2, "anchor": 0.0}, split=by_size([1, 2, 6, 0])):
        pass
    assert {client: set(weight.values()) for client, weight in seen.items()} == {0: {1}, 1: {1}, 2: {1}, 3: {0}}
