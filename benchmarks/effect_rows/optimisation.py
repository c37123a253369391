"""Effects of the optimisation methods: Fashion-MNIST with few classes for each client, and quadratics with a known optimum."""

from __future__ import annotations

from typing import Any

from effect_study.rows import Row, Side

__all__ = ["ROWS"]

_SKEWED: dict[str, Any] = {
    "task": "fashion-mnist",
    "model": "mlp",
    "partition": "shards:2",
    "client_samples": 200,
    "clients": 20,
    "cohort": 4,
    "rounds": 10,
    "eval_every": 10,
}
_LOCAL: dict[str, Any] = {"epochs": 1, "batch_size": 20}
_RATES = [0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3]

ROWS: list[Row] = [
    Row(
        "optimisation/fedprox",
        "a proximal term raises FedAvg's accuracy with two classes for each client",
        Side("fedprox", {"lr": _RATES, "mu": [0.001, 0.01, 0.1, 1.0]}, _LOCAL),
        Side("fedavg", {"lr": _RATES}, _LOCAL),
        _SKEWED,
        quick=True,
    ),
]
