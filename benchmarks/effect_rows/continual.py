"""Directional effects of the continual methods."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from paceline.tasks.sequence import forgetting

__all__ = ["ROWS"]

_STAGES, _ROUNDS = 4, 25


def final_accuracy(summary: Any) -> float:
    """Return the mean over tasks of the accuracy at the end."""
    return forgetting(summary.history, _ROUNDS)[0]


def forgotten(summary: Any) -> float:
    """Return the mean over tasks of what accuracy was lost since the task was learnt."""
    return forgetting(summary.history, _ROUNDS)[1]


_PERMUTED: dict[str, Any] = {
    "task": "permuted",
    "task_options": {
        "stages": _STAGES,
        "rounds_each": _ROUNDS,
        "limit": 1200,
        "hidden": [100, 100],
        "bias": False,
    },
    "model": "mlp",
    "clients": 10,
    "cohort": 10,
    "rounds": _STAGES * _ROUNDS,
    "eval_every": _ROUNDS,
}
_SGD = {"lr": 0.05, "batch_size": 16}

ROWS: list[dict[str, Any]] = [
    {
        "method": "fot",
        "baseline": "fedavg",
        "claim": "FOT forgets less than half of what FedAvg forgets over four tasks with permuted inputs",
        "config": _PERMUTED,
        "method_options": _SGD | {"eps": 0.95},
        "baseline_options": _SGD,
        "metric": forgotten,
        "direction": "lower",
        "holds": lambda ours, theirs: fmean(ours) < 0.5 * fmean(theirs),
    },
    {
        "method": "fot",
        "baseline": "fedavg",
        "claim": "FOT ends more than 10 points above FedAvg over four tasks with permuted inputs",
        "config": _PERMUTED,
        "method_options": _SGD | {"eps": 0.95},
        "baseline_options": _SGD,
        "metric": final_accuracy,
        "direction": "higher",
        "holds": lambda ours, theirs: fmean(ours) > fmean(theirs) + 0.1,
    },
]
