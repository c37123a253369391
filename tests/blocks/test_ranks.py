"""Rankings: inverses, packing, and what is no ranking."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.blocks.ranks import bits_of, is_permutation, pack, positions, unpack
from paceline.core.errors import WireError


@given(st.integers(1, 300), st.integers(0, 10**6))
def test_inverse_of_the_inverse_and_packing(n, seed):
    ranks = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    places = positions(ranks)
    assert positions(places).equal(ranks)
    assert int(places.sum()) == n * (n - 1) // 2
    data = pack(ranks, n)
    assert len(data) == math.ceil(n * (math.ceil(math.log2(n)) if n > 1 else 0) / 8)
    assert unpack(data, n).equal(ranks)
    assert is_permutation(ranks, n)


def test_bits():
    assert [bits_of(n) for n in (1, 2, 3, 4, 5, 1024, 1025)] == [0, 1, 2, 2, 3, 10, 11]


def test_parts_of_a_ranking():
    ranks = torch.tensor([4, 1, 3])
    assert unpack(pack(ranks, 5), 5, 3).equal(ranks)
    assert is_permutation(ranks, 5)


def test_what_is_no_ranking():
    assert not is_permutation(torch.tensor([0, 1, 1]), 3)
    assert not is_permutation(torch.tensor([0, 1, 3]), 3)
    assert not is_permutation(torch.tensor([0, -1, 2]), 3)
    with pytest.raises(WireError, match="3 of 3 edges has 1 bytes, not 2"):
        unpack(b"ab", 3)
