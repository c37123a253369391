"""FedStale, published and from sums, and FedVARP and MIFA: the worked numbers, that both forms agree, and what beta does."""

import itertools
from typing import ClassVar

import numpy as np
import pytest
import torch

from paceline.core.errors import PlanError
from paceline.methods.participation.fedstale import FedStale
from paceline.methods.participation.fedstaletable import FedStaleTable, stale_step
from paceline.run import prepare
from tests.conftest import make_task
from tests.methods.quadratics import play, quadratics
from tests.methods.resuming import assert_resumes

ALPHA = (0.5, 0.25, 0.25)
P = (1.0, 0.5, 0.5)
DELTA = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
OLD = np.array([[0.5, 0.5], [0.0, 0.0], [2.0, -2.0]])
FORMS = ["fedstale", "fedstaletable"]


def step(came, beta, deltas=DELTA, old=OLD, p=P):
    fresh = {c: (ALPHA[c], deltas[c]) for c in came}
    return stale_step(fresh, {c: (ALPHA[c], old[c]) for c in range(3)}, {c: 1 / p[c] for c in came}, beta, np.zeros(2))


@pytest.mark.parametrize(("beta", "expected"), [(0.0, (0.5, 1.0)), (0.5, (0.75, 0.75)), (1.0, (1.0, 0.5))])
def test_the_worked_step(beta, expected):
    np.testing.assert_allclose(step((0, 1), beta), expected)


