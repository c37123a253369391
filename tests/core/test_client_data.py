"""Batches of a client's samples."""

import pytest
import torch

from paceline.core.samples import ClientData


@pytest.mark.parametrize("index", [[2, 3, 4, 5, 6], [2, 3, 5, 4, 6], [0], [], [3, 3], [5, 4, 3]])
def test_batches_hold_the_samples_in_order(index):
    x, y = torch.randn(8, 3), torch.arange(8)
    data = ClientData(x, y, torch.tensor(index, dtype=torch.int64))
    batches = list(data.batches(2))
    assert [len(b) for _, b in batches] == [min(2, len(index) - k) for k in range(0, len(index), 2)]
    assert [k for _, b in batches for k in b.tolist()] == index
    assert all(torch.equal(a, x[b]) for a, b in batches)


def test_consecutive_samples_are_not_copied():
    x, y = torch.randn(8, 3), torch.arange(8)
    (first, _), _ = ClientData(x, y, torch.arange(2, 6)).batches(2)
    assert first.data_ptr() == x[2].data_ptr()
