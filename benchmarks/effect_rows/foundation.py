"""Directional effects of tuning pretrained models.

`vit-tuning` is here a vision transformer (width 64, 4 blocks) that learned classes 0 to 4 of Fashion-MNIST centrally. The rate
of each prototype is the best of 0.05, 0.2 and 0.5 by its mean accuracy over the three seeds; the rate of instruction tuning,
federated or alone, is the best of 0.001, 0.003, 0.01 and 0.03 by the mean loss.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

__all__ = ["ROWS"]

_TUNING: dict[str, Any] = {
    "task": "vit-tuning",
    "task_options": {"of": "fashion-mnist", "limit": 6000, "epochs": 12},
    "partition": "dirichlet:0.1",
    "allow_empty": True,
    "clients": 20,
    "cohort": 4,
    "rounds": 20,
    "eval_every": 20,
}
_LOCAL: dict[str, Any] = {"epochs": 2, "batch_size": 32, "momentum": 0.0}
_BIAS, _HEAD, _FULL = ({**_LOCAL, "peft": p, "lr": lr} for p, lr in (("bias", 0.2), ("head", 0.2), ("full", 0.05)))

_HEADS_ACCURACY = 0.508
"""What the head alone ends with, on average over the seeds, in the first row."""


def bytes_to_the_heads_accuracy(summary: Any) -> float:
    """Return the bytes that crossed, both ways, until the accuracy was first reached; NaN if it never was."""
    crossed = 0
    for record in summary.history:
        crossed += record["bytes_up"] + record["bytes_down"]
        if record["accuracy"] >= _HEADS_ACCURACY:
            return float(crossed)
    return math.nan


def bytes_per_round(summary: Any) -> float:
    return (summary.bytes_up + summary.bytes_down) / summary.rounds


def _row(baseline: dict[str, Any], claim: str, **rest: Any) -> dict[str, Any]:
    row = {"method": "fedpeft", "baseline": "fedpeft", "versus": f"fedpeft:peft={baseline['peft']}"}
    row |= {"claim": claim, "config": _TUNING, "method_options": _BIAS, "baseline_options": baseline}
    return row | {"metric": "accuracy", "direction": "higher"} | rest


ROWS: list[dict[str, Any]] = [
    _row(_HEAD, "biases with the head are more accurate than the head alone"),
    _row(
        _FULL,
        "biases are within 3 points of full tuning",
        holds=lambda ours, theirs: fmean(ours) > fmean(theirs) - 0.03,
        note="This model is small and was pretrained on 1,500 pictures of five classes; the paper's on millions of thousands of classes.",
    ),
    _row(
        _FULL,
        "biases take at most a tenth of full tuning's bytes in a round",
        metric=bytes_per_round,
        direction="lower",
        holds=lambda ours, theirs: all(10 * m <= b for m, b in zip(ours, theirs, strict=True)),
        config={**_TUNING, "rounds": 1, "eval_every": 1},
    ),
    _row(
        _FULL,
        "to the accuracy of the head alone biases take at most a fifth of full tuning's bytes",
        metric=bytes_to_the_heads_accuracy,
        direction="lower",
        holds=lambda ours, theirs: 5 * fmean(ours) <= fmean(theirs),
        config={**_TUNING, "eval_every": 1},
    ),
    {
        "method": "fedit",
        "baseline": "localtuning",
        "claim": "federated tuning has a lower loss over all eight categories of instructions than clients that tune alone",
        "config": {
            "task": "instructions",
            "partition": "shards:2",
            "clients": 10,
            "cohort": 10,
            "rounds": 10,
            "eval_every": 10,
            "evaluation": "clients-central",
        },
        "method_options": {"rank": 4, "alpha": 8, "epochs": 2, "lr": 0.03},
        "baseline_options": {"rank": 4, "alpha": 8, "epochs": 2, "lr": 0.001},
        "metric": "loss",
        "direction": "lower",
    },
]
