"""Effects on long-tailed data: Fashion-MNIST with the last class fifty times rarer than the first, and a balanced test set.

There are 600 pictures of the first class and 12 of the last. The tail are the three rarest classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from effect_study.rows import Row, Side
from paceline.data.assign import long_tail

__all__ = ["ROWS"]

_TAILED: dict[str, Any] = {
    "task": "fashion-mnist",
    "model": "mlp",
    "task_options": {"hidden": [64, 64], "limit": 6000},
    "partition": "longtail:0.02/0.5",
    "clients": 10,
    "cohort": 10,
    "rounds": 20,
    "eval_every": 20,
    "metrics": ["accuracy", "recall:per_class=true"],
}
_FRAME: dict[str, Any] = {"epochs": 3, "length": 1.0, "frame_steps": 2000, "frame_lr": 1e-3}
_RATES: dict[str, Any] = {"lr": [0.003, 0.01, 0.03, 0.1], "head_rate": [1.0, 4.0]}


def tail_accuracy(summary: Any) -> float:
    """Return the mean accuracy of the three rarest classes."""
    return float(np.mean([summary.history[-1][f"class_{label}_recall"] for label in (7, 8, 9)]))


def length_correlation(summary: Any) -> float:
    """Return the correlation of the lengths of the head's rows with the logarithm of the classes' frequencies."""
    name = next(name for name in reversed(list(summary.params)) if name.endswith("weight"))
    lengths = summary.params[name].norm(dim=1).numpy()
    return float(np.corrcoef(lengths, np.log(long_tail(600, 0.02, 10)))[0, 1])


ROWS: list[Row] = [
    Row(
        "personalisation/fedloge",
        "rows of one length make FedLoGe's global head more accurate on the three rarest classes than the head as it was trained",
        Side("fedloge", _RATES, _FRAME),
        Side("fedloge", _RATES, _FRAME | {"judge": "raw"}, name="fedloge without realignment"),
        _TAILED,
        metric=tail_accuracy,
    ),
    Row(
        "personalisation/fedloge-lengths",
        "lengths of the global head's rows follow the logarithm of the classes' frequencies (correlation above 0.6)",
        Side("fedloge", options=_FRAME | {"judge": "raw", "lr": 0.01}),
        0.6,
        _TAILED,
        metric=length_correlation,
        trials=1,
    ),
]
