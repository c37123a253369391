"""Directional effects of the methods for clients that come unequally often, or with unequal roles.

FedAvg on quadratics is FedAU's loop without weights, divided by those who come; it can be told to take so many steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from made import distance_row, quadratics, squared

__all__ = ["ROWS"]

_BIASED: dict[str, Any] = {"weigh": "participants"}


def _rare(seed: int) -> dict[str, Any]:
    """Twenty clients: the later one comes in the list, the higher is its optimum."""
    rng = np.random.default_rng(seed)
    return {"task": quadratics(rng.normal(size=(20, 5)) + np.linspace(-1.5, 1.5, 20)[:, None], noise=0.5, seed=seed)}


def _spread(spread: float) -> Callable[[int], dict[str, Any]]:
    def made(seed: int) -> dict[str, Any]:
        b = spread * np.random.default_rng(seed).normal(size=(24, 5))
        return {"task": quadratics(b, noise=0.5, seed=seed)}

    return made


def _anchored(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"task": quadratics(1.5 * rng.normal(size=(20, 5)), rng.uniform(0.5, 1.5, (20, 5)), noise=0.5, seed=seed)}


def _point(clients: int, rounds: int, participation: str = "always", cohort: int | None = None) -> dict[str, Any]:
    """Return a run on quadratics."""
    run = {"task": "quadratics", "partition": "natural", "clients": clients, "cohort": cohort or clients, "rounds": rounds}
    return run | {"participation": participation, "vectorize": "on", "chunk": cohort or clients}


def _several_times(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    return all(b > 3 * m for m, b in zip(ours, theirs, strict=True))


def _no_worse(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Return whether the mean difference of two errors is at most its standard error."""
    gaps = [m - b for m, b in zip(ours, theirs, strict=True)]
    return statistics.fmean(gaps) <= statistics.stdev(gaps) / len(gaps) ** 0.5


_FIVE: dict[str, Any] = {"lr": 0.02, "steps": 5, "batch_size": 1}
_UNEQUAL: dict[str, Any] = {"config": _point(20, 1500, "bernoulli:0.05-1"), "made": _rare}
_HALF = "bernoulli:1/0.5"
_TENTH = "bernoulli:1/0.1"
_STALE: dict[str, Any] = _FIVE | {"epochs": None, "rates": "known", "importance": "uniform"}

_DIGITS: dict[str, Any] = {
    "task": "digits",
    "partition": "dirichlet:0.1",
    "clients": 50,
    "cohort": 50,
    "rounds": 150,
    "eval_every": 10,
    "participation": "bernoulli:labels,mean=0.1,least=0.02",
    "allow_empty": True,
}
"""Rates are the best of 10^(j/4) for each method, and K of 20 and 50, found with other seeds (10, 11, 12)."""


def _stale(
    claim: str, spread: float, participation: str, ours: float, theirs: float, rounds: int = 1000, **more: Any
) -> dict[str, Any]:
    """Return a row of FedStale with two betas."""
    config = {"config": _point(24, rounds, participation), "made": _spread(spread), "metric": squared}
    options = [_STALE | {"beta": beta} for beta in (ours, theirs)]
    return distance_row("fedstale", "fedstale", claim, *options, **config, versus=f"fedstale, beta {theirs:g}", **more)


ROWS: list[dict[str, Any]] = [
    distance_row(
        "fedau",
        "fedau",
        "where rates go with optima, FedAU ends at a third of the distance of FedAvg over participants, or nearer, with every seed",
        _FIVE,
        _FIVE | _BIASED,
        versus="fedavg",
        holds=_several_times,
        **_UNEQUAL,
    ),
    distance_row(
        "fedau",
        "fedau",
        "so it does with intervals cut at K = 50",
        _FIVE | {"cutoff": 50},
        _FIVE | _BIASED,
        versus="fedavg",
        holds=_several_times,
        **_UNEQUAL,
    ),
    distance_row(
        "fedau",
        "fedau",
        "FedAU (K = 20) is more accurate than FedAvg over participants where rates go with the classes that clients have",
        {"lr": 0.316, "cutoff": 20},
        {"lr": 0.316, **_BIASED},
        versus="fedavg",
        config=_DIGITS,
        metric="accuracy",
        direction="higher",
        note="Equal on the mean; K = 50, at its own best rate of 0.1, ended 1.7 points below. All weights fit these data.",
    ),
    distance_row(
        "mifa",
        "fedau",
        "MIFA, the mean of everybody's last update, removes that bias as well",
        _FIVE,
        _FIVE | _BIASED,
        versus="fedavg",
        **_UNEQUAL | {"config": _point(20, 500, "bernoulli:0.05-1")},
    ),
    _stale("clients unlike, half of them there half the time: some stale updates lower the error", 3.0, _HALF, 0.5, 0.0, 500),
    _stale("all of them (beta = 1, FedVARP with inverse rates) lower it further", 3.0, _HALF, 1.0, 0.5, 500),
    _stale("the same where that half comes in a tenth of the rounds", 3.0, _TENTH, 1.0, 0.0, 500),
    _stale(
        "clients alike, half of them there in a tenth of the rounds: a little (beta = 0.2) beats FedVARP's beta",
        0.1,
        _TENTH,
        0.2,
        1.0,
    ),
    _stale("as does FedAvg's beta", 0.1, _TENTH, 0.0, 1.0),
    _stale("and a little is no worse than FedAvg's beta, within a standard error", 0.1, _TENTH, 0.2, 0.0, holds=_no_worse),
    distance_row(
        "fedvarp",
        "fedau",
        "clients unlike, 4 of 24 drawn in each round: FedVARP has less error than FedAvg",
        _FIVE,
        _FIVE | _BIASED,
        versus="fedavg",
        config=_point(24, 600, cohort=4),
        made=_spread(3.0),
        metric=squared,
    ),
    distance_row(
        "fedamd",
        "fedau",
        "with noisy small batches and 4 of 20 clients in each round, FedAMD ends nearer to the optimum than FedAvg",
        {"lr": 0.02, "steps": 10, "batch_size": 1, "anchor": 0.3},
        {"lr": 0.02, "steps": 10, "batch_size": 1, **_BIASED},
        versus="fedavg",
        config=_point(20, 500, cohort=4),
        made=_anchored,
    ),
]
