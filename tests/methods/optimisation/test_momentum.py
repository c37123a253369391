"""FedAvg-M, SCAFFOLD-M and their variance-reduced forms: the worked numbers, numpy, and what they are for."""

import dataclasses

import numpy as np
import pytest
import torch

from paceline.core.client import Hooks
from paceline.run import prepare
from tests.conftest import make_task
from tests.methods.quadratics import by_size, numbers, play, quadratics
from tests.methods.resuming import assert_resumes, assert_server_sums_what_clients_keep

FORMS = ["fedavgm", "fedavgmvr", "scaffoldm", "scaffoldmvr"]
TWO = {"optima": [0.0, 2.0], "curvatures": [1.0, 3.0], "start": 1.0}  # gradients x and 3 (x - 2)
WORKED = {"lr": 0.1, "server_lr": 0.2, "beta": 0.5, "steps": 2}


# -- the worked numbers --------------------------------------------------------------------------------
def test_fedavg_m():
    (x1, s1, _), (x2, s2, _) = play(quadratics(**TWO), "fedavgm", 2, options=WORKED)
    assert (x1[0], x2[0]) == pytest.approx((1.09, 1.205875), abs=1e-6)
    assert [float(s.direction.vector) for s in (s1, s2)] == pytest.approx([-0.45, -0.579375], abs=1e-6)


def test_fedavg_m_vr():
    (x1, s1, _), (x2, s2, _) = play(quadratics(**TWO), "fedavgmvr", 2, options=WORKED)
    assert (x1[0], x2[0]) == pytest.approx((1.17, 1.267), abs=1e-6)
    assert [float(s.direction.vector) for s in (s1, s2)] == pytest.approx([-0.85, -0.485], abs=1e-6)


@pytest.mark.parametrize(
    ("method", "x", "g", "controls", "server"),
    [
        ("scaffoldm", [1.0975, 1.20688125], [-0.4875, -0.54690625], [1.025, -2.6188125], [-0.9875, -0.79690625]),
        ("scaffoldmvr", [1.19, 1.256725], [-0.95, -0.333625], [1.05, -2.371125], [-0.975, -0.6605625]),
    ],
)
def test_scaffold_m(tmp_path, method, x, g, controls, server):
    """Both are asked for their first control; then client 0 alone trains, then client 1."""
    turns = tmp_path / "turns.csv"
    turns.write_text("client,first,last\n0,1,1\n1,2,2\n")

    def both_at_first(fed):
        there = fed.available
        fed.available = lambda most=None, among=None: [0, 1] if most is None else there(most, among)

    options = WORKED | {"start": "gradients"}
    steps = list(play(quadratics(**TWO), method, 2, meet=both_at_first, participation=f"trace:{turns}", options=options))
    assert [w[0] for w, *_ in steps] == pytest.approx(x, abs=2e-6)
    assert [float(s.direction.vector) for _, s, _ in steps] == pytest.approx(g, abs=2e-6)
    assert [float(s.control.vector) for _, s, _ in steps] == pytest.approx(server, abs=2e-6)
    kept = [steps[-1][2].engine.memories[c]["control"] for c in (0, 1)]
    assert [float(k.vector) for k in kept] == pytest.approx(controls, abs=1e-5)


@pytest.mark.parametrize(("method", "same"), [("fedavgm", "fedavg"), ("fedavgmvr", "fedavg"), ("scaffoldm", "scaffold")])
def test_without_momentum_they_are_what_they_extend(method, same):
    """beta = 1 and gamma = lr K (the default); the direction is a quotient, so that the last bits of float32 differ."""
    rng = np.random.default_rng(1)
    task = quadratics(rng.normal(size=(6, 3)), rng.uniform(0.5, 2, (6, 3)), start=1.0, noise=0.3, samples=4)
    common = {"cohort": 3, "seed": 2}
    local = {"lr": 0.05, "epochs": 2, "batch_size": 2}
    ours = [w for w, *_ in play(task, method, 5, options=local | {"beta": 1.0}, **common)]
    theirs = [w for w, *_ in play(task, same, 5, options=local, **common)]
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert np.abs(ours[-1] - ours[0]).max() > 0.1


