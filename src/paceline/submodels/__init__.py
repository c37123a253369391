"""Sub-models: cutting physically smaller dense models out of a full one, training them, merging them back.

A slow client keeps the units that matter, trains a smaller network and returns an update that is zero
where nothing was trained::

    cutter = Cutter(model, Layout.of(model), example_batch)
    kept = Rank()(scores, cutter.keep(0.5), rng)
    sub = cutter.cut(kept)
    resident = sub.resident()
    resident.load(sub.extract(params))
    ...  # train resident
    update = sub.scatter(resident.snapshot() - sub.extract(params))

`graph` finds the units, `cut` makes sub-models, `scores` and `select` choose what to keep, `policy` and
`controller` how much, `merge` forms the mean. `service` is how client functions reach all this.
"""

from paceline.submodels.controller import Controller, Decision
from paceline.submodels.cut import TIERS, Cutter, SubModel, keep_count
from paceline.submodels.graph import AxisUnits, UnitGraph
from paceline.submodels.merge import coverage, masked_mean, zero_fill
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
    "find_stragglers",
    "fluid_fraction",
    "keep_count",
    "masked_mean",
    "network_fraction",
    "rule",
    "steady_mask",
    "unknown",
    "zero_fill",
]
