"""FZooS and FedZO: queries are counted, corrections vanish where they should, surrogates add up in secret."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paceline.blocks.blackbox import directions
from paceline.blocks.surrogates import Features, GaussianProcess, rescaled
from paceline.core.errors import PlanError
from paceline.methods.blackbox.fzoos import FZooS
from paceline.run import RunConfig, prepare
from paceline.tasks.blackbox import Quadratic, quadratic
from tests.methods.resuming import assert_resumes

SMALL = {
    "steps": 3,
    "lr": 0.03,
    "features": 60,
    "candidates": 10,
    "active": 2,
    "survey_candidates": 12,
    "survey_active": 4,
    "initial": 5,
}


@pytest.fixture
def hidden():
    return quadratic(dim=4, clients=4, div=4.0)


def carry_out(task, method="fzoos", options=None, rounds=2, drop=None, **changes):
    values = {
        "method": method,
        "task": "quadratic",
        "clients": 4,
        "cohort": 4,
        "rounds": rounds,
        "options": options or SMALL,
    }
    prepared = prepare(RunConfig.build(values | changes), task=task, drop=drop)
    return prepared, prepared.go()


def test_every_query_is_counted(hidden, monkeypatch):
    asked, real = [], Quadratic.value

    def counted(self, client, x):
        asked.append(client.id)
        return real(self, client, x)

    monkeypatch.setattr(Quadratic, "value", counted)
    prepared, summary = carry_out(hidden, rounds=3, eval_every=10)
    each_round = 1 + 3 + 2 * 2 + 1 + 4
    reported = [r["note_queries"] for r in summary.history]
    assert reported == [4 * 5 + 4 * each_round * r for r in (1, 2, 3)]
    judged = 4  # F(x) at the end, by everybody: no query of the method
    assert len(asked) == reported[-1] + judged
    asked.clear()
    _, summary = carry_out(hidden, "fedzo", {"steps": 3, "directions": 6}, rounds=2, eval_every=10)
    assert summary.history[-1]["note_queries"] == 2 * 4 * 3 * 7 == len(asked) - judged
    assert prepared.state.queries == reported[-1]


def test_loss_is_the_mean_of_all_objectives(hidden):
    prepared, summary = carry_out(hidden, "fedzo", {"steps": 2, "directions": 4}, rounds=1)
    z = 20 * np.clip(prepared.state.params.vector.double().numpy(), 0, 1) - 10
    c, linear = np.split(hidden.train.x.double().numpy(), 2, 1)
    assert summary.loss == pytest.approx(float((0.1 / 4 * (c @ z**2 + linear @ z + 1)).mean()), rel=1e-6)


def test_without_correction_clients_do_not_look_at_the_common_surrogate(hidden):
    prepared, _ = carry_out(hidden, rounds=1, options={**SMALL, "correct": False})
    client = _client(prepared, round=2)
    own, nu, features = client.memory["nu"], prepared.state.nu, FZooS.build({**SMALL, "correct": False})
    assert not torch.allclose(nu.double(), own)
    moves = [features.walk(_client(prepared, 2), (prepared.state.params, other, 0)).move.vector for other in (nu, -5 * nu, None)]
    assert moves[0].equal(moves[1])
    assert moves[0].equal(moves[2])
    corrected = FZooS.build(SMALL).walk(_client(prepared, 2), (prepared.state.params, nu, 0)).move.vector
    assert not corrected.equal(moves[0])


def _client(prepared, round):
    from paceline.core.engine import Call, Each

    engine = prepared.fed.engine
    engine.here.restore({0: engine.memories[0]} if 0 in engine.memories else {})
    return engine.here.client(Call("walk", None, (0,), round, "same", Each()), 0)


def test_a_common_surrogate_that_is_ones_own_corrects_nothing(hidden):
    prepared, _ = carry_out(hidden, rounds=1)
    own = prepared.fed.engine.memories[0]["nu"]
    method, params = FZooS.build(SMALL), prepared.state.params
    with_own = method.walk(_client(prepared, 2), (params, own, 0)).move.vector
    without = method.walk(_client(prepared, 2), (params, None, 0)).move.vector
    assert with_own.equal(without)


def test_who_missed_the_last_survey_skips_the_correction(hidden):
    prepared, _ = carry_out(hidden, rounds=1)
    method, state = FZooS.build(SMALL), prepared.state
    late = method.walk(_client(prepared, 5), (state.params, state.nu, 0)).move.vector
    none = method.walk(_client(prepared, 5), (state.params, None, 0)).move.vector
    on_time = method.walk(_client(prepared, 2), (state.params, state.nu, 0)).move.vector
    assert late.equal(none)
    assert not on_time.equal(none)


def test_directions_are_orthonormal_and_come_in_sets():
    u = directions(7, 3, torch.Generator().manual_seed(0))
    assert u.shape == (7, 3)
    for group in (u[:3], u[3:6]):
        torch.testing.assert_close(group @ group.T, torch.eye(3, dtype=torch.float64))


def test_finite_differences_find_a_gradient(hidden):
    """With as many directions as coordinates, d * g is the gradient, but for the smoothing."""
    from paceline.blocks.blackbox import Queries
    from paceline.methods.blackbox.fedzo import FedZO

    prepared, _ = carry_out(hidden, "fedzo", {"steps": 1, "directions": 4}, rounds=1)
    client = _client(prepared, 1)
    x = torch.tensor([0.2, 0.7, 0.4, 0.9], dtype=torch.float64)
    g = 4 * FedZO(directions=4, smoothing=1e-6)._gradient(client, Queries(client, None), x, 1)
    c, linear = hidden.train.x[client.train.index[0]].double().split(4)
    torch.testing.assert_close(g, 0.1 / 4 * 20 * (2 * c * (20 * x - 10) + linear), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("correction", ["none", "prox", "diff", "scaf"])
def test_corrections_of_finite_differences(correction):
    hidden = quadratic(dim=4, clients=4, div=0.5)
    options = {"steps": 4, "lr": 0.03, "directions": 4, "correction": correction}
    prepared, summary = carry_out(hidden, "fedzo", options, rounds=4)
    losses = [r["loss"] for r in summary.history]
    assert losses[-1] < losses[0]
    each = 4 * 4 * 5 + (4 * 5 if correction == "diff" else 0)
    assert prepared.state.queries == 4 * each
    assert (0 in prepared.fed.engine.memories) == (correction in ("diff", "scaf"))


def test_surrogates_add_up_in_secret_though_a_client_drops_out():
    def drop(round, client, function):
        return round == 2 and client == 3 and function in ("walk", "survey", "secagg.masked")

    task = quadratic(dim=4, clients=6, div=4.0)
    common = {"rounds": 3, "drop": drop, "clients": 6, "cohort": 6, "secure": {"threshold": 4, "gamma": 0.05, "bits": 20}}
    _, plain = carry_out(task, **common)
    arithmetic, masked = (carry_out(task, aggregation=name, **common) for name in ("secure-arithmetic", "secure"))
    assert masked[1].model_sha256 == arithmetic[1].model_sha256
    assert masked[0].state.nu.equal(arithmetic[0].state.nu)
    assert masked[0].state.queries == arithmetic[0].state.queries
    assert masked[1].history[0]["loss"] == pytest.approx(plain.history[0]["loss"], rel=0.02)


def test_resumes_with_the_same_bits(tmp_path, hidden):
    assert_resumes(tmp_path, hidden, method="fzoos", options=SMALL, clients=4, cohort=3)


def test_scaf_resumes_with_the_same_bits(tmp_path, hidden):
    options = {"steps": 2, "directions": 4, "correction": "scaf"}
    assert_resumes(tmp_path, hidden, method="fedzo", options=options, clients=4, cohort=3)


def test_surrogates_need_fewer_queries_than_differences():
    """The published comparison in small: a lower F(x) with fewer queries."""
    task = quadratic(dim=10, clients=4, div=4.0, seed=0)
    sizes = {"features": 400, "candidates": 40, "active": 5, "survey_candidates": 60, "survey_active": 15}
    ours = carry_out(task, options={"steps": 5, "lr": 0.03, **sizes}, rounds=5, eval_every=5)[1]
    theirs = carry_out(task, "fedzo", {"steps": 5, "lr": 0.03, "directions": 10}, rounds=5, eval_every=5)[1]
    assert ours.loss < theirs.loss
    assert ours.history[-1]["note_queries"] < theirs.history[-1]["note_queries"]


def test_an_ordinary_task_is_a_black_box_of_its_loss(task):
    _, summary = carry_out(task, "fedzo", {"steps": 5, "directions": 4, "lr": 0.05}, rounds=4)
    assert summary.history[-1]["loss"] < summary.history[0]["loss"]
    assert summary.accuracy > 0.25
    with pytest.raises(PlanError, match="no global model"):
        carry_out(task, evaluation="central")


# -- whole rounds against numpy --------------------------------------------------------------------------
def adam(lr, b1=0.9, b2=0.999, eps=1e-8):
    """Return a function that maps the gradient of each step to the displacement."""
    m, v, t = 0.0, 0.0, 0

    def step(g):
        nonlocal m, v, t
        m, v, t = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2, t + 1
        return -lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)

    return step


@pytest.fixture
def asked(monkeypatch):
    """Every query (client, x, value), in order."""
    seen, real = [], Quadratic.value

    def recorded(self, client, x):
        seen.append((client.id, x.double().numpy().copy(), real(self, client, x)))
        return seen[-1][2]

    monkeypatch.setattr(Quadratic, "value", recorded)
    return seen


def difference(queries, mu):
    """Return (x, mean of the rises along the directions, the directions) of one estimate's queries."""
    (x, here), *others = queries
    along = [(p - x) / mu for p, _ in others]
    return x, np.mean([(f - here) / mu * u for u, (_, f) in zip(along, others, strict=True)], axis=0), np.stack(along)


