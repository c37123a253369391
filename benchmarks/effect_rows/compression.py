"""Directional effects of the methods that send little."""

from __future__ import annotations

from statistics import fmean
from typing import Any

__all__ = ["ROWS"]

_VOTES: dict[str, Any] = {
    "task": "digits",
    "task_options": {"hidden": [200], "bias": False},
    "model": "mlp",
    "partition": "dirichlet:1.0",
    "clients": 30,
    "cohort": 8,
    "rounds": 25,
    "eval_every": 25,
}
_FRL: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.4}
_SGD: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.05}
_REVERSED, _TENFOLD = {"adversary": "ranks:0.2"}, {"adversary": "signflip:0.2,scale=10", "sum_bound": 2.0**45}

ROWS: list[dict[str, Any]] = [
    {
        "method": "frl",
        "baseline": "fedavg",
        "claim": "votes on a frozen random network reach FedAvg's accuracy to within 3 points",
        "config": _VOTES,
        "method_options": _FRL,
        "baseline_options": _SGD,
        "metric": "accuracy",
        "direction": "higher",
        "holds": lambda ours, theirs: fmean(ours) > fmean(theirs) - 0.03,
    },
    {
        "method": "frl",
        "baseline": "fedavg",
        "claim": "with a fifth of the clients in reverse FRL keeps 0.6, where FedAvg under tenfold sign flips falls to chance (below 0.2)",
        "holds": lambda ours, theirs: min(ours) >= 0.6 and max(theirs) < 0.2,
        "config": _VOTES,
        "method_config": _REVERSED,
        "baseline_config": _TENFOLD,
        "method_options": _FRL,
        "baseline_options": _SGD,
        "metric": "accuracy",
        "direction": "higher",
    },
    {
        "method": "frl",
        "baseline": "median",
        "claim": "FRL under reversed rankings is more accurate than a coordinate-wise median under tenfold sign flips",
        "config": _VOTES,
        "method_config": _REVERSED,
        "baseline_config": _TENFOLD,
        "method_options": _FRL,
        "baseline_options": _SGD,
        "metric": "accuracy",
        "direction": "higher",
        "note": "The median needs every single update; FRL's sum hides them.",
    },
]
