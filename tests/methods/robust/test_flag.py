"""The flag aggregator: the published worked examples, and a direct form in numpy."""

import itertools

import numpy as np
import pytest
import torch

from paceline.methods.robust.flag import Flag, _weights, flag
from paceline.run import RunConfig, prepare
from tests.methods.resuming import assert_resumes

THREE = torch.tensor([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 5]], dtype=torch.float64)


def basis(*columns):
    return torch.linalg.qr(torch.tensor(columns, dtype=torch.float64).T)[0]


def direct(g, m, start, pairs=0.0, iterations=1, eps=1e-7):
    """The algorithm box with all columns written out; returns (a, v, Y)."""
    u = [x / np.linalg.norm(x) for x in g]
    p, y = len(u), start

    def value(basis):
        return sum(np.sqrt(max(1 - np.linalg.norm(basis.T @ x) ** 2, 0)) for x in u)

    best, kept = value(y), y
    for step in range(iterations):
        columns = [(abs(1 - np.linalg.norm(y.T @ x) ** 2) + eps) ** -0.25 * x for x in u]
        if pairs:
            for i in range(p):
                for j in range(p):
                    if i != j:
                        x = u[i] - u[j]
                        w = (abs(1 - np.linalg.norm(y.T @ x) ** 2) + eps) ** -0.25
                        columns.append(w * pairs / (p * (p - 1)) * x)
        new = np.linalg.svd(np.stack(columns, 1), full_matrices=False)[0][:, :m]
        if step and value(new) >= best:
            break
        gain, best, kept, y = best - value(new), value(new), new, new
        if gain < 1e-10:
            break
    total = sum(u)
    return kept @ (kept.T @ total) / m, np.array([np.linalg.norm(kept.T @ x) ** 2 for x in u]), kept


def test_a_minority_of_one_is_ignored():
    start = basis([1, 0, 0])
    weights = _weights(start.T @ (THREE / THREE.norm(dim=1, keepdim=True)).T, 3, 0.0, 1e-7)
    np.testing.assert_allclose(weights.diag().sqrt(), [56.234133, 1.290994, 1.0], atol=1e-6)
    a, _ = flag(THREE, 1, start)
    np.testing.assert_allclose(a, [1.800152, 0.000455, 0], atol=1e-6)


def test_two_directions():
    start = basis([1, 1, 0], [0, 1, 1])
    weights = _weights(start.T @ (THREE / THREE.norm(dim=1, keepdim=True)).T, 3, 0.0, 1e-7)
    np.testing.assert_allclose(weights.diag().sqrt(), [1.316074, 2.942825, 1.316074], atol=1e-6)
    a, _ = flag(THREE, 2, start)
    np.testing.assert_allclose(a, [0.785410, 0.485410, 0.5], atol=1e-6)
    np.testing.assert_allclose(a * 2 / 3, [0.523607, 0.323607, 0.333333], atol=1e-6)


def test_full_rank_is_the_mean_of_directions():
    a, quality = flag(THREE, 3, basis([1, 0, 0], [0, 1, 0], [0, 0, 1]))
    np.testing.assert_allclose(a, [0.6, 0.2, 1 / 3], atol=1e-9)
    np.testing.assert_allclose(quality, 1, atol=1e-9)


def test_equal_updates_give_their_direction():
    g = torch.tensor([[3.0, 4.0, 0.0]], dtype=torch.float64).repeat(6, 1)
    for m in (1, 2, 5):
        a, _ = flag(g, m)
        np.testing.assert_allclose(a, np.array([0.6, 0.8, 0]) * 6 / m, atol=1e-9)


