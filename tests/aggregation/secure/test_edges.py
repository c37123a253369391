"""Secure sums at the ends of what is allowed: sizes, bytes, graphs, sessions, and messages that are just wrong."""

import math
from dataclasses import replace
from fractions import Fraction
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paceline.aggregation.secure.arithmetic import SecureArithmetic
from paceline.aggregation.secure.client_openings import Openings
from paceline.aggregation.secure.codec import Codec
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.graph import Parameters, _log2_masses, neighbours, parameters, permutation
from paceline.aggregation.secure.keys import context, pair_info
from paceline.aggregation.secure.program import SecureAggregation, _together
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.server_openings import OpenedSums
from paceline.aggregation.secure.session import Session, least_half, new_session, sizes
from paceline.aggregation.secure.shamir import share
from paceline.aggregation.secure.share_repair import correct, is_prime
from paceline.aggregation.secure.simulate import Costs, arithmetic_sum, secure_sum
from paceline.core.engine import Summed
from paceline.core.errors import ConfigError, MisbehaviourError, ProtocolError, QuorumError
from paceline.core.update import Update, rebuild
from tests.aggregation.secure.test_codec import mean, summed
from tests.aggregation.secure.test_groups import masked
from tests.aggregation.secure.test_protocol import CONFIG, Parties, check, vectors


# -- bytes -----------------------------------------------------------------------------------------------
def test_bytes_of_a_client_are_those_of_its_messages():
    """Six clients, one gone before it masks: keys 32, signatures and hashes 64 and 32, sealed shares 172, records 92, ids 8."""
    inputs = vectors(6)
    session = new_session(inputs, CONFIG)
    _, alive, costs = secure_sum(inputs, CONFIG, {5: "masked"})
    assert alive == [0, 1, 2, 3, 4]
    plain = session.plain()
    numbers = sum(isinstance(v, int | float) for v in [*plain.values(), *plain["clients"], *plain["config"].values()])
    asked = 8 * numbers + 32 + 32 + len(CONFIG.prg)
    down = asked + 6 * (8 + 32) + 5 * (8 + 128)  # hashes of all keys, and the neighbours' keys
    down += 5 * (8 + 172) + 5 * (8 + 92)  # their sealed shares and records
    down += 5 * 8 + 4 * (8 + 64)  # the survivors, and the neighbours' signatures
    up = 128 + 5 * (8 + 172) + 5 * (8 + 92) + 32
    up += sum(s.size for s, _ in inputs[0]) + sum(len(s.name) + 16 for s, _ in inputs[0]) + 64
    up += 64 + 4 * (8 + 32) + (8 + 32)  # its signature, and a share for each neighbour
    assert (costs.bytes_down, costs.bytes_up) == (down, up)
    assert costs.client_seconds > 0
    assert costs.server_seconds > 0


def test_arithmetic_and_protocol_agree_on_who_counts():
    inputs, config = vectors(7), replace(CONFIG, threshold=4, active=False)
    gone = {1: "advertise", 3: "masked"}
    words, alive = arithmetic_sum(inputs, gone)
    assert alive == [0, 2, 4, 5, 6]
    check(words, inputs, alive)
    opened, survivors, _ = secure_sum(inputs, config, gone)
    assert survivors == alive
    for got, (segment, _) in zip(words, inputs[0], strict=True):
        assert int(got.max()) <= segment.mask
    check(opened, inputs, alive)
    assert arithmetic_sum(inputs, {2: "share", 4: "consistency", 5: "unmask"})[1] == [0, 1, 3, 4, 5, 6]
    with pytest.raises(QuorumError, match="no client is left"):
        arithmetic_sum(inputs, dict.fromkeys(inputs, "masked"))


def test_contexts_and_labels_have_one_form():
    """Both ends derive the same bytes; another version that derives others cannot take part."""
    assert context(b"ab", 258, "r") == b"profileR-v1\x02\x00ab" + bytes([2, 1, 0, 0, 0, 0, 0, 0]) + b"r\0"
    assert context(b"x" * 300, 1, "") == b"profileR-v1\x2c\x01" + b"x" * 300 + bytes([1, *[0] * 7]) + b"\0"
    assert pair_info("mask", 300, 7) == b"mask|" + bytes([7, *[0] * 7]) + bytes([44, 1, *[0] * 6])
    assert pair_info("mask", 2**63, 7) == b"mask|" + bytes([7, *[0] * 7]) + bytes([*[0] * 7, 128])


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
    ("n", "gamma", "delta"), [(60, 0.1, 0.1), (60, 0.05, 0.1), (73, 0.1, 0.05), (90, 0.05, 0.2), (51, 0.0, 0.1)]
)
def test_sizes_are_the_smallest_that_keep_the_promises(n, gamma, delta, active):
    """A search in whole fractions over all k and t."""
    sigma, eta = 20, 15
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


