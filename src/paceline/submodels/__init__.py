"""Sub-models: cut physically smaller dense models out of a full one, train them, and merge them back.

A slow client retains the important units, trains a smaller network and returns an update that is zero at untrained
coordinates::

    cutter = Cutter(model, Layout.of(model), example_batch)
    kept = Rank()(scores, cutter.keep(0.5), rng)
    sub = cutter.cut(kept)
    resident = sub.resident()
    resident.load(sub.extract(params))
    ...  # train resident
    update = sub.scatter(resident.snapshot() - sub.extract(params))

`graph` finds the units, `cut` creates sub-models, `scores` and `select` choose the units to keep, `policy`, `controller` and
`pacing` their number, `merge` computes the mean. `service` provides all this to client functions.
"""

from paceline.submodels.controller import Controller, Decision
from paceline.submodels.cut import TIERS, Cutter, SubModel, keep_count
from paceline.submodels.graph import AxisUnits, UnitGraph
from paceline.submodels.merge import coverage, filled, inclusion, masked_mean, zero_fill
from paceline.submodels.policy import (
    CostModel,
    StragglerSet,
    compute_fraction,
    find_stragglers,
    fluid_fraction,
    network_fraction,
)
from paceline.submodels.scores import Scorer, combine, steady_mask, unknown
from paceline.submodels.select import Kept, Ordered, RandomDrop, Rank, Rule, Threshold, explore, rule

__all__ = [
    "TIERS",
    "AxisUnits",
    "Controller",
    "CostModel",
    "Cutter",
    "Decision",
    "Kept",
    "Ordered",
    "RandomDrop",
    "Rank",
    "Rule",
    "Scorer",
    "StragglerSet",
    "SubModel",
    "Threshold",
    "UnitGraph",
    "combine",
    "compute_fraction",
    "coverage",
    "explore",
    "filled",
    "find_stragglers",
    "fluid_fraction",
    "inclusion",
    "keep_count",
    "masked_mean",
    "network_fraction",
    "rule",
    "steady_mask",
    "unknown",
    "zero_fill",
]
