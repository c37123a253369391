"""Effects of how clients differ: by the embeddings of a dense task, or by class labels that say nothing about it."""

from __future__ import annotations

from typing import Any

from sklearn.metrics import adjusted_rand_score

from effect_study.rows import FRESH, Row, Side
from paceline.assembly import build_method, reload

__all__ = ["ROWS"]

_SHADE: dict[str, Any] = {
    "task": "shading",
    "task_options": {"limit": 2000, "tests": 500},
    "clients": 8,
    "cohort": 8,
    "rounds": 20,
    "eval_every": 20,
}
_LOCAL: dict[str, Any] = {"epochs": 3, "batch_size": 16, "momentum": 0.9}
_RATES: dict[str, Any] = {"lr": [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8]}
"""From 1 on, some seeds end in a bad minimum."""


def fit(summary: Any) -> float:
    """Return minus the loss, which the search maximises."""
    return -float(summary.history[-1]["loss"])


def shapes_found(summary: Any) -> float:
    """Return the adjusted Rand index of the clusters that were dealt and the pictures' classes."""
    task, split = reload(summary.config, build_method(summary.config))
    return float(adjusted_rand_score(task.train.owner.tolist(), split.clusters.tolist()))


def _side(name: str, partition: str, **more: Any) -> Side:
    return Side("fedavg", _RATES, _LOCAL, {"partition": partition, **more}, name=name)


_LABELS = _side("fedavg, clients by label", "embedding:0.5,by=labels,least=40,use=0.3")

ROWS: list[Row] = [
    Row(
        "clustering/embedding",
        "for a dense task, FedAvg's loss is at least twice as high where clients differ in embeddings as where they differ in labels",
        _side("fedavg, clients by embedding", "embedding:0.5,least=40,use=0.3"),
        _LABELS,
        _SHADE,
        "loss",
        criterion=fit,
        ratio=True,
        by=2.0,
        margin=0.0,
        quick=True,
        seeds=FRESH,
    ),
    Row(
        "clustering/embedding-labels",
        "for a dense task, FedAvg's loss where clients differ in labels is at most twice that of clients that do not differ",
        _LABELS,
        _side("fedavg, clients alike", "iid", client_samples=75),
        _SHADE,
        "loss",
        better="lower",
        at_least=True,
        ratio=True,
        margin=0.6931,
        seeds=FRESH,
    ),
    Row(
        "clustering/embedding-shapes",
        "clusters of a dense task's embeddings are not those of the classes: their adjusted Rand index is below a tenth",
        Side("fedavg", {}, _LOCAL | {"lr": 0.3}, {"partition": "embedding:0.5,least=40"}, name="clusters of embeddings"),
        0.1,
        _SHADE | {"rounds": 1, "eval_every": 1},
        shapes_found,
        better="lower",
        margin=0.0,
        trials=1,
    ),
]
