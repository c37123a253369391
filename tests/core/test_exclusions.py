"""Who spoils sums sits out, for longer each time."""

from paceline.aggregation.secure.blame import culprits
from paceline.core.exclusions import Exclusions


def test_it_sits_out_twice_as_long_each_time():
    out = Exclusions()
    assert not out
    spans = []
    round = 1
    for _ in range(5):
        out.blame({3: "noise"}, round)
        span = 0
        while out.sits_out(3, round + span):
            span += 1
        spans.append(span)
        round += span
    assert spans == [1, 2, 4, 8, 16]
    assert not out.sits_out(2, 1)
    assert out.of(1) == {}
    assert out.of(round - 16) == {3: "noise"}


def test_who_is_left_out_leaves_no_accusation():
    assert set(culprits({})) == set()
    assert set(culprits({0: [5], 1: [5], 2: [5]})) == {5}
    assert set(culprits({5: [0, 1, 2, 3]})) == {5}
    assert set(culprits({0: [1]})) == {0, 1}
    assert set(culprits({0: [1], 1: [0]})) == {0, 1}
    assert set(culprits({0: [0]})) == set()
    assert set(culprits({0: [5, 6], 1: [5, 6], 2: [5, 6], 3: [5]})) == {5, 6}
    assert set(culprits({5: [0, 1, 2], 6: [0, 1, 2], 0: [5]})) == {5, 6}


def test_each_lie_costs_the_liar_its_place():
    """Two liars among nine: whatever they say, both go, and each takes at most one along."""
    for lies in ({7: [0], 8: [1]}, {7: [0, 1], 8: [2]}, {7: [8], 8: [0]}, {7: [0], 8: [0]}):
        gone = set(culprits(lies))
        assert len(gone - {7, 8}) <= 2
        assert all(not (pair <= set(range(9)) - gone) for pair in ({a, b} for a, of in lies.items() for b in of))
