"""Effects of the methods for clients that participate unequally often, or with unequal roles.

FedAvg is FedAU's loop without weights, divided by the number of participants; its local steps can be set. Both sides of a row
get the same rates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from effect_study.rows import Metric, Row, Side
from made import distance, late_accuracy, quadratics, squared

__all__ = ["ROWS"]

_RATES = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
_HALF = "bernoulli:1/0.5"
_TENTH = "bernoulli:1/0.1"


def rising(seed: int) -> dict[str, Any]:
    """Return 20 clients whose optima rise with their index, as their participation does."""
    rng = np.random.default_rng(seed)
    return {"task": quadratics(rng.normal(size=(20, 5)) + np.linspace(-1.5, 1.5, 20)[:, None], noise=0.5, seed=seed)}


def spread(deviation: float, seed: int) -> dict[str, Any]:
    """Return 24 clients with the given deviation of their optima."""
    b = deviation * np.random.default_rng(seed).normal(size=(24, 5))
    return {"task": quadratics(b, noise=0.5, seed=seed)}


def curved(seed: int) -> dict[str, Any]:
    """Return 20 clients with different optima and curvatures."""
    rng = np.random.default_rng(seed)
    return {"task": quadratics(1.5 * rng.normal(size=(20, 5)), rng.uniform(0.5, 1.5, (20, 5)), noise=0.5, seed=seed)}


def _point(clients: int, rounds: int, participation: str = "always", cohort: int | None = None) -> dict[str, Any]:
    """Return a run on quadratics."""
    run = {"task": "quadratics", "partition": "natural", "clients": clients, "cohort": cohort or clients, "rounds": rounds}
    return run | {"participation": participation, "vectorize": "on", "chunk": cohort or clients}


def _side(method: str, steps: int = 5, name: str = "", **options: Any) -> Side:
    """Return a method with eight rates."""
    return Side(method, {"lr": _RATES}, {"steps": steps, "batch_size": 1} | options, name=name)


def _nearer(
    name: str, claim: str, sides: tuple[Side, Side], config: Mapping[str, Any], made: Any, metric: Metric = distance, **more: Any
) -> Row:
    """Return a row whose figure is an error, compared as a ratio."""
    row = {"metric": metric, "better": "lower", "ratio": True, "margin": 0.05, "made": made, **more}
    return Row(f"participation/{name}", claim, *sides, config, **row)


_FEDAVG = _side("fedau", name="fedavg", weigh="participants")
_UNEQUAL: dict[str, Any] = {"config": _point(20, 400, "bernoulli:0.05-1"), "made": rising}


def _betas(number: int, claim: str, ours: float, theirs: float, deviation: float, participation: str, **more: Any) -> Row:
    """Return a row of FedStale with two values of beta."""
    options: dict[str, Any] = {"epochs": None, "rates": "known", "importance": "uniform"}
    sides = _side("fedstale", **options, beta=ours), _side("fedstale", name=f"fedstale, beta {theirs:g}", **options, beta=theirs)
    config, made = _point(24, 250, participation), functools.partial(spread, deviation)
    return _nearer(f"fedstale-{number}" if number > 1 else "fedstale", claim, sides, config, made, squared, **more)


_RARE: dict[str, Any] = {
    "task": "fashion-mnist",
    "model": "mlp",
    "task_options": {"hidden": [64]},
    "partition": "dirichlet:0.1",
    "client_samples": 100,
    "clients": 50,
    "cohort": 50,
    "rounds": 80,
    "eval_every": 10,
    "participation": "bernoulli:labels,mean=0.1,least=0.02",
    "allow_empty": True,
}

ROWS: list[Row] = [
    _nearer(
        "fedau",
        "where participation rises with the optimum, FedAU ends within a third of FedAvg's distance to the common optimum",
        (_side("fedau"), _FEDAVG),
        **_UNEQUAL,
        margin=math.log(3.0),
        quick=True,
    ),
    _nearer(
        "fedau-2",
        "so does FedAU with intervals cut at K = 50",
        (_side("fedau", cutoff=50), _FEDAVG),
        **_UNEQUAL,
        margin=math.log(3.0),
    ),
    Row(
        "participation/fedau-3",
        "FedAU is more accurate than FedAvg where participation depends on the classes that clients have",
        Side("fedau", {"lr": [0.01, 0.03, 0.1, 0.3], "cutoff": [20, 50]}, {"epochs": 1, "batch_size": 20}),
        Side(
            "fedau",
            {"lr": [0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3]},
            {"epochs": 1, "batch_size": 20, "weigh": "participants"},
            name="fedavg",
        ),
        _RARE,
        metric=late_accuracy,
        margin=0.01,
        note="K = 20 and K = 50 were tried. Weights of clients that rarely participate are large, and so is their noise",
    ),
    _nearer(
        "mifa",
        "MIFA, the mean of the last updates of all clients, removes the bias of unequal participation as well",
        (_side("mifa"), _FEDAVG),
        **_UNEQUAL,
    ),
    _betas(
        1, "clients differ and half of them participate half of the time: some stale updates lower the error", 0.5, 0.0, 3.0, _HALF
    ),
    _betas(2, "all stale updates (beta = 1, FedVARP with inverse rates) lower it further", 1.0, 0.5, 3.0, _HALF),
    _betas(3, "so they do where half of the clients participate in a tenth of the rounds", 1.0, 0.0, 3.0, _TENTH),
    _betas(
        4,
        "clients are alike and half of them participate in a tenth of the rounds: beta = 0.2 has less error than FedVARP's beta",
        0.2,
        1.0,
        0.1,
        _TENTH,
    ),
    _betas(5, "there FedAvg's beta has less error than FedVARP's too", 0.0, 1.0, 0.1, _TENTH),
    _betas(6, "there beta = 0.2 is no worse than FedAvg's beta, to within 5 %", 0.2, 0.0, 0.1, _TENTH, at_least=True),
    _nearer(
        "fedvarp",
        "clients differ and 4 of 24 are drawn in each round: FedVARP has less error than FedAvg",
        (_side("fedvarp"), _FEDAVG),
        _point(24, 300, cohort=4),
        functools.partial(spread, 3.0),
        squared,
    ),
    _nearer(
        "fedamd",
        "with noisy small batches and 4 of 20 clients in each round, FedAMD ends nearer to the optimum than FedAvg",
        (
            Side("fedamd", {"lr": [0.005, 0.01, 0.02, 0.05], "anchor": [0.1, 0.3]}, {"steps": 10, "batch_size": 1}),
            _side("fedau", 10, "fedavg", weigh="participants"),
        ),
        _point(20, 150, cohort=4),
        curved,
    ),
]
