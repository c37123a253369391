"""Vectors of different makes are summed apart, and the most common make wins: the first to come decides nothing."""

import numpy as np

from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.server_vectors import GROUPS
from tests.aggregation.secure.test_protocol import Parties, check


def masked(parties, client, segments=None):
    parties.clients[client].receive(parties.mail[client]["sealed"], parties.mail[client]["told"])
    words = segments or [(s, w.copy()) for s, w in parties.inputs[client]]
    return parties.clients[client].masked(words)


def test_first_vector_of_another_make_does_not_shut_the_others_out():
    parties = Parties(6)
    parties.advertise()
    parties.share()
    odd = Segment("main", 7, 19)
    assert parties.server.add_masked(0, masked(parties, 0, [(odd, np.zeros(7, odd.dtype))]))
    for c in (1, 2, 3, 5):
        assert parties.server.add_masked(c, masked(parties, c))
    assert parties.server.add_masked(4, masked(parties, 4), kind="another shape")
    parties.alive = parties.server.alive()
    assert parties.alive == [1, 2, 3, 5]
    assert set(parties.server.refused) == {0, 4}
    parties.confirm()
    for c in parties.signatures:
        parties.server.add_unmasking(c, parties.clients[c].unmask(parties.signatures[c]))
    check([words for _, words in parties.server.open()], parties.inputs, [1, 2, 3, 5])


def test_makes_are_few_and_a_majority_stays_whoever_comes_first():
    """One more make costs each of the others a vote, so odd ones that come first are gone when the majority comes."""
    parties = Parties(9, config=SecureConfig(gamma=0.0, threshold=5))
    parties.advertise()
    parties.share()
    for c in range(9):
        assert parties.server.add_masked(c, masked(parties, c), kind=str(c) if c < 4 else "most")
        assert len(parties.server._vectors._groups) <= GROUPS
    assert parties.server.alive() == [4, 5, 6, 7, 8]
    assert set(parties.server.refused) == {0, 1, 2, 3}


def test_an_expected_make_is_the_only_one():
    """The server knows from its own model what a vector consists of: many of another make come to nothing."""
    parties = Parties(6)
    parties.advertise()
    parties.share()
    parties.server.expect([s for s, _ in parties.inputs[0]], "right")
    taken = [parties.server.add_masked(c, masked(parties, c), kind="wrong" if c < 2 else "right") for c in range(6)]
    assert taken == [False, False, True, True, True, True]