@pytest.mark.parametrize("pairs", [0.0, 2.0])
@pytest.mark.parametrize("iterations", [1, 5])
def test_gram_form_equals_direct_form(pairs, iterations):
    rng = np.random.default_rng(int(pairs) + iterations)
    g = rng.normal(size=(9, 40)) + 0.7
    start = np.linalg.qr(rng.uniform(-0.5, 0.5, size=(40, 4)))[0]
    a, v = flag(torch.from_numpy(g), 4, torch.from_numpy(start), pairs=pairs, iterations=iterations)
    expected, quality, _ = direct(g, 4, start, pairs, iterations)
    np.testing.assert_allclose(a, expected, atol=1e-8)
    np.testing.assert_allclose(v, quality, atol=1e-8)


def test_invariances():
    rng = np.random.default_rng(7)
    g, start = torch.from_numpy(rng.normal(size=(7, 20))), torch.from_numpy(np.linalg.qr(rng.normal(size=(20, 3)))[0])
    a, v = flag(g, 3, start, pairs=1.0)
    scaled, _ = flag(g * torch.from_numpy(rng.uniform(0.1, 10, (7, 1))), 3, start, pairs=1.0)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    permuted, w = flag(g[order], 3, start, pairs=1.0)
    turned, _ = flag(g, 3, start @ torch.from_numpy(np.linalg.qr(rng.normal(size=(3, 3)))[0]), pairs=1.0)
    for other in (scaled, permuted, turned):
        np.testing.assert_allclose(other, a, atol=1e-9)
    np.testing.assert_allclose(w, v[order], atol=1e-9)


def test_a_worse_iteration_is_taken_back():
    """More iterations never end at a larger objective than fewer."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        g = torch.from_numpy(rng.normal(size=(8, 30)))
        values = [float((1 - flag(g, 3, iterations=n)[1]).clamp(min=0).sqrt().sum()) for n in (1, 2, 4, 8)]
        assert all(b <= a + 1e-12 for a, b in itertools.pairwise(values))


def test_cosines_of_the_published_check():
    """200 coordinates, 15 workers, 3 of them U(0, 1): flag finds the direction that the mean loses."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        true = rng.normal(size=200)
        true /= np.linalg.norm(true)
        g = np.concatenate([true + 0.08 * rng.normal(size=(12, 200)), 5 * rng.uniform(size=(3, 200))])

        def cosine(x, true=true):
            return float(x @ true / np.linalg.norm(x))

        start = np.linalg.qr(rng.uniform(-0.5, 0.5, (200, 8)))[0]
        a, _ = flag(torch.from_numpy(g), 8, torch.from_numpy(start))
        assert cosine(a.numpy()) > 0.87
        assert cosine(g.mean(0)) < 0.4


OPTIONS = {"lr": 0.1, "server_lr": 1.0, "server_momentum": 0.0, "server_decay": 0.0, "rescale": "median"}


def test_learns_among_byzantine_clients_and_logs_quality(federate):
    common = {"clients": 10, "cohort": 10, "rounds": 8, "adversary": "random:0.2"}
    out = federate(method="flag", options=OPTIONS | {"rank": 2}, **common)
    assert out.accuracy > 0.8 > federate(method="fedavg", **common).accuracy
    from paceline.adversaries.behaviours import members

    bad = members(0.2, 10, 0)
    quality = {int(k.removeprefix("note_quality_")): v for k, v in out.history[-1].items() if "quality" in k}
    assert set(quality) == set(range(10))
    assert all(0 <= v <= 1 + 1e-9 for v in quality.values())
    assert bad


def test_faithful_server_step(federate):
    """As published the server is SGD with momentum on a direction of fixed scale."""
    out = federate(method="flag", clients=6, cohort=6, rounds=10)
    assert out.accuracy > 0.8


def test_resume_gives_the_same_bits(tmp_path, task):
    assert_resumes(tmp_path, task, method="flag", options={"lr": 0.1})


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (2, 1), (5, 3), (6, 3), (7, 4)])
def test_the_rank_is_half_of_the_cohort_rounded_up(n, rank):
    g = torch.from_numpy(np.random.default_rng(n).normal(size=(n, 12)))
    for made in (Flag(), Flag(rank=rank)):
        np.testing.assert_allclose(made.combine(g, 0), flag(g, rank)[0], atol=1e-9)
    np.testing.assert_allclose(Flag(rank=99).combine(g, 0), flag(g, n)[0], atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"rank": 2, "pairs": 0.7, "iterations": 3}, {"begin": "mean", "rescale": "median"}])