# -- codec -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("clients", "cap", "bits"), [(1, 1, 2), (2, 1, 3), (3, 1, 3), (4, 1, 4), (7, 1, 4), (8, 1, 5), (3, 5, 5), (4, 4, 6)]
)
def test_words_of_weights_hold_the_largest_sum_and_a_sign(clients, cap, bits):
    codec = Codec(SecureConfig(max_weight=cap), clients)
    (counts,) = [s for s in codec.segments(codec.shape(Update(x=torch.ones(2), weight=1))) if s.name == "counts"]
    assert counts.bits == bits
    assert 2 ** (bits - 2) <= clients * cap < 2 ** (bits - 1)


def test_clipped_coordinates_are_counted_over_all_fields():
    codec = Codec(SecureConfig(clip=0.5), 3, {"b": 2.0})
    reply = Update(a=torch.tensor([0.5, 0.6, -0.7]), b=torch.tensor([1.9, -2.1]), weight=1)
    assert summed(codec, [reply] * 3).notes == {"clipped": 9.0}
    assert summed(codec, [Update(a=torch.zeros(3), b=torch.zeros(2), weight=1)] * 3).notes == {"clipped": 0.0}


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0, 3.0])
def test_weights_in_steps_of_any_size(step):
    codec = Codec(SecureConfig(max_weight=10, bits=20), 3, {"weight": 10 * step})
    got = mean(codec, [Update(x=torch.tensor([x]), n=x, weight=w * step) for x, w in ((1.0, 1), (0.5, 4))])
    assert got.x.item() == pytest.approx((1 + 0.5 * 4) / 5, abs=1e-5)
    assert (got.weight, got.n) == (pytest.approx(5 * step), pytest.approx(3 / 5))


def test_fields_with_weights_of_their_own_are_bounded_by_these():
    """The field with the larger weight comes second, then first."""
    for small, large in (("a", "b"), ("b", "a")):
        fields = {"a": torch.tensor([1.0, -1.0]), "b": torch.tensor([-1.0, 1.0])}
        codec = Codec(SecureConfig(max_weight=5), 3)
        opened = summed(codec, [Update(**fields, weight={small: 1, large: 5})] * 3)
        got = rebuild(opened.structure, opened.tensors, opened.scalars, opened.denominators)
        assert got.a.tolist() == pytest.approx([1.0, -1.0])
        assert got.b.tolist() == pytest.approx([-1.0, 1.0])


def test_a_client_that_could_not_do_the_work_counts_as_failed():
    codec = Codec(SecureConfig(), 3)
    reply = Update(x=torch.ones(2), votes=torch.tensor([1, 2]), loss=0.5, weight=1)
    nothing, real = codec.nothing(reply), codec.encode(reply, 0)
    assert nothing.shape == real.shape
    for (_, a), (_, b) in zip(real.segments, nothing.segments, strict=True):
        np.add(a, b, out=a)
    opened = codec.decode(real.shape, real.segments, [0, 1])
    assert opened.notes == {"clipped": 0.0, "failed": 1.0}
    got = rebuild(opened.structure, opened.tensors, opened.scalars, opened.denominators)
    assert (got.x.tolist(), got.votes.tolist(), got.loss, got.weight) == ([1.0, 1.0], [1.0, 2.0], pytest.approx(0.5), 1.0)


def test_norms_are_taken_over_all_fields():
    codec = Codec(SecureConfig(clip=10.0, clip_norm=2.5, bits=20), 3)
    got = mean(codec, [Update(a=torch.tensor([3.0]), b=torch.tensor([4.0]), n=7.0, weight=1)] * 3)
    assert (got.a.item(), got.b.item()) == (pytest.approx(1.5, abs=1e-4), pytest.approx(2.0, abs=1e-4))
    assert got.n == pytest.approx(7.0)
    same = mean(codec, [Update(a=torch.tensor([1.5]), b=torch.tensor([2.0]), weight=1)] * 3)
    assert (same.a.item(), same.b.item()) == (pytest.approx(1.5, abs=1e-4), pytest.approx(2.0, abs=1e-4))
    assert mean(codec, [Update(a=torch.zeros(1), weight=1)] * 3).a.item() == 0.0


def test_two_clients_are_not_summed():
    with pytest.raises(QuorumError, match="2 clients are available; a secure sum needs 3"):
        SecureArithmetic().sum(SimpleNamespace(round=4), SimpleNamespace(cohort=(1, 2)))


