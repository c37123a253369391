"""FedSpeed: the worked numbers, its special cases, numpy, and which of its two server forms settles."""

import numpy as np
import pytest
import torch

from paceline.core.method import on_client
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import prepare
from tests.conftest import make_task
from tests.methods.quadratics import play, quadratics
from tests.methods.resuming import assert_resumes, assert_server_sums_what_clients_keep

TWO = {"optima": [0.0, 2.0], "curvatures": [1.0, 3.0], "start": 1.0}  # gradients x and 3 (x - 2)
WORKED = {"lr": 0.1, "prox": 0.1, "radius": 0.1, "steps": 2, "weight_decay": 0.0, "lr_decay": 1.0}
PLAIN = {"weight_decay": 0.0, "lr_decay": 1.0}
FORMS = ["all", "sampled"]


def duals(fed):
    """Return the clients' h; the paper's corrections are -prox * h."""
    return {c: fed.engine.memories[c]["dual"].vector.double().numpy() for c in sorted(fed.engine.memories)}


@pytest.mark.parametrize("dual_mean", FORMS)
def test_the_worked_numbers_in_both_forms(dual_mean):
    corrections = []
    steps = play(quadratics(**TWO), "fedspeed", 2, options=WORKED | {"dual_mean": dual_mean})
    models = []
    for w, _, fed in steps:
        models.append(float(w[0]))
        corrections.append([-0.1 * float(h[0]) for h in duals(fed).values()])
    assert models == pytest.approx([1.3498, 1.62554338], abs=1e-6)
    assert corrections[0] == pytest.approx([0.02079, -0.05577], abs=1e-6)
    assert corrections[1] == pytest.approx([0.047798289, -0.092862627], abs=1e-6)


class Alike(FedAvg):
    """FedAvg with a weight of 1 for everybody."""

    @on_client
    def train(self, client, message):
        return Update(**super().train(client, message).fields, weight=1)


def test_without_its_terms_it_is_fedavg_bit_for_bit(federate):
    common = {"clients": 6, "cohort": 4, "rounds": 4}
    options = PLAIN | {"prox": 0.0, "radius": 0.0, "epochs": 2, "batch_size": 10}
    ours = federate(method="fedspeed", options=options, **common)
    theirs = federate(method=f"{__name__}:Alike", options={"epochs": 2, "batch_size": 10}, **common)
    assert ours.model_sha256 == theirs.model_sha256


def test_the_first_round_is_fedprox_on_the_gradient_uphill():
    """Zero duals: with rho = 0 that of FedProx; with rho > 0 the gradient of a quadratic moves by a rho."""
    rng = np.random.default_rng(2)
    b, a = rng.normal(size=(3, 2)), rng.uniform(0.5, 2.0, (3, 2))
    task, local = quadratics(b, a, start=1.0), {"lr": 0.1}
    ((ours, *_),) = play(task, "fedspeed", 1, options=PLAIN | local | {"prox": 0.3, "radius": 0.0, "steps": 4, "dual_mean": "all"})
    ((prox, *_),) = play(task, "fedprox", 1, options=local | {"mu": 0.3, "epochs": 4})
    start = np.ones(2)
    # the server adds the mean dual, which is the mean change of this round
    np.testing.assert_allclose(ours - start, 2 * (prox - start), atol=1e-6)


def test_where_nobody_moves_nothing_changes():
    """At the common optimum the gradient is zero: its norm is not divided by."""
    task = quadratics([[2.0, -1.0]] * 3, start=np.array([2.0, -1.0]))
    for w, state, _ in play(task, "fedspeed", 2, options=WORKED | {"radius": 0.0}):
        np.testing.assert_array_equal(w, [2.0, -1.0])
        assert not state.duals.vector.any()
    for w, *_ in play(task, "fedspeed", 2, options=WORKED):
        assert np.isfinite(w).all()


def oracle(task, b, a, cohorts, opt, dual_mean):
    """The box of the paper with full batches."""
    x, h = np.ones(b.shape[1]), np.zeros_like(b)
    out = []
    for number, cohort in enumerate(cohorts):
        lr, ends = opt["lr"] * opt["lr_decay"] ** number, []
        for i in cohort:
            y = x.copy()
            for _ in range(opt["steps"]):
                g1 = a[i] * (y - b[i])
                up = y + opt["radius"] * g1 / (np.linalg.norm(g1) + 1e-7)
                g = (1 - opt["mix"]) * g1 + opt["mix"] * a[i] * (up - b[i]) + opt["prox"] * h[i]
                g = g * min(1.0, opt["clip"] / np.linalg.norm(g))
                y = y - lr * (g + opt["prox"] * (y - x) + opt["weight_decay"] * y)
            h[i] = h[i] + y - x
            ends.append(y)
        mean = np.mean(ends, 0)
        x = mean + (h.mean(0) if dual_mean == "all" else np.mean([h[i] for i in cohort], 0))
        out.append(x)
    return np.array(out)


