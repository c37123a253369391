"""Effects of the asynchronous methods, by rounds and by virtual time.

Each of ten clients has one class of MNIST, and client i takes 1 - 0.8 i / 9 seconds: the classes of slow clients are rare among the
updates. Both sides get the same rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from effect_study.rows import Row, Side
from made import distance, late_loss, quadratics

__all__ = ["ROWS"]

_SPREAD: dict[str, Any] = {
    "task": "mnist-5k",
    "model": "mlp",
    "task_options": {"hidden": [64]},
    "partition": "shards:1",
    "clients": 10,
    "cohort": 10,
    "fleet": "spread:percent=80",
}
_TIMED: dict[str, Any] = _SPREAD | {"eval_every": 2, "target_accuracy": 0.8, "stop_at_target": True}
_LOSS: dict[str, Any] = {"metric": late_loss, "better": "lower", "ratio": True, "margin": 0.05}
_TIME: dict[str, Any] = {
    "config": _TIMED,
    "metric": "target_seconds",
    "better": "lower",
    "ratio": True,
    "margin": 0.05,
    "bound": "seconds",
}
_LOCAL: dict[str, Any] = {"steps": 10, "batch_size": 16, "momentum": 0.0}
_SMALL = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
"""A client of one class moves the model alone in `fedasync`: rates that suit the mean of many are too large."""
_RATES = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4]

_ANARCHIC: dict[str, Any] = {
    "task": "quadratics",
    "partition": "natural",
    "clients": 20,
    "cohort": 20,
    "rounds": 300,
    "fleet": "spread:percent=0,slowest=0.2",
}


def line(seed: int) -> dict[str, Any]:
    """Return 20 clients with optima from -1.5 to 1.5; the higher it is, the more steps a client takes, from 1 to 10."""
    return {"task": quadratics(np.linspace(-1.5, 1.5, 20)[:, None], noise=0.2, seed=seed)}


def _side(method: str, rounds: int, name: str = "", rates: Sequence[float] = _RATES, **options: Any) -> Side:
    return Side(method, {"lr": rates}, _LOCAL | options, {"rounds": rounds}, name)


def _anarchic(method: str, name: str = "", skew: float = 0.0) -> Side:
    """Return a method on quadratics; the rates of server and clients are searched."""
    options = {"returns": 5, "batch_size": 1, "idle": 1.0, "skew": skew}
    return Side(method, {"lr": [0.005, 0.02], "server_lr": [0.02, 0.05, 0.1, 0.2]}, options, name=name)


def _often(method: str) -> Side:
    """Return a method on MNIST whose clients of high index participate most often."""
    search = {"lr": [0.01, 0.03, 0.1, 0.2], "server_lr": [0.1, 0.25]}
    return Side(method, search, {"returns": 3, "idle": 1.0, "skew": 3.0})


def _uneven(name: str, claim: str, method: Side, baseline: Side) -> Row:
    run = {"metric": distance, "better": "lower", "margin": 0.05, "ratio": True, "made": line}
    return Row(f"asynchronous/{name}", claim, method, baseline, _ANARCHIC, **run)


_SYNCHRONOUS = _side("fedbuff", 80, "synchronous FedAvg", buffer=10)
_OFTEN: dict[str, Any] = _SPREAD | {"fleet": "spread:percent=0,slowest=0.2", "rounds": 200, "eval_every": 10}

ROWS: list[Row] = [
    Row(
        "asynchronous/fedasync",
        "weights inverse to participation let asynchronous FedAvg learn the classes of its slow clients",
        _side("fedasync", 400, "fedasync with unbiased weights", _SMALL, weigh="unbiased"),
        _side("fedasync", 400, "fedasync with equal weights", _SMALL, weigh="identical"),
        _SPREAD | {"eval_every": 20},
        **_LOSS,
    ),
    Row(
        "asynchronous/fedfix",
        "FedFix-0.5 needs less virtual time to 80 % than synchronous FedAvg (a buffer of all clients)",
        _side("fedfix", 160),
        _SYNCHRONOUS,
        **_TIME,
        quick=True,
    ),
    Row(
        "asynchronous/fedfix-2",
        "FedFix-0.5 needs less virtual time to 80 % than asynchronous FedAvg with equal weights",
        _side("fedfix", 160),
        _side("fedasync", 600, "fedasync with equal weights", weigh="identical"),
        **_TIME,
    ),
    Row(
        "asynchronous/fedbuff",
        "weights inverse to participation let FedBuff-3 learn the classes of its slow clients",
        _side("fedbuff", 200, buffer=3, weigh="unbiased"),
        _side("fedbuff", 200, "fedbuff with equal weights", buffer=3),
        _SPREAD | {"eval_every": 20},
        **_LOSS,
    ),
    Row(
        "asynchronous/fedbuff-2",
        "FedBuff-3 needs less virtual time to 80 % than synchronous FedAvg",
        _side("fedbuff", 200, buffer=3, weigh="unbiased"),
        _SYNCHRONOUS,
        **_TIME,
    ),
    Row(
        "asynchronous/afacs",
        "where clients participate unequally often, AFA-CS ends at a lower loss than AFA-CD",
        _often("afacs"),
        _often("afacd"),
        _OFTEN,
        **_LOSS,
    ),
    _uneven(
        "afacd",
        "rescaled gradients remove the bias of unequal numbers of steps, where all clients participate equally often",
        _anarchic("uneven:Device", "afacd"),
        _anarchic("uneven:Unnormalised", "sums that are not rescaled"),
    ),
    _uneven(
        "afacs-2",
        "on quadratics too, only the last gradients of all clients remove the bias of unequal participation",
        _anarchic("uneven:Silo", "afacs", skew=3.0),
        _anarchic("uneven:Device", "afacd", skew=3.0),
    ),
]