# -- messages that are just wrong ------------------------------------------------------------------------
def test_records_fill_their_room_and_no_more():
    parties = Parties()
    parties.advertise()
    parties.share({0: b"x" * 62, 1: b""})
    parties.mask()
    assert parties.clients[2].peers[0] == b"x" * 62
    assert parties.clients[2].peers[1] == b""
    other = Parties()
    other.advertise()
    with pytest.raises(ProtocolError, match="has 63 bytes; the maximum is 62"):
        other.clients[0].share(other.hashes, other.adverts[0], b"x" * 63)


def test_the_signature_of_one_who_dropped_out_confirms_nothing():
    """Client 4 sent no vector, but signs the list of survivors: without it, three neighbours are below the threshold."""
    parties = Parties(config=replace(CONFIG, threshold=4))
    parties.advertise()
    parties.share()
    parties.mask(only={0, 1, 2, 3})
    signatures = {c: parties.clients[c].consistency(parties.alive)["signature"] for c in parties.alive}
    signatures[4] = parties.identities[4].sign(parties.clients[0]._digest)
    del signatures[0]
    with pytest.raises(ProtocolError, match="only 3 neighbours signed"):
        parties.clients[0].unmask(signatures)


def wrong_shares(parties, message):
    some = dict(message["sealed"])
    return {
        "sealed shares not addressed to its neighbours": [
            {**message, "sealed": {v: s for v, s in some.items() if v != 2}},
            {**message, "sealed": {**some, 1: some[2]}},
            {**message, "told": {}},
            {**message, "told": None},
        ],
        "sealed shares of wrong size": [
            {**message, "sealed": {**some, 2: some[2][:-1]}},
            {**message, "sealed": {**some, 2: "x" * 172}},
            {**message, "told": {**message["told"], 2: bytes(93)}},
        ],
        "missing or malformed commitment": [
            {**message, "commit": bytes(31)},
            {**message, "commit": None},
        ],
        "malformed message": [[], None],
    }


def test_wrong_sealed_shares_are_refused_with_the_reason():
    parties = Parties()
    parties.advertise()
    message = parties.clients[1].share(parties.hashes, parties.adverts[1])
    for reason, messages in wrong_shares(parties, message).items():
        for wrong in messages:
            parties.server.refused.clear()
            parties.server.add_shares(1, wrong)
            assert parties.server.refused == {1: reason}
            assert 1 not in parties.server._shared
    parties.server.refused.clear()
    parties.server.add_shares(1, message)
    assert parties.server.refused == {}
    parties.server.add_shares(1, message)
    assert parties.server.refused == {1: "shares sent twice"}


def test_answers_to_the_wrong_step():
    parties = Parties()
    with pytest.raises(ProtocolError, match="step 1 before step 0 was closed"):
        parties.server.add_shares(0, {})
    parties.server.add_advert(9, {})
    assert parties.server.refused == {9: "unrequested message"}
    parties.advertise()
    assert parties.server.late == set()
    parties.server.add_advert(3, {})
    assert parties.server.late == {3}
    with pytest.raises(ProtocolError, match="close step 0 while step 1"):
        parties.server.directory_for()


def test_votes_of_makes():
    """Two of one make keep a vote when a fourth make comes; two of single ones lose theirs."""
    parties = Parties(9, config=SecureConfig(gamma=0.0, threshold=5))
    parties.advertise()
    parties.share()
    for client, kind in enumerate("AABC"):
        assert parties.server.add_masked(client, masked(parties, client), kind=kind)
    assert parties.server.add_masked(4, masked(parties, 4), kind="D")
    assert [(group.clients, group.lead) for group in parties.server._sums.values()] == [([0, 1], 1), ([4], 1)]
    assert set(parties.server.refused) == {2, 3}
    assert parties.server.add_masked(5, masked(parties, 5), kind="E")
    assert not parties.server.add_masked(5, masked_again(parties), kind="E")
    assert parties.server.refused[5] == "vector sent twice"
    assert [group.clients for group in parties.server._sums.values()] == [[0, 1], [4], [5]]


def masked_again(parties):
    return {"table": [], "segments": []}


def test_a_new_round_forgets_what_was_lost_and_missed():
    opened, common = OpenedSums(), b"c" * 32
    for number in (1, 2):
        opened.begin(number)
        opened.record(common, [0, 1, 2])
        assert not opened.mark_lost(common, [0, 1, 2])
        assert opened.newly_missing([1, 9])
        assert not opened.newly_missing([1, 9])
        assert opened.newly_missing([2])
        assert opened.mark_lost(common, [0, 1, 2])
        assert opened.cause == "too few shares arrived, twice"
    opened.begin(3)
    assert opened.cause == ""


def test_a_record_of_openings_makes_its_folders(tmp_path):
    openings = Openings(tmp_path / "deep" / "down" / "opened.sqlite")
    openings.open()
    openings.close()
    assert (tmp_path / "deep" / "down" / "opened.sqlite").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("length", [0, 1])
