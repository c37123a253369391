"""Directional effects of robust aggregation and of clustering: 15 clients, 3 of them Byzantine, or 3 true groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from made import permuted_labels

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

_FIVE_SEEDS = range(5)


def split_round(summary: Any) -> float:
    """Return the round of the split, or the last one where there is none."""
    return next((float(r["round"]) for r in summary.history if r.get("note_clusters", 1) > 1), float(summary.history[-1]["round"]))


def _permuted(seed: int) -> dict[str, Any]:
    return permuted_labels(seed, groups=3, members=5, samples=60, hidden=[64])


def _found(least: int) -> Any:
    """Return a rule: the groups are found by at least so many seeds, with an adjusted Rand index of 0.9."""

    def holds(ours: Sequence[float], theirs: Sequence[float]) -> bool:
        return sum(value >= 0.9 for value in ours) >= least

    return holds


def _groups(claim: str, ours: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "method": "ocfl",
        "baseline": "ocfl",
        "versus": "one group for all",
        "claim": claim,
        "config": _GROUPS,
        "method_options": _CLUSTERED | ours,
        "baseline_options": _CLUSTERED | {"patience": 1000},
        "metric": "adjusted_rand",
        "direction": "higher",
        "seeds": _FIVE_SEEDS,
        "holds": _found(4),
        **more,
    }


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
        "seeds": _FIVE_SEEDS,
    },
    _groups("average linkage finds the true groups with at least 4 of 5 seeds", {}),
    _groups("HDBSCAN finds the true groups with at least 4 of 5 seeds", {"backend": "hdbscan"}),
    _groups(
        "the split comes before round 10 with every seed",
        {},
        metric=split_round,
        direction="lower",
        holds=lambda ours, theirs: all(value < 10 for value in ours),
    ),
    *(
        _groups(
            f"groups that name the classes differently, for the same pictures, are found with at least 3 of 5 seeds ({backend})",
            {"backend": backend},
            holds=_found(3),
            made=_permuted,
            config=_GROUPS | {"partition": "permuted labels"},
        )
        for backend in ("average", "hdbscan")
    ),
    _groups(
        "and a model for each of these groups serves its members better than FedAvg's",
        {},
        baseline="fedavg",
        versus="fedavg",
        baseline_options=_CLUSTERED,
        metric="client_accuracy",
        holds=None,
        made=_permuted,
        config=_GROUPS | {"partition": "permuted labels"},
    ),
]