def test_whole_rounds_against_numpy(task, options):
    """SGD with momentum and decay on the aggregate of the updates; a client that does not move has no say."""
    made = {"method": "flag", "task": "blobs", "clients": 5, "cohort": 5, "rounds": 3, "options": {"lr": 0.1, **options}}
    run = prepare(RunConfig.build(made | {"vectorize": "off"}), task=task)
    state, w, v = run.method.init(run.fed), None, 0.0
    for number in (1, 2, 3):
        run.fed.start_round(number)
        replies = run.fed.each(run.method.submit, state.params, over=range(5))
        g = np.stack([replies[c].vector.double().numpy() for c in range(5)])
        run.fed.start_round(number)
        w = state.params.vector.double().numpy() if w is None else w
        state = run.method.round(run.fed, state)
        rank = options.get("rank", 3)
        start = run.method._start(run.fed, g.shape[1], rank)
        if start is None:
            a, quality = (x.numpy() for x in flag(torch.from_numpy(g), rank))
        else:
            assert torch.allclose(start.T @ start, torch.eye(rank, dtype=torch.float64), atol=1e-5)
            a, quality, _ = direct(g, rank, start.numpy(), options.get("pairs", 0.0), options.get("iterations", 1))
        if options.get("rescale") == "median":
            a = a * rank / 5 * np.sort(np.linalg.norm(g, axis=1))[2]
        v = 0.9 * v + a - 5e-4 * w
        w = w + 0.2 * v
        np.testing.assert_allclose(state.params.vector, w, atol=2e-5)
        np.testing.assert_allclose([run.fed.last.notes[f"quality_{c}"] for c in range(5)], quality, atol=1e-5)


def test_a_start_that_holds_updates_exactly():
    """One step from there is worse: it is taken all the same, and the iteration ends."""
    for seed, p, d, m in ((68, 4, 5, 2), (2908, 5, 5, 3), (2857, 3, 3, 2)):
        rng = np.random.default_rng(seed)
        g = rng.normal(size=(p, d))
        start = np.linalg.qr(np.concatenate([g[:m].T], 1))[0]
        a, v = flag(torch.from_numpy(g), m, torch.from_numpy(start), iterations=8)
        expected, quality, _ = direct(g, m, start, iterations=8)
        np.testing.assert_allclose(a, expected, atol=1e-8)
        np.testing.assert_allclose(v, quality, atol=1e-8)


def test_the_random_start_has_no_direction_of_its_own(task):
    """Centred draws: the first vector of the basis is not the mean direction, which a sum of positive draws is near."""
    run = prepare(RunConfig.build({"method": "flag", "task": "blobs", "clients": 5, "cohort": 5, "rounds": 1}), task=task)
    basis = run.method._start(run.fed, 900, 2).numpy()
    assert abs(basis[:, 0].sum()) / np.sqrt(900) < 0.15
    assert np.abs(basis.T @ basis - np.eye(2)).max() < 1e-5


def test_updates_of_zero_leave_the_decay_alone(task):
    """With a client rate of 0 no update has a direction; the server's SGD goes on with its velocity."""
    values = {"method": "flag", "task": "blobs", "clients": 5, "cohort": 5, "rounds": 2, "options": {"lr": 0.0}}
    run = prepare(RunConfig.build(values), task=task)
    w = run.fed.init_params().vector.double().numpy()
    run.go()
    v = 0.0
    for _ in range(2):
        v = 0.9 * v - 5e-4 * w
        w = w + 0.2 * v
    np.testing.assert_allclose(run.state.params.vector, w, atol=1e-6)
