"""Directional effects of methods in which clients have networks of their own, or see few classes.

Clients are judged by the central test samples of the classes that they have, unless all of them are asked for.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ROWS"]

_NETWORKS = ["mlp:hidden=64-32", "mlp:hidden=32", "mlp:hidden=48-40-32"]
"""Three networks with 32 features that end in ReLU."""

_PRIVATE: dict[str, Any] = {
    "task": "digits",
    "partition": "dirichlet:0.5",
    "client_samples": 40,
    "clients": 10,
    "cohort": 10,
    "rounds": 30,
    "eval_every": 10,
}
_LOCAL: dict[str, Any] = {"models": _NETWORKS, "lr": 0.05, "epochs": 2, "batch_size": 10}
_HEAD: dict[str, Any] = _LOCAL | {"momentum": 0.0, "weight_decay": 0.0}

_APART: dict[str, Any] = {
    "task": "digits",
    "task_options": {"hidden": [64, 32], "end": "batch"},
    "partition": "shards:2",
    "clients": 20,
    "cohort": 6,
    "rounds": 30,
    "eval_every": 10,
}
_FEW: dict[str, Any] = {"lr": 0.05, "epochs": 5, "batch_size": 32, "momentum": 0.9, "weight_decay": 1e-4}


def _row(
    method: str,
    baseline: str,
    claim: str,
    config: dict[str, Any],
    ours: dict[str, Any],
    theirs: dict[str, Any],
    metric: str = "accuracy",
) -> dict[str, Any]:
    return {
        "method": method,
        "baseline": baseline,
        "claim": claim,
        "config": config,
        "method_options": ours,
        "baseline_options": theirs,
        "metric": metric,
        "direction": "higher",
    }


ROWS: list[dict[str, Any]] = [
    _row(
        "fedsa",
        "fedproto",
        "anchors make prototypes that fit all clients better (nearest prototype, all classes)",
        _PRIVATE | {"evaluation": "clients-central"},
        _LOCAL | {"beta": 0.99},
        _LOCAL,
        "client_accuracy",
    ),
    _row(
        "fedsa",
        "fedproto",
        "anchors make better heads (own classes)",
        _PRIVATE | {"evaluation": "clients"},
        _LOCAL | {"beta": 0.99, "predict": "head"},
        _LOCAL | {"predict": "head"},
        "client_accuracy",
    ),
    _row(
        "fedsa",
        "localonly",
        "sharing class means alone beats training alone (own classes)",
        _PRIVATE | {"evaluation": "clients"},
        _LOCAL | {"beta": 0.99, "predict": "head"},
        _LOCAL,
        "client_accuracy",
    ),
    _row(
        "fedgh",
        "localonly",
        "a common head beats training alone (own classes, locally trained head)",
        _PRIVATE | {"evaluation": "clients"},
        _HEAD | {"server_lr": 0.05},
        _LOCAL,
        "client_accuracy",
    ),
    _row(
        "fedghsum",
        "localonly",
        "the sum-only head keeps the gain (own classes, locally trained head)",
        _PRIVATE | {"evaluation": "clients"},
        _HEAD | {"server_lr": 0.05},
        _LOCAL,
        "client_accuracy",
    ),
    _row(
        "fedgh",
        "localonly",
        "the common head sees more classes than a local one (all classes)",
        _PRIVATE | {"evaluation": "clients-central"},
        _HEAD | {"server_lr": 0.05, "judge": "global"},
        _LOCAL,
        "client_accuracy",
    ),
    _row(
        "fedgela",
        "fedavg",
        "the stretched frame makes a better global model of class-disjoint clients",
        _APART,
        _FEW,
        _FEW,
    ),
    _row(
        "fedgela",
        "fedgela",
        "stretching helps beyond fixing the frame",
        _APART,
        _FEW,
        _FEW | {"stretched": False},
    ),
    _row(
        "fedgela",
        "finetuned",
        "personal models are at least as good right after local training (own classes)",
        _APART | {"evaluation": "clients", "eval_every": 30},
        _FEW,
        _FEW,
        "client_accuracy",
    ),
]