@pytest.mark.parametrize("correction", ["none", "prox", "diff", "scaf"])
def test_finite_differences_against_numpy(hidden, asked, correction):
    """Adam along estimates from the queries that were made; each estimate has directions of its own."""
    q, steps, lr, mu, rho, rounds = 3, 3, 0.02, 0.05, 0.7, 3
    options = {"steps": steps, "lr": lr, "directions": q, "smoothing": mu, "rho": rho, "correction": correction}
    prepared, _ = carry_out(hidden, "fedzo", options, rounds=rounds, eval_every=10)
    point, drawn = prepared.fed.init_params().vector.double().numpy(), []
    own, common, left = {c: np.zeros(4) for c in range(4)}, np.zeros(4), list(asked)

    def estimate(client):
        group, left[: q + 1] = left[: q + 1], []
        assert {c for c, _, _ in group} == {client}
        x, g, along = difference([(x, f) for _, x, f in group], mu)
        np.testing.assert_allclose(along @ along.T, np.eye(q), atol=1e-6)
        drawn.append(along)
        return x, g

    for _ in range(rounds):
        if correction == "diff":
            own = {c: estimate(c)[1] for c in range(4)}
            common = np.mean(list(own.values()), axis=0)
        ends, means = [], {}
        for c in range(4):
            x, move, found = point, adam(lr), []
            for _ in range(steps):
                at, g = estimate(c)
                np.testing.assert_allclose(at, x, atol=2e-6)
                found.append(g)
                if correction == "prox":
                    g = g + rho * (x - point)
                elif correction != "none":
                    g = g + common - own[c]
                x = x + move(g)
            ends.append(x)
            means[c] = np.mean(found, axis=0)
        if correction == "scaf":
            own, common = means, np.mean(list(means.values()), axis=0)
        point = np.mean(ends, axis=0)
    np.testing.assert_allclose(prepared.state.params.vector, point, atol=1e-5)
    assert len(left) == 4  # the evaluation
    assert all(np.abs(a - b).max() > 0.01 for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("kernel", ["rbf", "matern"])
def test_surrogates_against_numpy(hidden, asked, kernel):
    """Adam along the process's gradient with the correction; where the queries lie, and that the uncertain ones are chosen."""
    radius, candidates, survey_candidates, survey_active = 0.05, 30, 40, 40 if kernel == "rbf" else 4
    sizes = {"fitted": 12, "surveyed": 9, "candidates": candidates, "active": 2, "initial": 20, "features": 80}
    options = {
        "steps": 3,
        "lr": 0.03,
        "kernel": kernel,
        "radius": radius,
        "survey_candidates": survey_candidates,
        "survey_active": survey_active,
    }
    prepared, _ = carry_out(hidden, rounds=3, options=options | sizes, eval_every=10)
    point, nus, left = prepared.fed.init_params().vector.double().numpy(), {}, list(asked)
    known = {c: [] for c in range(4)}
    features, length = Features(80, 4, 1.0, 0), 1.0  # sqrt(4) / 2

    def take(client, count):
        group, left[:count] = left[:count], []
        assert {c for c, _, _ in group} <= {client}
        known[client] += [(x, f) for _, x, f in group]
        return np.array([x for _, x, _ in group])

    def process(client, x, most):
        points, values = (np.array(part) for part in zip(*known[client], strict=True))
        near = np.argsort(((points - x) ** 2).sum(1), kind="stable")[:most] if len(points) > most else slice(None)
        points, values = points[near], values[near]
        spread = values.max() - values.min()
        return torch.from_numpy(points), torch.from_numpy((values - values.min()) / spread), spread

    common = None
    for number in (1, 2, 3):
        ends = {}
        for c in range(4):
            if number == 1:
                box = take(c, 20)
                assert np.abs(box - point).max() <= radius
                assert np.abs(box - point).max(0).min() > 0.7 * radius
            x, move = point, adam(0.03)
            np.testing.assert_allclose(take(c, 1)[0], x, atol=1e-6)
            for t in range(3):
                points, values, spread = process(c, x, 12)
                g = spread * GaussianProcess(points, values, length, 1e-6, kernel).gradient(torch.from_numpy(x)).numpy()
                if common is not None:
                    g = g + (features.gradient(common - nus[c], torch.from_numpy(x)).numpy()) / (t + 1)
                x = x + move(g)
                np.testing.assert_allclose(take(c, 1)[0], x, atol=1e-5)
                if t < 2:
                    active = take(c, 2)
                    assert 0.3 * radius < np.abs(active - x).max() <= radius * 1.001
            ends[c] = x
        point = np.mean(list(ends.values()), axis=0)
        nus = {}
        for c in range(4):
            reach = np.abs(point - ends[c]).mean() / 2
            np.testing.assert_allclose(take(c, 1)[0], point, atol=1e-5)
            surveyed = take(c, survey_active)
            assert (0.9 if survey_active == survey_candidates else 0.3) * reach < np.abs(surveyed - point).max() <= reach * 1.001
            points, values, spread = process(c, point, 9)
            nus[c] = torch.from_numpy((spread * features.fit(points, values, 1e-5)).float().double().numpy())
        common = sum(nus.values()) / 4
        torch.testing.assert_close(common, prepared.state.nu.double(), rtol=1e-3, atol=1e-3) if number == 3 else None
    np.testing.assert_allclose(prepared.state.params.vector, point, atol=1e-4)
    assert len(left) == 4  # the evaluation


def test_queries_are_made_where_the_gradient_is_most_uncertain():
    rng = torch.Generator().manual_seed(0)
    diary = SimpleNamespace(points=torch.rand(15, 3, generator=rng).double(), values=torch.rand(15, generator=rng).double())
    drawn, x = torch.rand(40, 3, generator=rng).double(), torch.full((3,), 0.5, dtype=torch.float64)
    method = FZooS(fitted=10, length=0.7)
    near = torch.argsort((diary.points - x).square().sum(1))[:10]
    variance = GaussianProcess(diary.points[near], rescaled(diary.values[near])[0], 0.7, 1e-6).uncertainty(drawn)
    chosen = method._unsure(diary, x, drawn, 6)
    torch.testing.assert_close(chosen, drawn[variance.argsort(descending=True)[:6]])


@pytest.mark.parametrize(("dim", "length"), [(4, 1.0), (9, 1.5), (2, 0.5 * 2**0.5)])
def test_the_length_scale_grows_with_the_root_of_the_dimension(dim, length):
    assert FZooS()._length(dim) == pytest.approx(length)
    assert FZooS(length=0.3)._length(dim) == 0.3
