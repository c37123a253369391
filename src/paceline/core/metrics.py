"""Metrics over many clients: spread of accuracies, and quality of clusterings.

The spread is computed from sums alone, so the server never sees one client's accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["BINS", "adjusted_rand", "figures", "spread", "spread_figures"]

BINS = 101
"""Number of bins in the histogram of accuracies: one per percentage point."""


def figures(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Return accuracy, mean loss and worst-class accuracy from summed evaluations, and accuracy and loss of each part.

    Where nothing was classified (a black-box objective), there are no accuracies.

    Args:
        sums: summed results of `paceline.core.evaluation.evaluate`.
    """
    count = max(int(sums["count"]), 1)
    per_class = sums["class_correct"].double() / sums["class_count"].clamp(min=1)
    present = sums["class_count"] > 0
    counts = [max(n, 1) for n in sums.get("part_count", ())]
    parts = {
        f"part_{i}_{figure}": value / n
        for key, figure in (("correct", "accuracy"), ("loss", "loss"))
        for i, (value, n) in enumerate(zip(sums.get(f"part_{key}", ()), counts, strict=False))
    }
    if int(sums["count"]) and not bool(present.any()):
        return {"loss": sums["loss"] / count}
    return {
        **parts,
        "accuracy": sums["correct"] / count,
        "loss": sums["loss"] / count,
        "worst_class_accuracy": float(per_class[present].min()) if bool(present.any()) else math.nan,
    }


def spread(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Add terms to a client's evaluation from which `spread_figures` computes the spread over clients.

    Args:
        sums: ``correct`` and ``count`` (and more, passed through) as returned by `paceline.core.evaluation.evaluate`.
    """
    bins = torch.zeros(BINS, dtype=torch.int64)
    classified = "class_count" not in sums or int(sums["class_count"].sum()) > 0
    known = sums["count"] > 0 and classified
    accuracy = sums["correct"] / max(sums["count"], 1)
    if known:
        bins[round(accuracy * (BINS - 1))] = 1
    return {**sums, "bins": bins, "clients": int(known), "accuracies": accuracy, "squares": accuracy**2}


def spread_figures(total: Mapping[str, Any], worst: float = 0.1) -> dict[str, float]:
    """Return mean, worst part and standard deviation of the clients' accuracies, from the sum of their `spread`.

    The mean of the worst clients is computed from the histogram and is exact to half a percentage point. Without clients
    all figures are NaN.

    Args:
        total: sum of the clients' `spread`.
        worst: fraction of the clients in the worst part; at least one client.
    """
    clients = int(total["clients"])
    if clients <= 0:
        return dict.fromkeys(("client_accuracy", "worst_client_accuracy", "client_deviation"), math.nan)
    mean = total["accuracies"] / clients
    # untrusted sums: clip counts to 0 .. number of clients
    counts = np.clip(np.rint(np.asarray(total["bins"], dtype=np.float64)), 0, clients)
    taken = np.diff(np.minimum(np.cumsum(counts), max(round(worst * clients), 1)), prepend=0)
    return {
        "client_accuracy": mean,
        "worst_client_accuracy": float(taken @ (np.arange(BINS) / (BINS - 1)) / max(taken.sum(), 1)),
        "client_deviation": math.sqrt(max(total["squares"] / clients - mean**2, 0.0)),
    }


def adjusted_rand(found: Sequence[int], true: Sequence[int]) -> float:
    """Return the adjusted Rand index of two labellings: 1 for equal partitions, about 0 by chance.

    Args:
        found, true: label of each item, in the same order; only equality of labels counts.

    Example:
        >>> adjusted_rand([0, 0, 1, 1], [5, 5, 3, 3])
        1.0
    """
    table = np.zeros((len(set(found)), len(set(true))))
    np.add.at(table, (np.unique(found, return_inverse=True)[1], np.unique(true, return_inverse=True)[1]), 1)

    def pairs(counts: Any) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = rows * columns / max(pairs(table.sum()), 1.0)
    most = (rows + columns) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)
