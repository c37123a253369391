"""Partial sums of tiers, as workers form them and engines combine them."""

import pickle

import torch

from paceline.aggregation.fixed_point import FixedPoint
from paceline.aggregation.nested import ByTier
from paceline.core.nested import segment_name
from paceline.core.update import Update


def test_partial_sums_of_two_workers_merge_by_tier():
    """An engine that combines partial sums where they are formed, such as Ray, calls nothing but `merge`."""
    partials = []
    for values in ({0: 1.0, 1: 2.0}, {1: 3.0, 2: 4.0}):
        sink = ByTier(FixedPoint(clients=4)).open()
        for tier, value in values.items():
            sink.add(tier, Update(weight=1.0, **{segment_name("delta", tier): torch.full((3,), value)}), lambda: 0)
        partials.append(pickle.loads(pickle.dumps(sink.partial())))
    total, other = partials
    total.merge(other)
    sums = {tier: part.values() for tier, part in total.items()}
    assert sorted(sums) == [0, 1, 2]
    assert {tier: float(tensors[0][0]) for tier, (tensors, *_) in sums.items()} == {0: 1.0, 1: 5.0, 2: 4.0}
