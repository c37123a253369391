"""The baselines against definitions written out in numpy, and against attacks."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from paceline.core.errors import NonFiniteError, PlanError, QuorumError, SumOverflowError
from paceline.core.method import on_client
from paceline.methods.robust.robust import (
    Krum,
    Median,
    MultiKrum,
    bulyan,
    geometric_median,
    krum_scores,
    median,
    nearest_mean,
    trimmed_mean,
)
from paceline.registry import find_method
from paceline.run import prepare

RULES = ["median", "trimmedmean", "geometricmedian", "krum", "multikrum", "bulyan", "meamed", "phocas", "flag"]


@pytest.fixture(params=[0, 1, 2])
def g(request):
    return np.random.default_rng(request.param).normal(size=(11, 6))


def scores(g, f):
    out = []
    for i in range(len(g)):
        far = sorted(np.sum((g[i] - g[j]) ** 2) for j in range(len(g)) if j != i)
        out.append(sum(far[: max(len(g) - f - 2, 1)]))
    return np.array(out)


def around(values, centre, count):
    return np.mean(sorted(values, key=lambda v: abs(v - centre))[:count])


def test_median_and_trimmed_mean(g):
    for n in (10, 11):
        np.testing.assert_allclose(median(torch.from_numpy(g[:n])), np.median(g[:n], axis=0))
    expected = [np.mean(sorted(column)[2:-2]) for column in g.T]
    np.testing.assert_allclose(trimmed_mean(torch.from_numpy(g), 2), expected)


def test_means_around_a_centre(g):
    expected = [around(column, np.median(column), 8) for column in g.T]
    np.testing.assert_allclose(nearest_mean(torch.from_numpy(g), median(torch.from_numpy(g)), 8), expected)


def test_geometric_median_is_the_least_sum_of_distances(g):
    z = geometric_median(torch.from_numpy(g)).numpy()

    def total(point):
        return np.linalg.norm(g - point, axis=1).sum()

    steps = [s * e for s in (-1e-3, 1e-3) for e in np.eye(6)]
    assert all(total(z) <= total(z + step) + 1e-9 for step in steps)
    corner = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [9.0, 1.0]], dtype=torch.float64)
    np.testing.assert_allclose(geometric_median(corner), [0, 0], atol=1e-4)


@pytest.mark.parametrize("far", [1e3, 1e20, 1e30])
@pytest.mark.parametrize("share", [2, 4])
def test_geometric_median_of_colluding_outliers(far, share):
    """As many as 4 of 10 at one place: the pull of each is a unit vector, so the honest ones hold the median near them."""
    rows = np.random.default_rng(1).normal(size=(10, 30))
    rows[:share] = far
    honest = rows[share:]
    z = geometric_median(torch.from_numpy(rows)).numpy()
    assert np.linalg.norm(z - honest.mean(0)) < np.linalg.norm(honest - honest.mean(0), axis=1).max()
    pulls = (rows - z) / np.linalg.norm(rows - z, axis=1, keepdims=True)
    np.testing.assert_allclose(pulls.sum(0), 0, atol=1e-5)  # no direction shortens the sum of distances


def test_geometric_median_leaves_a_row_that_is_only_the_median_of_each_coordinate():
    """(0, 0) is a row, and where the search starts; the least sum of distances is elsewhere, or there if rows repeat it."""
    rows = torch.tensor([[0.0, 0.0], [5.0, 1.0], [1.0, 5.0], [-1.0, -0.1], [-0.1, -1.0]], dtype=torch.float64)
    z = geometric_median(rows)

    def total(point):
        return float(torch.linalg.vector_norm(rows - point, dim=1).sum())

    around = [
        z + s * torch.tensor(e, dtype=torch.float64) for s in (1e-3, 1e-2) for e in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1))
    ]
    assert all(total(z) <= total(point) + 1e-9 for point in [*around, *rows])
    held = torch.cat([rows, rows.new_zeros(3, 2)])
    assert geometric_median(held).tolist() == [0.0, 0.0]


def test_geometric_median_does_not_depend_on_where_zero_is(g):
    rows = torch.from_numpy(g)
    for shift in (1e3, -1e6):
        np.testing.assert_allclose(geometric_median(rows + shift) - shift, geometric_median(rows), atol=1e-5)
    for scale in (1e-12, 1e12):
        np.testing.assert_allclose(geometric_median(rows * scale) / scale, geometric_median(rows), atol=1e-5)


def test_the_geometric_median_of_values_near_the_end_of_float64():
    """The inverse of a distance of 1e-310 is infinite."""
    z = geometric_median(torch.tensor([[-1e-310], [0.0], [1e-310], [3e-310]], dtype=torch.float64))
    assert 0.0 <= float(z) <= 1e-310


def test_ties_go_to_the_first_rows():
    """In cohorts above 16, too, from which on an unstable sort permutes equal values."""
    same = torch.eye(40, dtype=torch.float64)  # all distances are equal
    assert MultiKrum().combine(same, 8).tolist() == [1 / 32] * 32 + [0.0] * 8
    assert Krum().combine(same, 8).tolist() == same[0].tolist()
    signs = torch.tensor([[1.0]] * 20 + [[-1.0]] * 20, dtype=torch.float64)
    assert nearest_mean(signs, torch.zeros(1, dtype=torch.float64), 20).tolist() == [1.0]


def test_krum(g):
    square = torch.cdist(torch.from_numpy(g), torch.from_numpy(g)) ** 2
    np.testing.assert_allclose(krum_scores(square, 2), scores(g, 2), rtol=1e-9)
    made = find_method("krum")(byzantine=2 / 11)
    np.testing.assert_allclose(made.combine(torch.from_numpy(g), 2), g[scores(g, 2).argmin()])
    best = np.argsort(scores(g, 2))[:9]
    np.testing.assert_allclose(find_method("multikrum")().combine(torch.from_numpy(g), 2), g[best].mean(0))


def test_bulyan(g):
    left, picked = list(range(11)), []
    while len(picked) < 7:
        best = left[int(scores(g[left], 2).argmin())]
        picked.append(best)
        left.remove(best)
    chosen = g[picked]
    expected = [around(column, np.median(column), 3) for column in chosen.T]
    np.testing.assert_allclose(bulyan(torch.from_numpy(g), 2), expected)


@pytest.mark.parametrize("name", RULES)
def test_order_does_not_matter_and_agreement_is_kept(g, name):
    method = find_method(name)()
    data = torch.from_numpy(g)
    for order in itertools.islice(itertools.permutations(range(11)), 1000, 1003):
        np.testing.assert_allclose(method.combine(data[list(order)], 2), method.combine(data, 2), atol=1e-9)
    if name != "flag":
        same = torch.ones(11, 4, dtype=torch.float64)
        np.testing.assert_allclose(method.combine(same, 2), 1)


@pytest.mark.parametrize("name", RULES)
def test_learns_where_the_mean_does_not(federate, name):
    common = {"clients": 11, "cohort": 11, "rounds": 10, "adversary": "signflip:0.2,scale=10", "options": {"lr": 0.1}}
    rescale = {"rescale": "median", "server_lr": 1.0, "server_momentum": 0.0} if name == "flag" else {}
    own = common | {"options": common["options"] | rescale}
    assert federate(method=name, **own).accuracy > 0.75
    with pytest.raises(SumOverflowError):  # nine forth and twenty back: the mean runs away
        federate(method="fedavg", **common)


def test_too_small_cohorts_are_refused_at_the_start(config, task):
    with pytest.raises(PlanError, match="at least 7"):
        prepare(config(method="bulyan", options={"byzantine": 0.25}), task=task)


def test_too_many_drop_outs_lose_the_quorum(federate):
    with pytest.raises(QuorumError, match="too few for krum"):
        federate(method="krum", options={"byzantine": 0.2}, drop=lambda r, c, f: c > 1, rounds=1)


@dataclass(frozen=True)
class Broken(Median):
    """A median among whose clients some send NaN."""

    nan: int = 1

    @on_client(each=True)
    def submit(self, client, message):
        return message * float("nan") if client.id < self.nan else message.zeros() + float(client.id)


@pytest.mark.parametrize("nan", [1, 6])
def test_updates_that_are_not_finite_are_refused(config, task, nan):
    prepared = prepare(config(cohort=6, method=f"{__name__}:Broken", options={"nan": nan}), task=task)
    state = prepared.method.init(prepared.fed)
    prepared.fed.start_round(1)
    if nan == 6:
        with pytest.raises(NonFiniteError, match="none of 6"):
            prepared.method.round(prepared.fed, state)
        return
    after = prepared.method.round(prepared.fed, state)
    assert torch.allclose((after.params - state.params).vector, torch.tensor(3.0), atol=1e-6)
    assert prepared.fed.last.notes["refused"] == 1


def test_secure_aggregation_is_refused(config, task):
    with pytest.raises(PlanError, match="submit"):
        prepare(config(method="median", aggregation="secure"), task=task)


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [("median", 2, 1), ("trimmedmean", 2, 1), ("geometricmedian", 2, 1), ("krum", 2, 3), ("multikrum", 2, 3), ("bulyan", 4, 3)],
)
def test_the_smallest_cohort_of_each_rule(config, task, name, a, b):
    """n >= a f + b, at the start and in every round."""
    for f in (1, 2):
        n = a * f + b
        fits = prepare(config(method=name, clients=n, cohort=n, options={"byzantine": f / n}), task=task)
        assert fits.method.faults(n) == f
        with pytest.raises(PlanError, match=f"at least {n} clients, not {n - 1}"):
            prepare(config(method=name, clients=n, cohort=n - 1, options={"byzantine": f / (n - 1)}), task=task)
        fits.fed.start_round(1)
        fits.method.round(fits.fed, fits.method.init(fits.fed))


def test_a_row_at_the_start_is_left_for_a_better_place():
    """(0, 0) is the median of each coordinate and a row; the unit vectors of the others pull it away with a force of 2.8."""
    rows = torch.tensor([[0, 0], [10, -0.1], [-0.1, 10], [9, -0.1], [-0.1, 9]], dtype=torch.float64)
    z = geometric_median(rows)
    assert torch.linalg.vector_norm(rows - z, dim=1).sum() < torch.linalg.vector_norm(rows, dim=1).sum() - 0.1


def test_the_geometric_median_of_rows_that_balance():
    """No row is there and the pulls cancel exactly: the search ends where it starts."""
    for rows in ([[1.0, 0.0], [-1.0, 0.0]], [[1.0, 2.0], [-1.0, -2.0], [2.0, -1.0], [-2.0, 1.0]]):
        assert geometric_median(torch.tensor(rows, dtype=torch.float64)).tolist() == [0.0, 0.0]


@dataclass(frozen=True)
class Idle(Median):
    """A median among whose clients some have nothing to say."""

    idle: int = 1

    @on_client(each=True)
    def submit(self, client, message):
        return message.zeros() + float(client.id if client.id >= self.idle else 0)


@pytest.mark.parametrize(("idle", "expected"), [(1, 3.0), (3, 4.0), (4, 4.5), (6, 0.0)])
def test_updates_of_zero_have_no_say_unless_all_are(config, task, idle, expected):
    prepared = prepare(config(cohort=6, method=f"{__name__}:Idle", options={"idle": idle}), task=task)
    state = prepared.method.init(prepared.fed)
    prepared.fed.start_round(1)
    after = prepared.method.round(prepared.fed, state)
    assert torch.allclose((after.params - state.params).vector, torch.tensor(expected), atol=1e-6)