def test_without_beta_what_is_stale_is_not_looked_at():
    np.testing.assert_array_equal(step((0, 1), 0.0, old=np.full((3, 2), np.nan)), (0.5, 1.0))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_where_all_come_for_sure_it_is_fedavg(beta):
    expected = (np.array(ALPHA)[:, None] * DELTA).sum(0)
    np.testing.assert_array_equal(step((0, 1, 2), beta, p=(1.0, 1.0, 1.0)), expected)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_mean_over_all_patterns_is_the_full_step(beta):
    p, total = (0.9, 0.5, 0.2), np.zeros(2)
    deltas = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, -1.0]])
    for pattern in itertools.product([0, 1], repeat=3):
        chance = np.prod([q if came else 1 - q for q, came in zip(p, pattern, strict=True)])
        total += chance * step([c for c in range(3) if pattern[c]], beta, deltas=deltas, p=p)
    np.testing.assert_allclose(total, (np.array(ALPHA)[:, None] * deltas).sum(0), atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_with_everybody_in_every_round_beta_does_not_matter(form):
    """The published form ends with the same bits; what the sums cancel is as exact as single precision."""
    task = quadratics([[1.0], [2.0], [6.0]], sizes=[1, 2, 3])
    full = lambda beta: [float(w[0]) for w, *_ in play(task, form, 5, options={"lr": 0.1, "beta": beta})]  # noqa: E731
    plain = [float(w[0]) for w, *_ in play(task, "fedavg", 5, options={"lr": 0.1})]
    assert full(0.0) == pytest.approx(plain, abs=1e-6)
    for beta in (0.3, 1.0):
        assert full(beta) == (full(0.0) if form == "fedstaletable" else pytest.approx(full(0.0), abs=1e-6))


def test_a_reply_that_is_lost_at_the_count_leaves_a_scale(config):
    """The mean number of samples is that of the clients that told theirs."""
    made = config(method="fedstale", clients=6, cohort=6, rounds=1, partition="quantity:1")
    prepared = prepare(made, task=make_task(), drop=lambda r, c, f: f == "count" and c < 2)
    prepared.fed.start_round(1)
    state = prepared.method.round(prepared.fed, prepared.method.init(prepared.fed))
    assert state.samples == pytest.approx(np.mean([len(prepared.fed.engine.setup.split(c)[0]) for c in range(2, 6)]))


class Told:
    """Clients whose updates are told in advance, and whose rates are known."""

    updates: ClassVar = {1: OLD, 2: DELTA}

    def sgd(self, client, start):
        local = super().sgd(client, start)
        return local._replace(params=start + torch.tensor(self.updates[client.round][client.id], dtype=torch.float32))

    @property
    def known_rates(self):
        return True


class Sums(Told, FedStale):
    pass


class Table(Told, FedStaleTable):
    pass


@pytest.mark.parametrize(("beta", "expected"), [(0.0, (0.5, 1.0)), (0.5, (0.75, 0.75)), (1.0, (1.0, 0.5))])
@pytest.mark.parametrize("form", ["Sums", "Table"])
def test_the_worked_step_by_both_forms(tmp_path, form, beta, expected):
    """The memories are those of round 1, in which all came; then clients 0 and 1 do. n = 2, 1, 1."""
    trace = tmp_path / "trace.csv"
    trace.write_text("client,first,last\n0,1,9\n1,1,2\n2,1,1\n")
    task = quadratics(np.zeros((3, 2)), sizes=[2, 1, 1])
    options = {"beta": beta, "rates": "known"}
    got = list(play(task, f"{__name__}:{form}", 2, participation=f"trace:{trace}", options=options, meet=rated))
    np.testing.assert_allclose(got[1][0] - got[0][0], expected, atol=1e-6)


def rated(fed):
    """Let the known rates be those of the worked example."""
    object.__setattr__(fed.fleet, "rate", lambda client: P[client])


@pytest.mark.parametrize("form", FORMS)
def test_the_first_round_is_the_same_for_every_beta(federate, form):
    assert len({federate(method=form, rounds=1, options={"beta": b}).model_sha256 for b in (0.0, 0.5, 1.0)}) == 1


@pytest.mark.parametrize("rates", ["estimated", "known"])
@pytest.mark.parametrize(("beta", "cutoff", "importance"), [(0.0, None, "samples"), (0.6, 4, "samples"), (1.0, None, "uniform")])
def test_both_forms_make_the_same_steps(rates, beta, cutoff, importance):
    """Also where clients come and go, and some replies are lost."""
    rng = np.random.default_rng(2)
    b, a = rng.normal(size=(7, 3)), rng.uniform(0.5, 2.0, (7, 3))
    task = quadratics(b, a, noise=0.5, sizes=[1, 2, 3, 4, 5, 6, 7])
    options = {"lr": 0.05, "epochs": 2, "batch_size": 2, "beta": beta, "rates": rates, "cutoff": cutoff, "importance": importance}
    common = {
        "participation": "bernoulli:0.3-1",
        "seed": 4,
        "options": options,
        "drop": lambda r, c, f: (r + c) % 6 == 0 and f != "count",
    }
    one, other = ([w for w, *_ in play(task, form, 25, **common)] for form in FORMS)
    np.testing.assert_allclose(one, other, atol=2e-5)
    assert np.abs(one[-1] - one[0]).max() > 0.1


def test_an_update_that_comes_too_late_is_not_remembered(config):
    """The server's sum is that of the clients' last updates that count, each client's by its importance."""
    fleet = "mobile:link=3e5,least=0.9,vary=1.0,compute=1e8"
    options = {"lr": 0.1, "beta": 0.7}
    made = config(
        method="fedstale", clients=8, cohort=8, rounds=15, fleet=fleet, deadline=0.4, partition="quantity:1", options=options
    )
    prepared = prepare(made, task=make_task())
    state, late = prepared.method.init(prepared.fed), 0
    sizes = [len(prepared.fed.engine.setup.split(c)[0]) for c in range(8)]
    for number in range(1, 16):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
        late += sum(why == "late" for why in prepared.fed.last.dropped.values())
        prepared.fed.engine.commit()
        total = torch.zeros_like(state.stale.vector)
        for client in prepared.fed.engine.memories:
            memory = prepared.fed.engine.memories[client]
            total += sizes[client] / state.samples * memory["update"].vector if "update" in memory else 0.0
        assert (state.stale.vector - total).abs().max() < 1e-4
    assert late > 10
    assert total.abs().max() > 0.01


def oracle(b, a, n, came, beta, lr, steps, p):
    alpha, x, h = np.array(n) / sum(n), np.zeros(b.shape[1]), np.zeros_like(b)
    out = []
    for cohort in came:
        fresh, stale = np.zeros_like(x), (alpha[:, None] * h).sum(0)
        deltas = {}
        for i in cohort:
            y = x.copy()
            for _ in range(steps):
                y = y - lr * a[i] * (y - b[i])
            deltas[i] = y - x
            fresh += alpha[i] / p[i] * deltas[i]
            stale -= alpha[i] / p[i] * h[i]
        if cohort:
            x = x + fresh + beta * stale
        for i, delta in deltas.items():
            h[i] = delta
        out.append(x)
    return np.array(out)


@pytest.mark.parametrize(("form", "vectorize"), [("fedstale", "off"), ("fedstale", "on"), ("fedstaletable", "off")])
def test_rounds_follow_the_formulas(form, vectorize):
    rng = np.random.default_rng(5)
    b, a, n = rng.normal(size=(6, 2)), rng.uniform(0.5, 2.0, (6, 2)), [1, 2, 3, 1, 2, 3]
    options = {"lr": 0.05, "epochs": 3, "beta": 0.4, "rates": "known", "batch_size": 10}
    changes = {"vectorize": vectorize, "chunk": 6} if vectorize == "on" else {}
    common = {"participation": "bernoulli:1/0.4", "seed": 3, "options": options, **changes}
    got, came = [], []
    for w, _, fed in play(quadratics(b, a, sizes=n), form, 12, **common):
        got.append(w)
        came.append(fed.available())
    assert min(map(len, came)) < 6
    np.testing.assert_allclose(got, oracle(b, a, n, came, 0.4, 0.05, 3, [1.0] * 3 + [0.4] * 3), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("empty", ["skip", "step"])
def test_a_round_without_anybody(federate, tmp_path, form, empty):
    trace = tmp_path / "trace.csv"
    trace.write_text("client,first,last\n" + "".join(f"{c},1,2\n" for c in range(6)))
    common = {
        "method": form,
        "rounds": 3,
        "participation": f"trace:{trace},length=3",
        "options": {"empty": empty, "beta": 0.5, "lr": 0.1},
    }
    summary = federate(**common)
    assert [r["round"] for r in summary.history if r.get("skipped")] == ([3] if empty == "skip" else [])
    before = federate(**common | {"rounds": 2})
    assert (summary.model_sha256 == before.model_sha256) == (empty == "skip")


def test_an_empty_round_steps_along_what_is_stale(tmp_path):
    """From w = 0 to the mean update, then half of it once more."""
    trace = tmp_path / "trace.csv"
    trace.write_text("client,first,last\n0,1,1\n1,1,1\n")
    task, options = quadratics([[1.0], [3.0]]), {"lr": 0.1, "beta": 0.5, "empty": "step"}
    for form in FORMS:
        models = [float(w[0]) for w, *_ in steps_of(task, form, 2, participation=f"trace:{trace},length=2", options=options)]
        assert models == pytest.approx([0.2, 0.3], abs=1e-6)


def steps_of(task, method, rounds, **changes):
    """As `play`, with the rounds in which nobody is there."""
    from paceline.run import RunConfig

    values = {"method": method, "task": "q", "partition": "natural", "clients": 2, "cohort": 2, "rounds": rounds}
    prepared = prepare(RunConfig.build(values | {"vectorize": "off"} | changes), task=task)
    state = prepared.method.init(prepared.fed)
    for number in range(1, rounds + 1):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
        prepared.fed.engine.commit()
        yield state.params.vector.numpy(), state, prepared.fed


# -- FedVARP and MIFA ----------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["fedvarp", "mifa"])
def test_averages_of_last_updates(method):
    rng = np.random.default_rng(6)
    b, a = rng.normal(size=(5, 2)), rng.uniform(0.5, 2.0, (5, 2))
    x, m, expected, got = np.zeros(2), np.zeros((5, 2)), [], []
    options = {"lr": 0.1, "steps": 2, "server_lr": 0.7}
    for w, _, fed in play(quadratics(b, a), method, 10, participation="bernoulli:0.5", seed=2, options=options):
        cohort = fed.available()
        delta = {}
        for i in cohort:
            y = x.copy()
            for _ in range(2):
                y = y - 0.1 * a[i] * (y - b[i])
            delta[i] = y - x
        if cohort:
            varp = np.mean([delta[i] - m[i] for i in cohort], 0) + m.mean(0)
            for i in cohort:
                m[i] = delta[i]
            x = x + 0.7 * (varp if method == "fedvarp" else m.mean(0))
        expected.append(x)
        got.append(w)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_with_equal_rates_and_everybody_fedvarp_is_fedstale_with_beta_one():
    task, options = (
        quadratics([[1.0], [2.0], [6.0]]),
        {"lr": 0.1, "steps": 2, "epochs": None, "batch_size": 16, "importance": "uniform"},
    )
    varp = [float(w[0]) for w, *_ in play(task, "fedvarp", 5, options=options)]
    stale = [float(w[0]) for w, *_ in play(task, "fedstale", 5, options=options | {"beta": 1.0})]
    assert varp == pytest.approx(stale, abs=1e-6)


# -- in a federation -----------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["fedstale", "fedvarp", "mifa"])
def test_they_learn_also_under_masks_and_with_drop_outs(federate, method):
    options = {"lr": 0.1, "batch_size": 10, "epochs": 1}
    common = {"method": method, "rounds": 10, "clients": 10, "cohort": 10, "partition": "dirichlet:1", "options": options}
    common |= {"secure": {"gamma": 0.2, "delta": 0.2}, "participation": "bernoulli:0.5-1", "seed": 1}
    plain = federate(drop=lambda r, c, f: f == "train" and (c + r) % 10 == 0, **common)
    assert plain.accuracy > 0.7
    secure = federate(aggregation="secure", drop=lambda r, c, f: r > 1 and f.endswith("masked") and (c + r) % 10 == 0, **common)
    assert secure.accuracy == pytest.approx(plain.accuracy, abs=0.08)


def test_the_published_form_is_refused_where_replies_are_hidden(task, config):
    with pytest.raises(PlanError, match="use fedstale"):
        prepare(config(method="fedstaletable", aggregation="secure"), task=task)


@pytest.mark.parametrize("method", [*FORMS, "fedvarp", "mifa"])
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, task, method):
    assert_resumes(tmp_path, task, method=method, cohort=6, participation="bernoulli:0.6", options={"lr": 0.1})


# -- what beta is for ----------------------------------------------------------------------------------
def error(seed, beta, spread, p, rounds=500):
    """Return the tail's mean squared distance to the optimum; half of 24 clients come with probability p."""
    rng = np.random.default_rng(seed)
    b = spread * rng.normal(size=(24, 3))
    task = quadratics(b, start=b.mean(0), noise=0.5, samples=10, seed=seed)
    options = {"lr": 0.02, "steps": 5, "epochs": None, "batch_size": 1, "beta": beta, "rates": "known", "importance": "uniform"}
    common = {"participation": f"bernoulli:1/{p}", "seed": seed, "options": options, "vectorize": "on", "chunk": 24}
    steps = play(task, "fedstale", rounds, **common)
    return float(np.mean([((w - b.mean(0)) ** 2).sum() for w, *_ in steps][-rounds // 2 :]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stale_updates_help_where_clients_are_unlike_and_hurt_where_they_are_alike(seed):
    unlike = [error(seed, beta, spread=3.0, p=0.5) for beta in (0.0, 0.5, 1.0)]
    assert unlike[0] > unlike[1] > unlike[2]
    alike = [error(seed, beta, spread=0.1, p=0.1, rounds=1500) for beta in (0.0, 0.2, 1.0)]
    assert alike[0] < alike[2]
    assert alike[1] < 1.05 * alike[0]
