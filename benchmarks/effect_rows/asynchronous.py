"""Directional effects of the asynchronous methods: what should come out better than what, and on which run."""

from __future__ import annotations

from typing import Any

import numpy as np

from made import distance, quadratics

__all__ = ["ROWS"]

_SPREAD: dict[str, Any] = {"task": "digits", "partition": "shards:1", "clients": 10, "cohort": 10, "fleet": "spread:percent=80"}
"""Each client has one class, and client i takes 1 - 0.8 i / 9 seconds: what the slow ones know is rare."""

_LOCAL: dict[str, Any] = {"steps": 10, "batch_size": 16, "momentum": 0.0}

_ANARCHIC: dict[str, Any] = {
    "task": "quadratics",
    "partition": "natural",
    "clients": 20,
    "cohort": 20,
    "rounds": 400,
    "fleet": "spread:percent=0,slowest=0.2",
}
_RETURNS: dict[str, Any] = {"lr": 0.02, "server_lr": 0.1, "returns": 5, "batch_size": 1, "idle": 1.0}
"""Twenty clients with optima from -1.5 to 1.5; the higher it is, the more steps a client does, from 1 to 10."""


def _line(seed: int) -> dict[str, Any]:
    return {"task": quadratics(np.linspace(-1.5, 1.5, 20)[:, None], noise=0.2, seed=seed)}


def _anarchic(of: str, ours: str, versus: str, theirs: str, claim: str, skew: float) -> dict[str, Any]:
    return {
        "name": f"asynchronous/{of}",
        "method": f"uneven:{ours}",
        "of": of,
        "baseline": f"uneven:{theirs}",
        "versus": versus,
        "claim": claim,
        "config": _ANARCHIC,
        "made": _line,
        "method_options": _RETURNS | {"skew": skew},
        "baseline_options": _RETURNS | {"skew": skew},
        "metric": distance,
        "direction": "lower",
    }


ROWS: list[dict[str, Any]] = [
    {
        "method": "fedasync",
        "baseline": "fedasync",
        "claim": "weights against speed let asynchronous FedAvg learn what its slow clients know",
        "config": _SPREAD | {"rounds": 800, "eval_every": 50},
        "method_options": _LOCAL | {"lr": 0.02, "weigh": "unbiased"},
        "baseline_options": _LOCAL | {"lr": 0.02, "weigh": "identical"},
        "metric": "loss",
        "direction": "lower",
    },
    {
        "method": "fedfix",
        "baseline": "fedbuff",
        "claim": "FedFix-0.5 needs less virtual time to an accuracy than synchronous FedAvg (a buffer of all clients)",
        "config": _SPREAD | {"rounds": 200, "eval_every": 2, "target_accuracy": 0.8, "stop_at_target": True},
        "method_options": _LOCAL | {"lr": 0.05, "period": 0.5},
        "baseline_options": _LOCAL | {"lr": 0.05, "buffer": 10},
        "metric": "target_seconds",
        "direction": "lower",
    },
    {
        "method": "fedfix",
        "baseline": "fedasync",
        "claim": "FedFix-0.5 reaches an accuracy that asynchronous FedAvg with equal weights reaches later",
        "config": _SPREAD | {"rounds": 1500, "eval_every": 2, "target_accuracy": 0.85, "stop_at_target": True},
        "method_options": _LOCAL | {"lr": 0.05, "period": 0.5},
        "baseline_options": _LOCAL | {"lr": 0.005, "weigh": "identical"},
        "metric": "target_seconds",
        "direction": "lower",
    },
    {
        "method": "fedbuff",
        "baseline": "fedbuff",
        "claim": "weights against participation let FedBuff-3 learn what its slow clients know",
        "config": _SPREAD | {"rounds": 300, "eval_every": 20},
        "method_options": _LOCAL | {"lr": 0.05, "buffer": 3, "weigh": "unbiased"},
        "baseline_options": _LOCAL | {"lr": 0.05, "buffer": 3},
        "metric": "loss",
        "direction": "lower",
    },
    {
        "method": "afacs",
        "baseline": "afacd",
        "claim": "only AFA-CS removes the bias of clients that come more often",
        "config": _SPREAD | {"fleet": "spread:percent=0,slowest=0.2", "rounds": 400, "eval_every": 20},
        "method_options": {"returns": 3, "lr": 0.05, "server_lr": 0.25, "idle": 1.0, "skew": 3.0},
        "baseline_options": {"returns": 3, "lr": 0.05, "server_lr": 0.25, "idle": 1.0, "skew": 3.0},
        "metric": "loss",
        "direction": "lower",
    },
    _anarchic(
        "afacd",
        "Device",
        "sums that are not rescaled",
        "Unnormalised",
        "rescaled gradients remove the bias of unequal efforts, where all come equally often",
        0.0,
    ),
    _anarchic(
        "afacs",
        "Silo",
        "afacd",
        "Device",
        "only the last gradients of all remove the bias of who comes more often (rates as e^b), on quadratics",
        3.0,
    ),
]
