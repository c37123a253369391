"""Metrics of tasks of each kind: regression, several labels, segmentation, next tokens, dicts; federated as pooled, plain and secure."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn import metrics as sk
from torch import nn

import paceline as pl
from paceline.core.errors import DataFormatError

G = torch.Generator().manual_seed(0)
X = torch.randn(240, 6, generator=G)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, x):
        return {"hidden": x, "logits": self.linear(x)}


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, x):
        return self.linear(self.table(x))


def regression():
    y = 100 + X[:, :2] @ torch.randn(2, 2, generator=G) + 0.1 * torch.randn(240, 2, generator=G)
    return (X, y), Named, {"loss": "mse", "lr": 1e-2}, ["rmse", "mae", "r2", "mape"]


def labels():
    y = (X[:, :3] + 0.3 * torch.randn(240, 3, generator=G) > 0).float()
    return (X, y), lambda: nn.Linear(6, 3), {"loss": "bce"}, ["multilabel-f1", "hamming", "exact-match", "auroc:bins=50"]


def segmentation():
    x = torch.randn(240, 1, 5, 5, generator=G)
    y = (x[:, 0] > 0).long()
    y[:, 0] = 255
    return (x, y), lambda: nn.Conv2d(1, 2, 3, padding=1), {"ignore_index": 255, "num_classes": 2}, ["dice", "iou", "log-loss"]


def language():
    x = torch.randint(0, 7, (240, 9), generator=G)
    return (x, x), Tokens, {"loss": "next_token", "num_classes": 7}, ["perplexity", "bleu:order=1"]


KINDS = [regression, labels, segmentation, language]


def truth(kind, out, y):
    """Return the main figure of the first metric, by another implementation."""
    if kind is regression:
        return math.sqrt(sk.mean_squared_error(y, out["logits"]))
    if kind is labels:
        return sk.f1_score(y, out > 0, average="macro")
    if kind is segmentation:
        known = y < 255
        return sk.f1_score(y[known], out.argmax(1)[known])
    return math.exp(float(nn.functional.cross_entropy(out[:, :-1].reshape(-1, 7).double(), y[:, 1:].reshape(-1))))


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_federated_figures_are_those_of_the_pooled_samples(kind, aggregation):
    data, model, options, metrics = kind()
    task = pl.Task.from_datasets(tuple(t[:200] for t in data), tuple(t[200:] for t in data), model=model, **options)
    run = pl.prepare(
        pl.RunConfig(clients=5, cohort=5, rounds=2, metrics=metrics, evaluation="federated", client_test=0.3, aggregation=aggregation,
                     secure={"gamma": 0.0} if aggregation != "plain" else {}),
        task=task,
    )  # fmt: skip
    result = run.go()
    rows = torch.cat([run.fed.engine.setup.split(k)[1] for k in range(5)])
    module = result.model()
    with torch.no_grad():
        out = module(task.train.x[rows])
    record = result.history[-1]
    assert result.score == record[result.metric] == pytest.approx(truth(kind, out, task.train.y[rows]), rel=1e-5)
    assert all(math.isfinite(v) for k, v in record.items() if isinstance(v, float))
    again = pl.run(
        "fedavg", task, clients=5, rounds=2, metrics=metrics, evaluation="clients", client_test=0.3, progress=False
    ).history[-1]
    assert math.isfinite(again[f"client_{result.metric}"])


def test_without_metrics_the_loss_is_primary_where_there_are_no_classes():
    data, model, options, _ = regression()
    task = pl.Task.from_datasets(tuple(t[:200] for t in data), tuple(t[200:] for t in data), model=model, **options)
    result = pl.run("fedavg", task, clients=5, rounds=2, evaluation="clients", client_test=0.2, progress=False)
    assert (result.metric, result.higher_is_better, result.score) == ("loss", False, result.loss)
    assert result.history[-1]["client_loss"] > 0
    assert "loss" in repr(pl.compare(["fedavg", "fedprox"], task, seeds=[0], clients=5, rounds=2, progress=False))


def test_a_metric_of_another_kind_of_task_is_refused_before_the_first_round():
    data, model, options, _ = labels()
    task = pl.Task.from_datasets(data, data, model=model, **options)
    with pytest.raises(DataFormatError, match=r"rougel does not fit outputs of shape \[2, 3\]"):
        pl.prepare(pl.RunConfig(metrics=["rouge"], clients=4), task=task)
    assert pl.Task.from_datasets(data, data, model=model, metrics=["hamming"], **options).metrics == ["hamming"]
