"""The leading units of a public order, by hand."""

import pytest
import torch

from paceline.core.errors import ProtocolError
from paceline.submodels.nesting import leading_units


@pytest.mark.parametrize(
    ("scores", "count", "kept"),
    [([0.1, 0.9, 0.5, 0.7], 2, [1, 3]), ([0.5, 0.9, 0.5, 0.5], 3, [0, 1, 2]), ([-1.0, -3.0, -2.0, 0.0], 1, [3])],
)
def test_the_highest_scores_lead_and_of_equal_ones_the_lowest_numbers(scores, count, kept):
    assert leading_units({"a": torch.tensor(scores)}, {"a": 4}, {"a": count})["a"].tolist() == kept
    assert leading_units({}, {"a": 4}, {"a": count})["a"].tolist() == list(range(count))


@pytest.mark.parametrize("order", [{"b": torch.zeros(4)}, {"a": torch.zeros(3)}, {"a": torch.full((4,), torch.nan)}, [1]])
def test_an_order_of_other_groups_or_sizes_is_refused(order):
    with pytest.raises(ProtocolError, match="the public order"):
        leading_units(order, {"a": 4}, {"a": 2})
