"""Effects of the continual methods: MNIST whose pixels are permuted differently in each of five stages.

Both rows search by the accuracy at the end. A rate that learns nothing forgets nothing, so forgetting is no criterion.
"""

from __future__ import annotations

from typing import Any

from effect_study.rows import Row, Side
from paceline.tasks.sequence import forgetting

__all__ = ["ROWS"]

_STAGES, _ROUNDS = 5, 20


def final_accuracy(summary: Any) -> float:
    """Return the mean over stages of the accuracy at the end."""
    return forgetting(summary.history, _ROUNDS)[0]


def forgotten(summary: Any) -> float:
    """Return the mean over stages of the accuracy lost since the stage was learnt; below a tenth of a point it counts as that."""
    return max(forgetting(summary.history, _ROUNDS)[1], 0.001)


_PERMUTED: dict[str, Any] = {
    "task": "permuted",
    "model": "mlp",
    "task_options": {
        "of": "mnist-5k",
        "stages": _STAGES,
        "rounds_each": _ROUNDS,
        "limit": 1000,
        "hidden": [64],
        "bias": False,
    },
    "clients": 5,
    "cohort": 5,
    "rounds": _STAGES * _ROUNDS,
    "eval_every": _ROUNDS,
}
_BATCH: dict[str, Any] = {"batch_size": 16}
_FOT = Side("fot", {"lr": [0.02, 0.05, 0.1, 0.2, 0.4, 0.8], "eps": [0.85, 0.9, 0.95]}, _BATCH | {"sketch": 2})
_FEDAVG = Side("fedavg", {"lr": [0.003, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.4]}, _BATCH)

ROWS: list[Row] = [
    Row(
        "continual/fot",
        "FOT forgets less than half as much as FedAvg over five stages with permuted inputs",
        _FOT,
        _FEDAVG,
        _PERMUTED,
        forgotten,
        criterion=final_accuracy,
        better="lower",
        ratio=True,
        by=2.0,
        quick=True,
    ),
    Row(
        "continual/fot-accuracy",
        "FOT ends more than 10 points above FedAvg over five stages with permuted inputs",
        _FOT,
        _FEDAVG,
        _PERMUTED,
        final_accuracy,
        by=0.1,
        quick=True,
        note="The 10 points date from 8x8 digits and a rate of FedAvg that was not tuned; the tuned rate forgets less.",
    ),
]
