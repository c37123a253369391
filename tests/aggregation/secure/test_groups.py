"""Vectors of different makes are summed apart, and the most common make wins: the first to come decides nothing."""

import numpy as np

from paceline.aggregation.secure.config import Segment
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


def test_makes_are_few():
    parties = Parties(6)
    parties.advertise()
    parties.share()
    taken = [parties.server.add_masked(c, masked(parties, c), kind=str(c)) for c in range(6)]
    assert taken == [True] * 3 + [False] * 3
