"""Spread of the clients' accuracies from sums alone, and the adjusted Rand index."""

import math

import numpy as np
import pytest
import torch

from paceline.core.errors import PlanError
from paceline.core.metrics import Primary, added, adjusted_rand, measured, packed, primary
from paceline.core.spread import BINS, _Scale, spread, spread_figures
from paceline.metrics import AUROC
from paceline.run import prepare


def reported(correct, count):
    return spread({"correct": correct, "count": count})


def total(parts):
    return {k: sum(p[k] for p in parts) for k in parts[0]}


def test_spread_against_numpy():
    rng = np.random.default_rng(0)
    count = rng.integers(50, 100, 40)
    correct = rng.integers(0, count + 1)
    accuracy = correct / count
    out = spread_figures(total([reported(int(a), int(b)) for a, b in zip(correct, count, strict=True)]))
    assert out["client_accuracy"] == pytest.approx(accuracy.mean(), abs=1e-12)
    assert out["client_deviation"] == pytest.approx(accuracy.std(), abs=1e-9)
    assert out["worst_client_accuracy"] == pytest.approx(np.sort(accuracy)[:4].mean(), abs=0.005)


def test_clients_without_samples_do_not_count():
    out = spread_figures(total([reported(0, 0), reported(3, 4), reported(0, 0)]))
    assert out == {"client_accuracy": 0.75, "worst_client_accuracy": 0.75, "client_deviation": 0.0}
    assert math.isnan(spread_figures(reported(0, 0))["client_accuracy"])


def test_adjusted_rand_by_hand():
    assert adjusted_rand([0, 0, 1, 1], [1, 1, 0, 0]) == 1.0
    assert adjusted_rand([0, 0, 0, 0], [0, 0, 1, 1]) == 0.0
    assert adjusted_rand([0, 0, 1, 2], [0, 0, 1, 1]) == pytest.approx(4 / 7)
    assert adjusted_rand([0, 0, 0], [4, 4, 4]) == 1.0


def test_adjusted_rand_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    for _ in range(30):
        a, b = rng.integers(0, 4, 20).tolist(), rng.integers(0, 3, 20).tolist()
        assert adjusted_rand(a, b) == pytest.approx(metrics.adjusted_rand_score(b, a), abs=1e-12)


def test_clients_are_judged_by_their_own_test_samples(federate, task, config):
    out = federate(rounds=2, evaluation="clients", client_test=0.25, partition="dirichlet:0.5")
    last = out.history[-1]
    prepared = prepare(config(rounds=2, client_test=0.25, partition="dirichlet:0.5"), task=task)
    prepared.go()
    module = task.build(0)
    params = prepared.method.model(prepared.state)
    for name, value in module.named_parameters():
        value.data = params[name].clone()
    accuracies = []
    for k in range(6):
        rows = prepared.fed.engine.setup.split(k)[1]
        with torch.no_grad():
            right = module(task.train.x[rows]).argmax(1) == task.train.y[rows]
        accuracies.append(float(right.double().mean()))
    assert last["client_accuracy"] == pytest.approx(np.mean(accuracies))
    assert last["client_deviation"] == pytest.approx(np.std(accuracies), abs=1e-6)
    assert last["worst_client_accuracy"] == pytest.approx(min(accuracies), abs=0.005)


def test_without_own_test_samples_the_central_ones_of_own_classes_judge(federate, task):
    counts = []
    for k, partition in ((1, "shards:1"), (2, "shards:2"), (4, "iid")):
        prepared = prepare_with(federate, partition)
        sums = prepared.fed.sum(prepared.method.evaluate_clients, (False, prepared.method.model(prepared.state)), over=[0])
        counts.append((k * 20, sums["count"], int((sums["class_count"] > 0).sum())))
    assert [(want, k) for want, _, k in counts] == [(got, k) for (_, got, _), k in zip(counts, (1, 2, 4), strict=True)]


def prepare_with(federate, partition):
    from paceline.run import RunConfig
    from tests.conftest import make_task

    config = RunConfig.build({"task": "blobs", "clients": 4, "cohort": 4, "rounds": 1, "partition": partition})
    prepared = prepare(config, task=make_task())
    prepared.go()
    return prepared


