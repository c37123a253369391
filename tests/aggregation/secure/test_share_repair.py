"""Wrong shares: found wherever they are, up to half of the spare ones."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.aggregation.secure.config import SecureConfig
from paceline.aggregation.secure.shamir import PRIME, share
from paceline.aggregation.secure.share_repair import correct, corrections, is_prime
from paceline.core.errors import ConfigError, MisbehaviourError
from tests.aggregation.secure.test_protocol import CONFIG, Parties, check


@settings(max_examples=60)
@given(st.sampled_from([257, PRIME]), st.integers(1, 8), st.integers(0, 8), st.integers(0, 2**32))
def test_wrong_shares_up_to_half_of_the_spare_ones_are_found(prime, threshold, spare, seed):
    rng = random.Random(seed)
    xs = rng.sample(range(1, 200), threshold + spare)
    secret = rng.randrange(prime)
    ys = share(secret, threshold, xs, prime)
    bad = rng.sample(range(len(xs)), rng.randint(0, spare // 2))
    for i in bad:
        ys[i] = (ys[i] + rng.randrange(1, prime)) % prime
    value, wrong = correct(xs, ys, threshold, prime)
    assert value == secret
    assert sorted(wrong) == sorted(xs[i] for i in bad)


def test_too_many_wrong_shares_give_nothing():
    ys = share(42, 3, [1, 2, 3, 4, 5])
    assert correct([1, 2, 3, 4, 5], [ys[0] + 1, ys[1] + 5, *ys[2:]], 3) is None


def test_one_spare_share_is_enough_where_the_secret_can_be_checked():
    ys = dict(enumerate(share(42, 3, [1, 2, 3, 4])))
    ys[0] += 1
    assert (42, [0]) in list(corrections(ys, 3))


def test_primes():
    assert [n for n in range(60) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59]
    assert is_prime(257)
    assert is_prime(PRIME)
    assert not is_prime(561)  # Carmichael's number
    assert not is_prime(2**256 - 1)
    assert not is_prime(PRIME - 2)


@pytest.mark.parametrize("xs", [[0, 1, 2], [1, 1, 2]])
def test_impossible_places_are_refused(xs):
    with pytest.raises(ConfigError):
        correct(xs, [1, 2, 3], 2)


@pytest.mark.parametrize("liars", [{0}, {0, 1}, {11}, {0, 6, 11}])
def test_liars_with_low_ids_do_not_lose_the_round(liars):
    """n = 12, t = 5: eleven shares of each secret, so up to three wrong ones are found."""
    parties = Parties(12, SecureConfig(gamma=0.0, threshold=6)).to("unmask")
    for c in parties.alive:
        answer = parties.clients[c].unmask(parties.signatures[c])
        if c in liars:
            answer["self"] = {v: bytes([c + 1]) * 32 for v in answer["self"]}
        parties.server.add_unmasking(c, answer)
    opened = parties.server.open()
    check([w for _, w in opened], parties.inputs, parties.alive)
    named = set(parties.server.refused)
    assert named <= liars
    assert named >= {c for c in liars if c < 6}  # the others' shares were spare, and never looked at


def test_a_wrong_share_of_a_mask_key_is_repaired_and_named():
    parties = Parties(6, CONFIG)
    parties.advertise()
    parties.share()
    parties.mask(only={0, 1, 2, 3, 4})
    parties.confirm()
    for c in parties.alive:
        answer = parties.clients[c].unmask(parties.signatures[c])
        if c == 1:
            answer["keys"] = {5: bytes(32)}
        parties.server.add_unmasking(c, answer)
    check([w for _, w in parties.server.open()], parties.inputs, parties.alive)
    assert "wrong share of client 5" in parties.server.refused[1]


def test_a_client_that_shared_something_else_is_named():
    parties = Parties()
    parties.advertise()
    for c in parties.adverts:
        message = parties.clients[c].share(parties.hashes, parties.adverts[c])
        if c == 2:
            message["commit"] = bytes(32)
        parties.server.add_shares(c, message)
    parties.mail = parties.server.inbox_for()
    parties.mask()
    parties.confirm()
    for c in parties.alive:
        parties.server.add_unmasking(c, parties.clients[c].unmask(parties.signatures[c]))
    with pytest.raises(MisbehaviourError) as lost:
        parties.server.open()
    assert lost.value.clients == {2: "shares that do not match its commitment"}
    assert lost.value.survivors == tuple(parties.alive)


def test_a_malformed_share_is_noted():
    parties = Parties().to("unmask")
    for c in parties.alive:
        answer = parties.clients[c].unmask(parties.signatures[c])
        if c == 4:
            answer["self"] = dict.fromkeys(answer["self"], b"short")
        parties.server.add_unmasking(c, answer)
    check([w for _, w in parties.server.open()], parties.inputs, parties.alive)
    assert "malformed" in parties.server.refused[4]
