"""Directional effects of robust aggregation and of clustering: 15 clients, 3 of them Byzantine, or 3 true groups."""

from __future__ import annotations

from typing import Any

__all__ = ["ROWS"]

_FIFTEEN: dict[str, Any] = {"task": "digits", "clients": 15, "cohort": 15, "rounds": 40, "eval_every": 10}
_LOCAL: dict[str, Any] = {"lr": 0.05, "epochs": 1, "batch_size": 16}
_STEP: dict[str, Any] = _LOCAL | {"rank": 8, "rescale": "median", "server_lr": 1.0, "server_momentum": 0.0, "server_decay": 0.0}
"""The flag aggregator's direction with a step as long as a median update, so that rules differ in direction alone."""

_GROUPS: dict[str, Any] = {
    "task": "digits",
    "task_options": {"hidden": [64]},
    "partition": "groups:0-3/4-6/7-9",
    "client_samples": 60,
    "clients": 15,
    "cohort": 15,
    "rounds": 30,
    "eval_every": 10,
    "evaluation": "clients",
}
_CLUSTERED: dict[str, Any] = {"lr": 0.05, "epochs": 3, "batch_size": 16}


def _row(method: str, baseline: str, claim: str, attack: str, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    config = _FIFTEEN | {"adversary": attack}
    return {
        "method": method,
        "baseline": baseline,
        "claim": f"{claim} ({attack})",
        "config": config,
        "method_options": ours,
        "baseline_options": theirs,
        "metric": "accuracy",
        "direction": "higher",
    }


ROWS: list[dict[str, Any]] = [
    _row("flag", "fedavg", "the flag aggregator learns where the mean does not", "random:0.2", _STEP, _LOCAL),
    _row("flag", "median", "the flag aggregator is at least as good as the median", "random:0.2", _STEP, _LOCAL),
    _row("flag", "median", "the flag aggregator is at least as good as the median", "signflip:0.2,scale=10", _STEP, _LOCAL),
    _row(
        "flag",
        "flag",
        "the subspace helps beyond normalising (its full rank is the mean of normalised updates)",
        "signflip:0.2,scale=10",
        _STEP,
        _STEP | {"rank": 15},
    ),
    _row("flag", "multikrum", "the flag aggregator is at least as good as Multi-Krum", "minmax:0.2", _STEP, _LOCAL),
    *(
        _row(rule, "fedavg", f"{rule} bears with reversed updates", "signflip:0.2,scale=3", _LOCAL, _LOCAL)
        for rule in ("median", "trimmedmean", "geometricmedian", "krum", "multikrum", "meamed", "phocas")
    ),
    _row("bulyan", "fedavg", "Bulyan bears with noise", "gaussian:0.15", _LOCAL | {"byzantine": 0.15}, _LOCAL),
    {
        "method": "ocfl",
        "baseline": "fedavg",
        "claim": "a model for each found group serves its members better than one for all",
        "config": _GROUPS,
        "method_options": _CLUSTERED,
        "baseline_options": _CLUSTERED,
        "metric": "client_accuracy",
        "direction": "higher",
    },
    {
        "method": "ocfl",
        "baseline": "ocfl",
        "claim": "the found groups are the true ones (against one group for all)",
        "config": _GROUPS,
        "method_options": _CLUSTERED,
        "baseline_options": _CLUSTERED | {"patience": 1000},
        "metric": "adjusted_rand",
        "direction": "higher",
    },
    {
        "method": "ocfl",
        "baseline": "ocfl",
        "claim": "HDBSCAN finds the true groups as well (against one group for all)",
        "config": _GROUPS,
        "method_options": _CLUSTERED | {"backend": "hdbscan"},
        "baseline_options": _CLUSTERED | {"patience": 1000},
        "metric": "adjusted_rand",
        "direction": "higher",
    },
]
