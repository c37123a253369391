"""Sums over disjoint clients are added."""

import torch

from paceline.aggregation.nested import tier_of, together
from paceline.core.engine import Summed
from paceline.core.update import Update


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