def test_without_controls_scaffold_m_is_fedavg_m():
    """In its first round, from zero controls."""
    task = quadratics([[1.0], [4.0]], start=0.5)
    options = {"lr": 0.1, "beta": 0.4, "steps": 3, "server_lr": 0.2}
    assert numbers(task, "scaffoldm", 1, options=options) == pytest.approx(numbers(task, "fedavgm", 1, options=options), abs=1e-7)


# -- numpy ---------------------------------------------------------------------------------------------
def oracle(method, optima, curvatures, start, rounds, beta, lr, steps, decay, gamma):
    """The box of the paper, noiseless and with everybody, controls from zero (from gradients with VR)."""
    a, b, x = curvatures, optima, np.full(optima.shape[1], start)
    slope = lambda i, y: a[i] * (y - b[i]) + decay * y  # noqa: E731
    n, before, g = len(a), x.copy(), np.zeros_like(x)
    c = np.zeros_like(a)
    if method.endswith("vr"):
        g = np.mean([slope(i, x) for i in range(n)], 0)
        if method.startswith("scaffold"):
            c = np.array([slope(i, x) for i in range(n)])
    out = []
    for _ in range(rounds):
        ends, new = [], c.copy()
        for i in range(n):
            y, plain = x.copy(), []
            for _ in range(steps):
                grad = slope(i, y)
                plain.append(grad)
                d = {
                    "fedavgm": beta * grad + (1 - beta) * g,
                    "fedavgmvr": grad + (1 - beta) * (g - slope(i, before)),
                    "scaffoldm": beta * (grad - c[i] + c.mean(0)) + (1 - beta) * g,
                    "scaffoldmvr": grad - beta * (c[i] - c.mean(0)) + (1 - beta) * (g - slope(i, before)),
                }[method]
                y = y - lr * d
            ends.append(y)
            new[i] = np.mean(plain, 0)
        g = (x - np.mean(ends, 0)) / (lr * steps)
        before, x = x, x - (lr * steps if gamma is None else gamma) * g
        if method.startswith("scaffold"):
            c = new
        out.append(x)
    return np.array(out)


@pytest.mark.parametrize("vectorize", ["off", "on"])
@pytest.mark.parametrize("gamma", [None, 0.25])
@pytest.mark.parametrize("method", FORMS)
def test_rounds_follow_the_formulas(method, gamma, vectorize):
    rng = np.random.default_rng(3)
    b, a = rng.normal(size=(4, 3)), rng.uniform(0.5, 2.0, (4, 3))
    options = {"beta": 0.3, "lr": 0.1, "steps": 3, "weight_decay": 0.05, "server_lr": gamma}
    changes = {"vectorize": vectorize, "chunk": 4} if vectorize == "on" else {}
    got = [w for w, *_ in play(quadratics(b, a, start=0.5), method, 5, options=options, **changes)]
    np.testing.assert_allclose(got, oracle(method, b, a, 0.5, 5, 0.3, 0.1, 3, 0.05, gamma), atol=5e-6)


@pytest.mark.parametrize("steps", [1, 4])
def test_controls_are_the_means_of_plain_minibatch_gradients(steps):
    """With noisy batches of one sample, and with what the loop saw as the witness."""
    task = quadratics([[0.0], [3.0]], start=1.0, noise=0.7, samples=5)
    options = {"beta": 0.3, "lr": 0.05, "steps": steps, "batch_size": 1}
    for method in ("scaffoldm", "scaffoldmvr"):
        seen = {0: [], 1: []}
        for *_, fed in play(task, method, 2, options=options, meet=lambda fed, seen=seen: watch(fed, seen, task)):
            kept = {c: float(fed.engine.memories[c]["control"].vector) for c in (0, 1)}
            assert kept == pytest.approx({c: np.mean(values[:steps]) for c, values in seen.items()}, abs=1e-5)
            for values in seen.values():
                values.clear()