def test_vectors_of_one_word_and_of_none(length):
    inputs = {
        c: [(Segment("main", length, 8), np.full(length, 200, "<u4")), (Segment("exact", 1, 64), np.ones(1, "<u8"))]
        for c in range(4)
    }
    words, _, _ = secure_sum(inputs, CONFIG)
    assert [(w & w.dtype.type(s.mask)).tolist() for w, (s, _) in zip(words, inputs[0], strict=True)] == [[800 % 256] * length, [4]]


@pytest.mark.parametrize(
    ("accused", "fits"),
    [([2], True), ([2, 3], True), ([3, 2, 2], True), ([0, 2, 3, 4], True), ([], False), ([1], False), ([2, 9], False), (["2"], False),
     ([True], False), ("2", False), (None, False), ((2,), False)],
)  # fmt: skip
def test_accusations_name_neighbours(accused, fits):
    parties = Parties()
    parties.advertise()
    parties.share()
    assert not parties.server.add_masked(1, {"accused": accused})
    assert parties.server._accusations == ({1: sorted(set(accused))} if fits else {})
    assert parties.server.refused == ({} if fits else {1: "malformed message"})
    if fits:
        parties.server.add_masked(1, {"accused": accused})
        assert parties.server.refused == {1: "vector sent twice"}
        with pytest.raises(MisbehaviourError, match="could not be decrypted"):
            parties.server.alive()


def test_parts_of_a_sum_are_added_field_by_field():
    def part(k, clients, notes):
        return Summed("s", [torch.tensor([1.0 * k, 2.0])], [10.0 * k], [torch.tensor([k / 2])], clients, notes)

    total = _together([part(1, (4, 0), {"clipped": 1.0}), part(3, (2,), {"clipped": 2.0, "failed": 1.0}), part(5, (1,), {})])
    assert [t.tolist() for t in total.tensors] == [[9.0, 6.0]]
    assert (total.scalars, [d.tolist() for d in total.denominators]) == ([90.0], [[4.5]])
    assert (total.survivors, total.notes) == ((0, 1, 2, 4), {"clipped": 3.0, "failed": 1.0})
    assert total.structure == "s"


@pytest.mark.parametrize(
    ("cohort", "silent", "quorum", "rests"),
    [(9, 3, 1, True), (9, 4, 1, False), (3, 1, 1, False), (4, 1, 1, True), (9, 3, 6, True), (9, 3, 7, False), (40, 13, 1, True)],
)
def test_few_silent_clients_sit_out_the_next_attempt(cohort, silent, quorum, rests):
    """At most a third, where enough others are left: 3, the protocol's least number and the quorum."""
    rested = []
    fed = SimpleNamespace(
        quorum=quorum, round=5, excluded=SimpleNamespace(rest=lambda who, round: rested.append((set(who), round)))
    )
    lost = SimpleNamespace(silent=set(range(silent)), opening=[], work=SimpleNamespace(common=b"c"))
    SecureAggregation(SecureConfig(gamma=0.0))._rest(fed, range(cohort), lost)
    assert rested == ([(set(range(silent)), 5)] if rests else [])


def test_defaults_of_sessions_and_servers():
    session = new_session(range(5), SecureConfig())
    assert (session.round, session.attempt, session.tell_bytes, session.trial, session.call) == (1, 0, 64, 0, 1)
    assert (session.function, session.task, len(session.id)) == ("", bytes(32), 32)
    assert GOOD.tell_bytes == 0
    assert Session(bytes(32), 1, 0, (0, 1, 2), 2, 2, SecureConfig()).tell_bytes == 64
    assert SecureServer(session, {}).quorum == 1
    assert vars(Costs()) == {"client_seconds": 0.0, "server_seconds": 0.0, "bytes_up": 0, "bytes_down": 0, "opened": []}
    assert (Openings().least_difference, Openings().most, Openings().scope) == (1, None, "model")


def test_shares_of_a_polynomial_of_higher_degree_give_nothing():
    xs = list(range(1, 8))
    for extra in (1, 2, 3):
        assert correct(xs, share(42, 3 + extra, xs), 3) is None
        assert correct(xs, share(42, 3 + extra, xs), 3 + extra) == (42, [])


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("n", range(5, 40, 2))
def test_small_cohorts_have_sizes_below_the_complete_graph_or_are_complete(n, active):
    got = parameters(n, 0.0, 0.0, active, 1, 1, complete_up_to=0, grinding=0)
    assert got.neighbours % 2 == 0 or got.neighbours == n - 1
    found = parameters(n, 0.34, 0.3, active, 3, 3, complete_up_to=0, grinding=0)
    assert found.neighbours < n - 1 or found == Parameters(n - 1, 2 * n // 3 + 1 if active else n // 2 + 1)
