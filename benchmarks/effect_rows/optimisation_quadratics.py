"""Effects of the optimisation methods on quadratics with a known optimum.

FedAvg is the case beta = 1 of FedAvg-M, or FedSpeed without term, dual and ascent, whose local steps can be set. Rates of server and
clients are searched for both: a small rate of the clients with a large one of the server has no drift at all.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from effect_study.rows import Row, Side
from made import distance, quadratics

__all__ = ["ROWS"]


def unlike(clients: int, noise: float, seed: int) -> dict[str, Any]:
    """Return clients with different optima and curvatures."""
    rng = np.random.default_rng(seed)
    b, a = 1.5 * rng.normal(size=(clients, 5)), rng.uniform(0.5, 1.5, (clients, 5))
    return {"task": quadratics(b, a, noise, seed)}


def _point(clients: int, cohort: int, rounds: int, noise: float) -> dict[str, Any]:
    """Return the configuration and the task of a run on quadratics."""
    run = {"task": "quadratics", "partition": "natural", "clients": clients, "cohort": cohort, "rounds": rounds}
    config = run | {"vectorize": "on", "chunk": cohort}
    return {"config": config, "made": functools.partial(unlike, clients, noise)}


def _nearer(name: str, claim: str, method: Side, baseline: Side, run: Mapping[str, Any], **more: Any) -> Row:
    """Return a row whose figure is the distance to the optimum, compared as a ratio."""
    row = {"metric": distance, "better": "lower", "ratio": True, "margin": 0.05, **run, **more}
    return Row(f"optimisation/{name}", claim, method, baseline, **row)


_FULL = _point(10, 10, 100, noise=0.5)
_TWO = _point(20, 2, 200, noise=0.5)
_NOISY = _point(10, 10, 100, noise=3.0)
_FOUR_OF_20 = _point(20, 4, 200, noise=0.2)
_TEN = _point(10, 10, 150, noise=0.2)
_TEN_NOISY = _point(10, 10, 150, noise=0.5)


def _momentum(method: str, steps: int, rates: Sequence[float], name: str = "", **options: Any) -> Side:
    """Return a method with momentum, or its case without (beta = 1); only the latter depends much on the clients' rate."""
    plain = "beta" in options
    other: dict[str, Sequence[Any]] = {"lr": [0.002, 0.01]} if plain else {"beta": [0.1, 0.3]}
    fixed = {"steps": steps, "batch_size": 1, **options} | ({} if plain else {"lr": 0.01})
    return Side(method, {"server_lr": rates, **other}, fixed, name=name)


def _noisy(method: str, name: str = "", beta: float = 0.1) -> Side:
    """Return a method with small rates of the clients, which variance reduction needs."""
    return Side(
        method,
        {"lr": [0.001, 0.002, 0.005, 0.01], "server_lr": [0.05, 0.1]},
        {"steps": 10, "batch_size": 1, "beta": beta},
        name=name,
    )


def _speed(prox: float, name: str = "", **options: Any) -> Side:
    """Return FedSpeed without ascent, clipping and decay; without the term too, it is FedAvg."""
    plain = {"steps": 10, "batch_size": 1, "radius": 0.0, "clip": None, "lr_decay": 1.0, "weight_decay": 0.0}
    return Side("fedspeed", {"lr": [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]}, plain | {"prox": prox} | options, name=name)


_PLAIN = _speed(0.0, "fedavg")
_SAMPLED = _speed(1.0, "fedspeed with the duals of sampled clients", dual_mean="sampled")
_SERVER = [0.05, 0.1, 0.2, 0.4]
_SLOW_SERVER = [0.02, 0.05, 0.1, 0.2]

ROWS: list[Row] = [
    _nearer(
        "fedavgm",
        "momentum brings FedAvg (its case beta = 1) nearer to the optimum, with all clients in each round",
        _momentum("fedavgm", 20, _SERVER),
        _momentum("fedavgm", 20, _SERVER, "fedavg", beta=1.0),
        _FULL,
        quick=True,
        note="Both were given the same rates of the server; a small one averages the noise of rounds as momentum does",
    ),
    _nearer(
        "scaffoldm",
        "momentum brings SCAFFOLD (its case beta = 1) nearer to the optimum, with 2 of 20 clients in each round",
        _momentum("scaffoldm", 10, _SLOW_SERVER),
        _momentum("scaffoldm", 10, _SLOW_SERVER, "scaffold", beta=1.0),
        _TWO,
        note="SCAFFOLD gets the same rates of the server. At one rate of 1 it was a third farther away",
    ),
    _nearer(
        "fedavgmvr",
        "with much noise and a small rate, variance reduction brings FedAvg-M nearer to the optimum",
        _noisy("fedavgmvr"),
        _noisy("fedavgm"),
        _NOISY,
    ),
    _nearer(
        "fedavgmvr-2",
        "with much noise, FedAvg-M-VR ends nearer to the optimum than FedAvg (beta = 1)",
        _noisy("fedavgmvr"),
        _noisy("fedavgm", "fedavg", beta=1.0),
        _NOISY,
    ),
    _nearer(
        "fedspeed",
        "with the duals of all clients FedSpeed (lambda = 10) ends nearer to the optimum than FedAvg, 4 of 20 clients",
        _speed(0.1),
        _PLAIN,
        _FOUR_OF_20,
    ),
    _nearer(
        "fedspeed-2",
        "with a strong proximal term (lambda = 1) FedSpeed ends nearer to the optimum than FedAvg, 4 of 20 clients",
        _speed(1.0),
        _PLAIN,
        _FOUR_OF_20,
    ),
    _nearer(
        "fedspeed-3",
        "FedAvg ends nearer to the optimum than FedSpeed (lambda = 1) with the duals of the sampled clients alone",
        _PLAIN,
        _SAMPLED,
        _FOUR_OF_20,
    ),
    _nearer(
        "fedspeed-4",
        "with all clients in each round FedSpeed (lambda = 10) ends nearer to the optimum than FedAvg (noise 0.2)",
        _speed(0.1),
        _PLAIN,
        _TEN,
    ),
    _nearer(
        "fedspeed-5",
        "with 2.5 times the noise FedSpeed (lambda = 10) still ends nearer to the optimum than FedAvg",
        _speed(0.1),
        _PLAIN,
        _TEN_NOISY,
        note="Duals accumulate the noise of every round, which FedAvg averages; at fixed rates 200, 500 and 800 rounds were tried",
    ),
]