@pytest.mark.parametrize(("method", "options"), [("scaffoldm", {"start": "gradients"}), ("scaffoldmvr", {})])
def test_controls_that_start_from_gradients_are_means_over_the_clients_with_samples(method, options):
    """The others train as without the empty ones; one of these is absent when the gradients are collected."""
    ends, options = [], {"beta": 0.4, "lr": 0.2, "steps": 2, **options}
    for sizes in ([2, 2, 2], [2, 0, 2, 2, 0]):
        task = quadratics([[0.0], [1.0], [5.0]], [[1.0], [0.5], [2.0]], start=1.0, samples=2)
        *_, (w, _, _) = play(task, method, 4, options=options, split=by_size(sizes))
        ends.append(float(w[0]))
    assert ends[1] == pytest.approx(ends[0], abs=1e-6)
    *_, (_, state, fed) = play(task, method, 1, options=options, split=by_size([2, 0]))
    assert torch.equal(state.control.vector, fed.engine.memories[0]["control"].vector)
    drop = lambda round, client, function: function == "first" and client == 4  # noqa: E731
    for _, state, fed in play(task, method, 4, options=options, split=by_size(sizes), drop=drop, on_error="drop"):
        total = sum(float(fed.engine.memories[c]["control"].vector) for c in (0, 2, 3, 4))
        assert state.empty == 1
        assert float(state.control.vector) == pytest.approx(total / 4, abs=1e-5)


def test_the_work_of_a_round_is_that_of_its_gradients(config, task):
    """Two in each step with variance reduction, three with controls as well. Gradients at the start are of the first round."""
    seconds = {}
    for method in FORMS:
        run = prepare(config(method=method, rounds=2, fleet="homogeneous:compute=1e3", options={"steps": 4}), task=task)
        run.go()
        seconds[method] = run.history[-1]["round_seconds"]
    assert [seconds[method] / seconds["fedavgm"] for method in FORMS] == pytest.approx([1, 2, 1, 3], rel=0.01)


def watch(fed, seen, task):
    """Note the gradient at the live point of each training step, at the first asking in the step."""
    worker = fed.engine.here
    program = worker.setup.programs["method"]
    real = type(program).sgd

    def sgd(self, client, start, hooks, **options):
        steps = []
        if hooks.direction is not None:
            hook = hooks.direction

            def direction(gradient, at):
                calls = []

                def noted(point):
                    found = gradient(point)
                    calls.append(float(found.vector))
                    return found

                out = hook(noted, at)
                steps.append(calls[0])
                return out

            hooks = Hooks(direction=direction)
        else:
            hook = hooks.correct
            hooks = Hooks(correct=lambda grad, at: steps.append(float(grad.vector)) or hook(grad, at))
        trained = real(self, client, start, hooks, **options)
        seen[client.id].extend(steps)
        return trained

    watched = type("Watched", (type(program),), {"sgd": sgd})
    worker.setup.programs["method"] = watched(**dataclasses.asdict(program))


# -- in a federation -----------------------------------------------------------------------------------
@pytest.mark.parametrize("method", FORMS)
def test_they_learn_also_under_masks_and_with_drop_outs(federate, method):
    common = {"method": method, "rounds": 10, "clients": 8, "cohort": 8, "partition": "dirichlet:1", "options": {"beta": 0.3}}
    common |= {"drop": lambda r, c, f: f.endswith("train") and (c + r) % 8 == 0, "secure": {"gamma": 0.3, "delta": 0.3}}
    plain = federate(**common)
    assert plain.accuracy > 0.7
    arithmetic = federate(aggregation="secure-arithmetic", **common)
    assert arithmetic.accuracy == pytest.approx(plain.accuracy, abs=0.06)


