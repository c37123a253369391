"""Partial sums of tiers, as workers form them and engines combine them."""

import pickle

import torch

from paceline.aggregation.fixed_point import FixedPoint
from paceline.aggregation.nested import ByTier, tier_of, together
from paceline.core.engine import Summed
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


def part(factor, survivors, **notes):
    tensors, counts = [factor * torch.ones(2)], [factor * torch.ones(2)]
    return Summed("s", tensors, [2.0 * factor], counts, survivors, notes)


def test_all_of_a_sum_is_added_notes_included():
    total = together([part(1, (4, 1), clipped=1.0, failed=2.0), part(10, (3,), clipped=5.0), part(100, (2,), refused=7.0)])
    assert total.tensors[0].tolist() == total.denominators[0].tolist() == [111.0, 111.0]
    assert total.scalars == [222.0]
    assert total.survivors == (1, 2, 3, 4)
    assert total.notes == {"clipped": 6.0, "failed": 2.0, "refused": 7.0}


def test_a_reply_without_segments_is_of_the_whole_model():
    assert tier_of(Update(delta=torch.zeros(2))) == tier_of(None) == 0
