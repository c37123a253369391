"""Metrics of runs: federated, secure, per client and per group; the primary one drives target, patience and tables."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

import paceline as pl
from paceline.assembly import load_metric
from paceline.core.config import RunConfig
from paceline.core.errors import ConfigError, PlanError, UnknownNameError
from paceline.metrics import AUROC, Accuracy, ClassMetric
from paceline.results.arguments import metric_texts
from paceline.run import load, prepare, resume
from tests.conftest import make_task
from tests.metrics.kit import same, whole

NAMES = ["f1", "auroc:bins=100", "average-precision", "log-loss", "brier", "calibration-error", "kappa:weights=quadratic",
         "matthews", "accuracy:top=2", "balanced-accuracy", "perplexity", "recall:average=weighted"]  # fmt: skip


@dataclass(frozen=True)
class Mistakes(ClassMetric):
    """Share of mistakes, each counted with a cost."""

    cost: float = 1.0
    higher_is_better = False

    def count(self, scores, targets):
        return {"wrong": (scores.argmax(1) != targets).sum() * self.cost, "count": torch.tensor(len(targets))}

    def figures(self, total):
        return {"mistakes": float(total["wrong"]) / max(int(total["count"]), 1)}


class Mute(ClassMetric):
    def count(self, scores, targets):
        return {"count": torch.tensor(len(targets))}

    def figures(self, total):
        return {"silence": 0.0}


class Weighty(Mute):
    def __init__(self, weight=1.0):
        self.weight = weight


def pooled(run):
    """Return the model's outputs and the targets of all clients' test samples."""
    module, split, train = run.task.build(0), run.fed.engine.setup.split, run.task.train
    for name, value in run.method.model(run.state).items():
        module.get_parameter(name).data = value.clone()
    rows = [split(k)[1] for k in range(run.config.clients)]
    with torch.no_grad():
        return [(module(train.x[r]), train.y[r]) for r in rows]


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic", "secure"])
@pytest.mark.parametrize("vectorize", ["off", "on"])
def test_federated_figures_are_the_central_ones_on_the_pooled_samples(config, task, aggregation, vectorize):
    if aggregation == "secure" and vectorize == "on":
        pytest.skip("encoded as in secure-arithmetic")
    run = prepare(
        config(rounds=2, cohort=6, metrics=NAMES, evaluation="federated", client_test=0.3, partition="dirichlet:0.5",
               aggregation=aggregation, vectorize=vectorize, secure={"gamma": 0.0} if aggregation != "plain" else {}),
        task=task,
    )  # fmt: skip
    record = run.go().history[-1]
    parts = pooled(run)
    out, y = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    for name in NAMES:
        want = whole(load_metric(name), out, y)
        assert {k: record[k] for k in want} == pytest.approx(want, abs=1e-6, nan_ok=True), name
    assert record["macro_f1"] == pytest.approx(sk.f1_score(y, out.argmax(1), average="macro"), abs=1e-9)


def test_central_figures(config, task):
    run = prepare(config(metrics=NAMES), task=task)
    record = run.go().history[-1]
    module = task.build(0)
    for name, value in run.method.model(run.state).items():
        module.get_parameter(name).data = value.clone()
    with torch.no_grad():
        out = module(task.test.x)
    for name in NAMES:
        want = whole(load_metric(name), out, task.test.y)
        assert same({k: record[k] for k in want}, want, 1e-6)


def test_metrics_change_neither_the_model_nor_the_other_figures(federate):
    common = {"evaluation": "federated", "client_test": 0.3, "vectorize": "on", "chunk": 3}
    plain, more = federate(**common), federate(**common, metrics=NAMES)
    assert plain.model_sha256 == more.model_sha256
    for one, other in zip(plain.history, more.history, strict=True):
        for name in ("loss", "accuracy", "worst_class_accuracy"):
            assert other[name] == one[name]
    assert "metric" not in plain.history[-1]
    assert more.history[-1]["metric"] == "macro_f1"


@pytest.mark.parametrize("name", ["log-loss", "f1", "matthews"])
@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic"])
def test_the_spread_over_clients_is_that_of_the_primary_metric(config, task, name, aggregation):
    common = {"client_test": 0.3, "partition": "dirichlet:0.5", "metrics": [name, "accuracy"], "aggregation": aggregation}
    run = prepare(
        config(cohort=6, evaluation="clients", **common, secure={"gamma": 0.0} if aggregation != "plain" else {}), task=task
    )
    record = run.go().history[-1]
    metric = load_metric(name)
    each = np.array([whole(metric, out, y)[metric.figure] for out, y in pooled(run)])
    assert record[f"client_{metric.figure}"] == pytest.approx(each.mean(), abs=1e-6)
    assert record["client_deviation"] == pytest.approx(each.std(), abs=1e-6)
    worst = each.min() if metric.higher_is_better else each.max()
    assert record[f"worst_client_{metric.figure}"] == pytest.approx(worst, abs=0.005, rel=0.014)


@pytest.mark.parametrize("evaluation", ["federated", "clients"])
def test_groups_of_clients_have_figures_of_their_own(config, task, evaluation):
    common = {"cohort": 6, "partition": "groups:0-1/2-3", "client_test": 0.3, "metrics": ["f1"], "evaluation": evaluation}
    run = prepare(config(**common, by_group=True), task=task)
    record = run.go().history[-1]
    parts = pooled(run)
    for group in (0, 1):
        mine = [p for p, g in zip(parts, run.groups, strict=True) if g == group]
        out, y = torch.cat([p[0] for p in mine]), torch.cat([p[1] for p in mine])
        want = whole(load_metric("f1"), out, y)["macro_f1"]
        assert record[f"group_{group}_macro_f1"] == pytest.approx(want)
    alone = prepare(config(**common), task=task).go().history[-1]
    assert record["macro_f1"] == alone["macro_f1"]
    assert not any(k.startswith("group_") for k in alone)


def test_groups_that_cannot_be_evaluated_are_refused(config, task):
    groups = {"by_group": True, "evaluation": "federated", "client_test": 0.3}
    with pytest.raises(PlanError, match="needs groups of clients"):
        prepare(config(**groups), task=task)
    with pytest.raises(PlanError, match="needs evaluation='federated'"):
        prepare(config(by_group=True, partition="groups:0-1/2-3"), task=task)
    with pytest.raises(PlanError, match="at least 3 clients, but group 0, 1 has fewer"):
        prepare(config(**groups, partition="groups:0-1/2-3", clients=4, cohort=4, aggregation="secure-arithmetic"), task=task)


def test_target_and_patience_follow_the_direction_of_the_primary_metric(federate):
    whole = federate(rounds=8, metrics=["log-loss"])
    losses = [r["log_loss"] for r in whole.history]
    assert losses[0] > losses[4] > losses[-1]
    target = (losses[3] + losses[4]) / 2
    ended = federate(rounds=8, metrics=["log-loss"], target_score=target, stop_at_target=True)
    assert (ended.rounds, ended.stopped) == (5, "target log_loss reached")
    assert ended.target_seconds == whole.history[4]["virtual_seconds"]
    assert (ended.metric, ended.score, ended.higher_is_better, ended.in_percent) == ("log_loss", losses[4], False, False)
    assert federate(rounds=4, metrics=["log-loss"], patience=1).rounds == 4  # it falls in every round
    rising = federate(rounds=6, metrics=[f"{__name__}:Mistakes:cost=0.0"], patience=2)
    assert (rising.rounds, rising.stopped) == (3, "mistakes did not improve in 2 evaluations")


def test_a_run_keeps_its_metrics(tmp_path, task):
    first = pl.run("fedavg", task, clients=6, rounds=3, metrics=[Accuracy(top=2), AUROC], folder=tmp_path / "run", progress=False)
    read = load(tmp_path / "run")
    assert read.config.metrics == ("accuracy:top=2", "auroc")
    assert (read.metric, read.score) == ("top2_accuracy", first.history[-1]["top2_accuracy"])
    assert "top2_accuracy" in repr(read)
    (tmp_path / "run" / "summary.json").unlink()
    assert resume(tmp_path / "run", task=task, progress=False).score == first.score


def test_own_metrics_by_name_and_as_objects(federate, task):
    named = federate(metrics=[f"{__name__}:Mistakes:cost=2.0"]).history[-1]
    given = pl.run("fedavg", task, clients=6, cohort=5, rounds=3, vectorize="off", metrics=Mistakes(cost=2.0), progress=False)
    assert named["mistakes"] == given.history[-1]["mistakes"] == pytest.approx(2 * (1 - named["accuracy"]))
    own = dataclasses.replace(task, metrics=["f1", Mistakes()])
    assert federate(task=own).metric == "macro_f1"
    assert federate(task=own, metrics=["auroc"]).metric == "auroc"
    with pytest.raises(ConfigError, match="without its main figure 'mute'"):
        federate(metrics=[f"{__name__}:Mute"])
    with pytest.raises(ConfigError, match="make it a frozen dataclass"):
        metric_texts(Weighty(3.0))
    with pytest.raises(ConfigError, match="the class RunConfig is not a metric"):
        metric_texts([RunConfig])


def test_a_wrong_choice_is_named_before_the_first_round(config, task):
    for metrics, kind, text in (
        (["f11"], UnknownNameError, "did you mean f1"),
        (["f1:averag=micro"], UnknownNameError, "average"),
        (["f1:average=mean"], ConfigError, "average='mean'"),
        (["f1", "f1:per_class=true"], ConfigError, "macro_f1 is listed more than once"),
        (["paceline.core.metrics:added"], ConfigError, "parts"),
        (["concordance"], ConfigError, "needs horizon=VALUE"),
    ):
        with pytest.raises(kind, match=text):
            prepare(config(metrics=metrics), task=task)
    with pytest.raises(PlanError, match="target_accuracy is of accuracy, but macro_f1 is primary; use target_score"):
        prepare(config(metrics=["f1"], target_accuracy=0.5), task=task)
    with pytest.raises(ConfigError, match="exclude each other"):
        config(target_score=0.5, target_accuracy=0.5)


def test_a_comparison_shows_the_primary_metric(task):
    made = pl.compare(["fedavg", "fedprox:mu=1.0"], task, seeds=[0], clients=6, rounds=4, metrics="log-loss", progress=False)
    losses = [min(r["log_loss"] for r in e.history) for e in made.entries]
    assert "log loss" in repr(made)
    assert "%" not in repr(made).split("\n")[2].split("round time")[0]
    assert max(losses) <= made.target < 1.1 * max(losses)
    assert made.mean("score") == {"fedavg": made.entries[0].summary["score"], "fedprox:mu=1.0": made.entries[1].summary["score"]}
    axis = made.plot().axes[0]
    assert (axis.get_title(loc="left"), axis.get_ylabel()) == ("Log loss over virtual time", "test log loss")
    assert axis.lines[0].get_ydata()[-1] == pytest.approx(made.entries[0].history[-1]["log_loss"])


def test_parts_of_the_test_set_have_metrics(federate):
    from paceline.tasks.sequence import split_classes

    out = federate(task=split_classes(make_task(), 2), metrics=["f1"], rounds=2)
    assert {"part_0_macro_f1", "part_1_macro_f1", "part_0_accuracy"} <= set(out.history[-1])
    assert not math.isnan(out.history[-1]["part_1_macro_f1"])