def test_every_client_on_the_central_test_set_is_the_central_evaluation(federate):
    central = federate(rounds=1, evaluation="central")
    clients = federate(rounds=1, evaluation="clients-central")
    assert clients.accuracy == pytest.approx(central.accuracy)
    assert clients.history[-1]["client_deviation"] == pytest.approx(0, abs=1e-6)


def test_spread_under_secure_aggregation_with_a_drop_out(federate):
    common = {"rounds": 1, "clients": 10, "cohort": 10, "evaluation": "clients", "partition": "dirichlet:0.3"}
    common["secure"] = {"threshold": 5, "gamma": 0.05}

    def lost(round, client, function):
        return client == 2 and function in ("secagg.masked", "evaluate_clients", "train")

    plain = federate(aggregation="secure-arithmetic", drop=lost, **common).history[-1]
    secure = federate(aggregation="secure", drop=lost, **common).history[-1]
    keys = ("accuracy", "client_accuracy", "worst_client_accuracy", "client_deviation")
    assert {k: plain[k] for k in keys} == {k: secure[k] for k in keys}


def test_a_method_without_a_global_model_is_not_judged_centrally(task, config):
    with pytest.raises(PlanError, match="evaluation='clients'"):
        prepare(config(method="localonly", evaluation="central"), task=task)


@pytest.mark.parametrize("bins", [-3, 2**40, 7])
@pytest.mark.parametrize("clients", [-1, 0, 5])
def test_a_spread_in_which_somebody_lied_is_a_figure(bins, clients):
    """Sums of numbers have no bound under secure aggregation: neither an error nor an endless list may come of them."""
    total = {"clients": clients, "scores": 2.0, "squares": -4.0, "bins": torch.zeros(BINS, dtype=torch.int64)}
    total["bins"][50] = bins
    found = spread_figures(total)
    assert set(found) == {"client_accuracy", "worst_client_accuracy", "client_deviation"}
    assert all(math.isnan(v) or 0 <= v <= 1 for v in found.values())


def test_a_client_whose_figure_is_undefined_does_not_count():
    """A client of one class has no AUROC."""
    metric, g = AUROC(bins=50), torch.Generator().manual_seed(0)
    scores, y = torch.randn(90, 2, generator=g), torch.arange(90) % 2
    parts = []
    for rows in (slice(0, 30), slice(30, 60), slice(60, 90, 2)):  # the last one has only class 0
        terms = {metric.figure: packed(metric.terms(scores[rows], y[rows]))}
        sums = {"count": 30, "loss": 0.0, "metrics": terms}
        parts.append(spread(sums, [metric]))
    out = spread_figures(added(parts), primary([metric]))
    own = [measured(p, [metric])["auroc"] for p in parts]
    assert math.isnan(own[2])
    assert out["client_auroc"] == pytest.approx(np.mean(own[:2]))
    assert out["worst_client_auroc"] == pytest.approx(min(own[:2]), abs=0.005)


@pytest.mark.parametrize(
    ("limits", "values"),
    [((0, 1), [0, 0.3, 1]), ((-1, 1), [-1, -0.2, 0.9]), ((0, math.inf), [0, 1e-5, 3.7, 2e5]), ((1, math.inf), [1, 40.0]),
     ((-math.inf, 1), [1, 0.5, -300.0]), ((-math.inf, math.inf), [-40.0, 1e-3, 7.0])],
)  # fmt: skip
@pytest.mark.parametrize("higher", [True, False])
def test_the_worst_client_is_within_half_a_bin(limits, values, higher):
    main = Primary("accuracy", higher, limits)
    for value in values:
        total = reported(1, 1)
        scale = _Scale(main)
        bins = torch.zeros(scale.bins, dtype=torch.int64)
        bins[scale.place(value)] = 1
        found = spread_figures({**total, "bins": bins, "scores": value, "squares": value**2}, main)
        both = math.isinf(limits[0]) and math.isinf(limits[1])
        distance = value - (0 if both else limits[0] if math.isfinite(limits[0]) else limits[1])
        near = 0.005 if math.isfinite(limits[1] - limits[0]) else (0.028 if both else 0.014) * abs(distance) + 1e-6
        assert found["worst_client_accuracy"] == pytest.approx(value, abs=near)
