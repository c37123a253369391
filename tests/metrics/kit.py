"""Evaluate a metric on whole data, and on parts whose packed terms are summed."""

from __future__ import annotations

import math

import torch

from paceline.core.metrics import added, measured, packed


def whole(metric, outputs, targets):
    return metric.figures({k: v if not v.is_floating_point() else v.double() for k, v in metric.terms(outputs, targets).items()})


def summed(metric, outputs, targets, sizes):
    """Return the figures of parts that are packed, summed as integers in another order, and unpacked."""
    parts = []
    for rows in torch.split(torch.arange(sum(sizes)), list(sizes)):
        parts.append({metric.figure: packed(metric.terms(pick(outputs, rows), pick(targets, rows)))})
    total = added(parts[::-1])
    assert all(not t.is_floating_point() for kind in total[metric.figure].values() for t in kind.values())
    return measured({"metrics": total}, [metric])


def pick(tree, rows):
    return {k: v[rows] for k, v in tree.items()} if isinstance(tree, dict) else tree[rows]


def same(a, b, tolerance=1e-9):
    assert a.keys() == b.keys()
    return all(math.isclose(a[k], b[k], rel_tol=tolerance, abs_tol=tolerance) or (math.isnan(a[k]) and math.isnan(b[k])) for k in a)
