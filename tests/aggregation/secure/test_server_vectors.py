"""Masked vectors of several layouts: sums, votes by hand, and who is refused."""

import numpy as np
import pytest

from paceline.aggregation.secure.config import Segment
from paceline.aggregation.secure.server_vectors import MaskedVectors
from paceline.core.errors import ProtocolError


def received(layouts):
    """Return the vectors after these layouts arrived from clients 0, 1, ..., and those refused since; client c sends c + 1."""
    refused = {}
    vectors = MaskedVectors(refused)
    for client, layout in enumerate(layouts):
        segment = Segment("main", 2, 16)
        vectors.add(client, layout, [segment], {"main": np.full(2, client + 1, dtype=segment.dtype)})
    return vectors, refused


def test_the_most_frequent_layout_is_summed_and_the_others_are_refused():
    vectors, refused = received("abaca")
    assert 3 in vectors
    assert not refused
    best = vectors.most()
    assert best.clients == [0, 2, 4]
    assert best.sums[0][1].tolist() == [9, 9]
    assert refused.keys() == {1, 3}
    assert vectors.most() is None


def test_a_fourth_layout_takes_a_vote_from_each_and_displaces_those_without():
    vectors, refused = received("aabbcd")
    assert refused.keys() == {4}  # c had one vote, a and b keep one each
    assert vectors.most().clients == [0, 1]
    vectors, refused = received("aabbcde")
    assert refused.keys() == {4, 0, 1, 2, 3, 5}
    assert vectors.most().clients == [6]


def test_where_no_layout_is_displaced_the_fourth_is_refused():
    with pytest.raises(ProtocolError, match="another structure"):
        received("aabbccd")
    _, refused = received("aabbccc")
    assert not refused
