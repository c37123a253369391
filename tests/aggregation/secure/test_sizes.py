"""Graphs, sessions and shares of secret sums: every size is the smallest that keeps its promise, and no other is accepted."""

import math
from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from paceline.aggregation.secure.config import SecureConfig
from paceline.aggregation.secure.graph import _log2_masses, neighbours, parameters, permutation
from paceline.aggregation.secure.session import Session, advert_parts, least_half, new_session, sizes
from paceline.aggregation.secure.shamir import share
from paceline.aggregation.secure.share_repair import correct, corrections, is_prime
from paceline.core.errors import ConfigError, ProtocolError, QuorumError


# -- graphs ----------------------------------------------------------------------------------------------
def test_a_permutation_is_the_same_in_every_version():
    assert permutation(range(10), b"seed") == [2, 0, 1, 7, 9, 3, 4, 5, 6, 8]
    assert permutation([5], b"seed") == [5]
    firsts = np.bincount([permutation(range(4), bytes([n, n // 256]))[0] for n in map(int, range(256))], minlength=4)
    assert firsts.min() > 40


@pytest.mark.parametrize(("n", "k"), [(6, 4), (7, 4), (8, 6), (9, 2), (5, 4), (5, 6), (3, 2)])
def test_neighbours_are_those_next_to_it_on_the_ring(n, k):
    order = permutation(range(n), b"ring")
    graph = neighbours(order, k)
    for place, client in enumerate(order):
        near = {order[(place + d) % n] for d in range(-(k // 2), k // 2 + 1)} if k < n - 1 else set(order)
        assert graph[client] == sorted(near - {client})


@cache
def chances(total, marked, drawn):
    """P[X = x] of x marked ones among those drawn without replacement, exactly."""
    return [
        Fraction(math.comb(marked, x) * math.comb(total - marked, drawn - x), math.comb(total, drawn))
        if x <= drawn
        else Fraction(0)
        for x in range(drawn + 1)
    ]


@pytest.mark.parametrize(("total", "marked", "drawn"), [(9, 4, 3), (9, 4, 6), (9, 0, 3), (9, 9, 3), (5, 2, 5), (7, 3, 0)])
def test_chances_of_neighbours(total, marked, drawn):
    np.testing.assert_allclose(
        2.0 ** _log2_masses(total, marked, drawn), [float(p) for p in chances(total, marked, drawn)], atol=1e-12
    )


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize(
    ("n", "gamma", "delta", "sigma", "eta"),
    [(60, 0.1, 0.1, 20, 15), (60, 0.05, 0.1, 20, 15), (73, 0.1, 0.05, 20, 15), (90, 0.05, 0.2, 20, 15), (51, 0.0, 0.1, 20, 15),
     (5, 0.0, 0.1, 1, 1), (9, 0.0, 0.1, 5, 5), (15, 0.1, 0.0, 5, 1), (20, 0.0, 0.2, 5, 5), (21, 0.1, 0.1, 10, 5)],
)  # fmt: skip
def test_sizes_are_the_smallest_that_keep_the_promises(n, gamma, delta, sigma, eta, active):
    """A search in whole fractions over all k and t."""
    corrupt, gone = math.ceil(gamma * n - 1e-9), math.ceil(delta * n - 1e-9)

    def fits(k, t):
        needed = 2 * t - k if active else t
        private = n * sum(chances(n - 1, corrupt, k)[needed:]) <= Fraction(1, 2 ** (sigma + 1))
        joined = n * (gamma + delta) ** (k / 2) <= 2.0 ** -(sigma + 1)
        return private and joined and n * sum(chances(n - 1, n - 1 - gone, k)[:t]) <= Fraction(1, 2**eta)

    found = next(((k, t) for k in range(2, n - 1, 2) for t in range(k // 2 + 1, k + 1) if fits(k, t)), None)
    got = parameters(n, gamma, delta, active, sigma, eta, complete_up_to=0, grinding=0)
    complete = (n - 1, 2 * n // 3 + 1 if active else n // 2 + 1)
    assert (got.neighbours, got.threshold) == (found or complete)


# -- sessions --------------------------------------------------------------------------------------------
GOOD = Session(bytes(32), 0, 0, tuple(range(10)), *sizes(10, SecureConfig()), SecureConfig(), 0)
TWO = SecureConfig(gamma=0.0, active=False, threshold=1)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"id": bytes(31)}, "session id"),
        ({"id": "x" * 32}, "session id"),
        ({"task": bytes(33)}, "task hash"),
        ({"round": -1}, "at least 0"),
        ({"attempt": -1}, "at least 0"),
        ({"trial": -1}, "at least 0"),
        ({"call": 0}, "call at least 1"),
        ({"clients": tuple(range(1, 11))}, ""),
        ({"clients": (-1, *range(1, 10))}, "ascending list"),
        ({"clients": (1, 0, *range(2, 10))}, "ascending list"),
        ({"clients": (0, 0, *range(2, 10))}, "ascending list"),
        ({"clients": (4,)}, "ascending list of at least 2"),
        ({"clients": (3, 4), "neighbours": 1, "threshold": 1, "config": TWO}, ""),
        ({"neighbours": 8}, "k=8, t=7 do not follow"),
        ({"threshold": 8}, "k=9, t=8 do not follow"),
        ({"threshold": 0}, "from 1 to"),
        ({"threshold": 10}, "from 1 to"),
        ({"threshold": 4}, "two halves"),
        ({"threshold": 5}, "do not follow"),
        ({"tell_bytes": 1}, "peer records of 1"),
        ({"tell_bytes": 2}, "peer records of 2"),
        ({"tell_bytes": 3}, ""),
        ({"tell_bytes": 65535}, ""),
        ({"tell_bytes": 65536}, "peer records of 65536"),
    ],
)
def test_faults_of_a_session(changes, fault):
    found = "; ".join(replace(GOOD, **changes).faults())
    assert fault in found
    assert bool(found) == bool(fault)


def test_parts_of_an_advertisement():
    """Two keys, a tier if there are any, and a signature."""
    whole, parts, signature = GOOD, replace(GOOD, parts=3, tiers=(0, 1, 2)), bytes(range(64))
    assert advert_parts(whole, bytes(64) + signature) == (bytes(64), 0, signature)
    for tier in range(3):
        assert advert_parts(parts, bytes([*bytes(64), tier]) + signature) == (bytes([*bytes(64), tier]), tier, signature)
    for session, wrong in ((whole, bytes(127)), (whole, bytes(129)), (parts, bytes(128)), (parts, bytes(130)), (whole, "x" * 128)):
        with pytest.raises(ProtocolError, match="must have"):
            advert_parts(session, wrong)
    with pytest.raises(ProtocolError, match="tier 3 does not exist; there are 3"):
        advert_parts(parts, bytes([*bytes(64), 3]) + signature)


def test_no_two_halves_of_the_neighbours_can_reach_the_threshold():
    for t in range(1, 10):
        one = replace(GOOD, threshold=t, config=SecureConfig(threshold=t))
        assert ("two halves" in "".join(one.faults())) == (2 * t <= 9)
        assert not replace(one, config=replace(one.config, active=False)).faults()


def test_sizes_that_are_set():
    assert sizes(10, SecureConfig(neighbours=4, threshold=3)) == (4, 3)
    assert sizes(10, SecureConfig(neighbours=9)) == sizes(10, SecureConfig(neighbours=90)) == (9, 7)
    assert sizes(1, SecureConfig(neighbours=4))[0] == 1
    for odd in (3, 7):
        with pytest.raises(ConfigError, match="even number"):
            sizes(10, SecureConfig(neighbours=odd))
    with pytest.raises(QuorumError, match="too few for the threshold 4"):
        new_session(range(4), SecureConfig(threshold=4))
    assert new_session(range(5), SecureConfig(threshold=4)).threshold == 4


@pytest.mark.parametrize(
    "config", [SecureConfig(), SecureConfig(gamma=0.0), SecureConfig(gamma=0.05), SecureConfig(complete_up_to=14)]
)
def test_halves_of_a_lost_cohort(config):
    """The four conditions of the docstring, one by one, for all cohorts up to 40."""
    allowed = []
    for n in range(2, 41):
        half = n // 2
        (k, t), (k_half, t_half) = sizes(n, config), sizes(max(half, 1), config)
        corrupt = math.ceil(config.gamma * n - 1e-9)
        complete = k >= n - 1 and k_half >= half - 1
        helpers = n - t - 1 < t_half - 1
        honest = half - (n - t - 1) - corrupt >= 2
        may = half >= 3 and complete and t_half <= k_half and helpers and honest
        assert least_half(n, config) == (max(config.least(n), 3) if may else n)
        allowed.append(may)
    assert any(allowed)
    assert not all(allowed)


# -- shares ----------------------------------------------------------------------------------------------
def test_primes_without_small_divisors():
    assert not any(is_prime(a * b) for a in (41, 43, 47) for b in (41, 53, 59))
    assert not is_prime(3_215_031_751)  # a strong pseudoprime to the bases 2, 3, 5 and 7
    assert is_prime(2**61 - 1)
    assert is_prime(1681 - 12)


@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_a_secret_of_zero_is_found_among_wrong_shares(threshold):
    assert correct([1, 2, 3, 4, 5], [0, 0, 9, 0, 0], threshold) == (0, [3])
    assert correct([1, 2, 3], [0, 0, 0], threshold) == (0, [])


def test_shares_of_a_polynomial_of_higher_degree_give_nothing():
    xs = list(range(1, 8))
    for extra in (1, 2, 3):
        assert correct(xs, share(42, 3 + extra, xs), 3) is None
        assert correct(xs, share(42, 3 + extra, xs), 3 + extra) == (42, [])


@pytest.mark.parametrize("liars", [[], [4], [0, 7], [2, 5]])
def test_holders_of_wrong_shares_are_named(liars):
    """Holder u has the share at u + 1."""
    ys = dict(enumerate(share(42, 4, range(1, 9))))
    for u in liars:
        ys[u] += 1
    secret, named = next(corrections(ys, 4))
    assert (secret, sorted(named)) == (42, liars)
    ys.pop(3)
    found = [sorted(named) for secret, named in corrections(ys, 4) if secret == 42]
    assert liars in found