@pytest.mark.parametrize("vectorize", ["off", "on"])
@pytest.mark.parametrize("dual_mean", FORMS)
def test_rounds_follow_the_formulas(dual_mean, vectorize):
    rng = np.random.default_rng(4)
    b, a = 2 * rng.normal(size=(5, 3)), rng.uniform(0.5, 2.0, (5, 3))
    opt = {"prox": 0.2, "radius": 0.3, "mix": 0.7, "lr": 0.1, "lr_decay": 0.9, "steps": 3, "weight_decay": 0.05, "clip": 1.5}
    cohorts = []
    steps = [
        (*step[:2], cohorts.append(sorted(step[2].last.arrived)))
        for step in play(
            quadratics(b, a, start=1.0),
            "fedspeed",
            5,
            cohort=3,
            options=opt | {"dual_mean": dual_mean},
            vectorize=vectorize,
            chunk=3,
        )
    ]
    state = steps[-1][1]
    assert {len(c) for c in cohorts} == {3}
    np.testing.assert_allclose([w for w, *_ in steps], oracle(None, b, a, cohorts, opt, dual_mean), atol=1e-5)
    assert bool(state.duals.vector.any()) == (dual_mean == "all")


def test_the_clip_shortens_long_gradients_alone():
    task = quadratics([[100.0]], start=0.0)

    def step(clip):
        return next(
            iter(play(task, "fedspeed", 1, options=PLAIN | {"lr": 0.1, "steps": 1, "prox": 0.0, "radius": 0.0, "clip": clip}))
        )

    assert step(None)[0][0] == pytest.approx(10.0)
    assert step(10.0)[0][0] == pytest.approx(1.0)
    assert step(1000.0)[0][0] == pytest.approx(10.0)


@pytest.mark.parametrize("dual_mean", FORMS)
def test_it_learns_also_under_masks_and_with_drop_outs(federate, dual_mean):
    common = {"method": "fedspeed", "rounds": 6, "clients": 8, "cohort": 8, "partition": "dirichlet:1"}
    common |= {"options": {"dual_mean": dual_mean, "epochs": 2}, "secure": {"gamma": 0.3, "delta": 0.3}}
    plain = federate(drop=lambda r, c, f: (c + r) % 8 == 0, **common)
    assert plain.accuracy > 0.7
    secure = federate(aggregation="secure", drop=lambda r, c, f: f.endswith("masked") and (c + r) % 8 == 0, **common)
    assert secure.accuracy == pytest.approx(plain.accuracy, abs=0.08)


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, task):
    assert_resumes(tmp_path, task, method="fedspeed", cohort=4, options={"epochs": 1})


def test_a_dual_whose_change_was_lost_is_rolled_back(task, config):
    """The server's sum is that of the clients' duals, although some replies came too late."""
    fleet = "mobile:link=3e5,least=0.9,vary=1.0,compute=1e7"
    made = config(method="fedspeed", clients=8, cohort=6, rounds=15, fleet=fleet, deadline=0.4, options={"epochs": 1})
    prepared = prepare(made, task=task)
    assert_server_sums_what_clients_keep(prepared, 15, "dual", lambda state: state.duals.vector, 1e-4)


def test_running_statistics_move_with_the_first_gradient_and_are_averaged(config):
    def model():
        return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 4))

    def statistics(method, **options):
        made = config(method=method, rounds=1, clients=4, cohort=4, options={"lr": 1e-6, "epochs": 1} | options)
        prepared = prepare(made, task=make_task(model=model))
        prepared.fed.start_round(1)
        state = prepared.method.round(prepared.fed, prepared.method.init(prepared.fed))
        return state.params.vector[state.params.layout.num_params :]

    torch.testing.assert_close(statistics("fedspeed", radius=0.5), statistics("fedavg"), atol=1e-4, rtol=0.0)


def test_the_second_gradient_takes_its_time(federate):
    common = {"method": "fedspeed", "rounds": 1, "fleet": "homogeneous:compute=1e6"}
    seconds = [federate(options={"radius": radius}, **common).total_seconds for radius in (0.0, 0.1)]
    assert seconds[1] > 1.8 * seconds[0]


def distance(seed, clients, cohort, rounds=200, method="fedspeed", **options):
    """Return the mean distance to the optimum in the last quarter of the rounds, on 5-dimensional quadratics."""
    rng = np.random.default_rng(seed)
    b, a = 1.5 * rng.normal(size=(clients, 5)), rng.uniform(0.5, 1.5, (clients, 5))
    best = (a * b).sum(0) / a.sum(0)
    task = quadratics(b, a, noise=0.1, samples=10, seed=seed)
    local = {"lr": 0.05, "batch_size": 1} | options
    steps = play(task, method, rounds, cohort=cohort, seed=seed, vectorize="on", chunk=cohort, options=local)
    return float(np.mean([np.linalg.norm(w - best) for w, *_ in steps][-rounds // 4 :]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_duals_settle_where_those_of_the_sampled_do_not(seed):
    common = {"clients": 20, "cohort": 4}
    ours = {"radius": 0.0, "clip": None, "epochs": 1} | PLAIN
    fedavg = distance(seed, method="fedavg", epochs=1, **common)
    assert distance(seed, prox=0.1, **ours, **common) < fedavg
    assert distance(seed, prox=1.0, **ours, **common) < 0.3 * fedavg
    assert distance(seed, prox=1.0, dual_mean="sampled", **ours, **common) > fedavg