@pytest.mark.parametrize("method", ["fedavgm", "scaffoldm"])
def test_masked_sums_have_the_bits_of_their_arithmetic(federate, method):
    def drop(r, c, f):
        return f.endswith("masked") and (c + r) % 8 == 0

    common = {"method": method, "rounds": 3, "clients": 8, "cohort": 8, "secure": {"gamma": 0.3, "delta": 0.3}}
    secure = federate(aggregation="secure", drop=drop, **common)
    arithmetic = federate(aggregation="secure-arithmetic", drop=lambda r, c, f: f == "train" and (c + r) % 8 == 0, **common)
    assert secure.model_sha256 == arithmetic.model_sha256


@pytest.mark.parametrize("method", FORMS)
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, task, method):
    assert_resumes(tmp_path, task, method=method, cohort=4)


def test_a_change_that_is_lost_on_its_way_does_not_count(task, config):
    """The mean of the clients' controls is the server's, although some replies came too late."""
    fleet = "mobile:link=1e6,least=0.9,vary=1.0,compute=1e7"
    made = config(method="scaffoldm", clients=8, cohort=6, rounds=20, fleet=fleet, deadline=0.4)
    prepared = prepare(made, task=task)
    assert_server_sums_what_clients_keep(prepared, 20, "control", lambda state: 8 * state.control.vector, 8e-5)


def test_the_reference_model_with_batchnorm_keeps_statistics_out_of_the_direction(config, task):
    def model():
        return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 4))

    prepared = prepare(config(method="scaffoldm", rounds=2), task=make_task(model=model))
    state = prepared.method.init(prepared.fed)
    for number in (1, 2):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
        prepared.fed.engine.commit()
    layout = state.params.layout
    assert layout.size > layout.num_params
    assert not state.direction.vector[layout.num_params :].any()
    assert not state.control.vector[layout.num_params :].any()
    running = state.params.vector[layout.num_params :]
    assert (running.abs() > 0.01).any()
    assert (running < 20).all()


# -- what they are for ---------------------------------------------------------------------------------
def distance(method, seed, clients, cohort, rounds, noise, **options):
    """Return the mean distance to the optimum in the last half of the rounds, on 5-dimensional quadratics."""
    rng = np.random.default_rng(seed)
    b, a = 1.5 * rng.normal(size=(clients, 5)), rng.uniform(0.5, 1.5, (clients, 5))
    best = (a * b).sum(0) / a.sum(0)
    task = quadratics(b, a, noise=noise, samples=20, seed=seed)
    steps = play(task, method, rounds, cohort=cohort, seed=seed, vectorize="on", chunk=cohort, options={"batch_size": 1, **options})
    return float(np.mean([np.linalg.norm(w - best) for w, *_ in steps][rounds // 2 :]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_momentum_brings_fedavg_nearer_to_the_optimum(seed):
    common = {"clients": 10, "cohort": 10, "rounds": 60, "noise": 0.5, "lr": 0.05, "steps": 20}
    ours = distance("fedavgm", seed, beta=0.1, server_lr=0.3, **common)
    assert ours < distance("fedavg", seed, **{k: v for k, v in common.items() if k != "steps"}, epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_momentum_brings_scaffold_nearer_to_the_optimum(seed):
    common = {"clients": 20, "cohort": 2, "rounds": 150, "noise": 0.5, "lr": 0.05}
    ours = distance("scaffoldm", seed, beta=0.3, server_lr=0.3, steps=10, **common)
    assert ours < distance("scaffoldm", seed, beta=1.0, steps=10, **common)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_variance_reduction_damps_noise_where_the_local_rate_is_small(seed):
    common = {"clients": 10, "cohort": 10, "rounds": 120, "noise": 3.0, "lr": 0.002, "steps": 10, "server_lr": 0.1}
    ours = distance("fedavgmvr", seed, beta=0.1, **common)
    assert ours < distance("fedavgm", seed, beta=0.1, **common)
    assert ours < distance("fedavgm", seed, beta=1.0, **common)
