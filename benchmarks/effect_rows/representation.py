"""Effects of self-supervised features on MNIST: 4 clients with skewed classes, 300 steps in all."""

from __future__ import annotations

from typing import Any

from effect_study.rows import Row, Side

__all__ = ["ROWS"]

_SHARED: dict[str, Any] = {
    "task": "mnist-5k",
    "model": "vit",
    "task_options": {"dim": 32, "depth": 2, "limit": 1000},
    "partition": "dirichlet:0.5",
    "clients": 4,
    "cohort": 4,
    "rounds": 30,
    "eval_every": 30,
}
_STEPS: dict[str, Any] = {
    "steps": 10,
    "batch_size": 48,
    "crops": 2,
    "prototypes": 256,
    "hidden": 64,
    "bottleneck": 32,
    "momentum": 0.98,
    "schedule_rounds": 30,
    "mirrored": False,
    "lr": 0.01,
}


def left(summary: Any) -> float:
    """Return the share of a patch's position that a linear regression still explains after its removal."""
    return float(summary.history[-1]["note_position_r2_left"])


def _side(name: str, **more: Any) -> Side:
    return Side("franca", {}, _STEPS | more, name=name)


ROWS: list[Row] = [
    Row(
        "representation/franca",
        "a linear probe of Franca's features is at least 10 points more accurate than one of a random network's",
        _side("franca"),
        _side("random features", lr=0.0),
        _SHARED,
        by=0.1,
        trials=1,
        quick=True,
    ),
    Row(
        "representation/franca-short",
        "the first 8 of 32 features are more accurate with nested slices than with a single head",
        _side("franca with slices", nest="slice", probe_dims=8),
        _side("single head", levels=1, probe_dims=8),
        _SHARED,
        margin=0.01,
        trials=1,
    ),
    Row(
        "representation/franca-rasa",
        "after its removal, a linear regression explains less than a tenth of the position of patches",
        _side("franca", rasa=9),
        0.1,
        _SHARED,
        metric=left,
        better="lower",
        margin=0.0,
        trials=1,
    ),
]
