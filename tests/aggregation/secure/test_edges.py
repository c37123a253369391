"""Secure sums at the ends of what is allowed: sizes, bytes, graphs, sessions, and messages that are just wrong."""

import hashlib
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paceline.aggregation.nested import together
from paceline.aggregation.secure.arithmetic import SecureArithmetic
from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.client_openings import Openings
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.keys import context, pair_info
from paceline.aggregation.secure.program import SecureAggregation
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.server_openings import OpenedSums
from paceline.aggregation.secure.session import Session, new_session, number
from paceline.aggregation.secure.simulate import Costs, arithmetic_sum, secure_sum
from paceline.aggregation.secure.task_hash import OwnWork
from paceline.core.engine import Summed
from paceline.core.errors import MisbehaviourError, ProtocolError, QuorumError
from tests.aggregation.secure.test_groups import masked
from tests.aggregation.secure.test_misbehaviour import signed_keys
from tests.aggregation.secure.test_protocol import CONFIG, Parties, check, vectors


# -- bytes -----------------------------------------------------------------------------------------------
def test_bytes_of_a_client_are_those_of_its_messages():
    """Six clients, one gone before it masks: keys 32, signatures and hashes 64 and 32, sealed shares 172, records 92, ids 8."""
    inputs = vectors(6)
    session, started = new_session(inputs, CONFIG), time.perf_counter()
    _, alive, costs = secure_sum(inputs, CONFIG, {5: "masked"})
    assert costs.client_seconds + costs.server_seconds < time.perf_counter() - started
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
    assert [(group.clients, group.lead) for group in parties.server._vectors._groups.values()] == [([0, 1], 1), ([4], 1)]
    assert set(parties.server.refused) == {2, 3}
    assert parties.server.add_masked(5, masked(parties, 5), kind="E")
    assert not parties.server.add_masked(5, masked_again(parties), kind="E")
    assert parties.server.refused[5] == "vector sent twice"
    assert [group.clients for group in parties.server._vectors._groups.values()] == [[0, 1], [4], [5]]


def masked_again(parties):
    return {"table": [], "segments": []}


def test_a_new_round_forgets_what_was_lost_and_missed():
    opened, common = OpenedSums(), b"c" * 32
    for turn in (1, 2):
        opened.begin(turn)
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

    total = together([part(1, (4, 0), {"clipped": 1.0}), part(3, (2,), {"clipped": 2.0, "failed": 1.0}), part(5, (1,), {})])
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
    assert Session(bytes(32), 1, 0, (0, 1, 2), 2, 2, SecureConfig()).tell_bytes == 64
    assert SecureServer(session, {}).quorum == 1
    assert vars(Costs()) == {"client_seconds": 0.0, "server_seconds": 0.0, "bytes_up": 0, "bytes_down": 0, "opened": []}
    assert SecureAggregation().config == SecureArithmetic().config == SecureConfig()
    assert (Openings().least_difference, Openings().most, Openings().scope) == (1, None, "model")


@pytest.mark.parametrize("half", [0, 1])
def test_one_key_that_was_seen_before_is_enough_to_refuse(half):
    """Client 1 uses one of client 2's keys, and signs both."""
    parties = Parties()
    adverts = {c: machine.advertise()["keys"] for c, machine in parties.clients.items()}
    own, other = adverts[1][:64], adverts[2][:64]
    keys = (other[:32] + own[32:]) if half == 0 else (own[:32] + other[32:])
    adverts[1] = keys + parties.identities[1].sign(parties.session.context("advertise") + number(1) + keys)
    hashes = {c: hashlib.sha256(advert).digest() for c, advert in adverts.items()}
    with pytest.raises(ProtocolError, match=r"keys of client [12] appear twice"):
        parties.clients[0].share(hashes, {c: advert for c, advert in adverts.items() if c != 0})


def test_long_records():
    parties = Parties()
    parties.session = replace(parties.session, tell_bytes=1000)
    parties.clients = {c: SecureClient(c, parties.session, parties.identities[c], parties.directory) for c in range(5)}
    parties.server = SecureServer(parties.session, parties.directory)
    parties.advertise()
    parties.share({0: b"x" * 998, 1: b"y" * 256, 2: b"z" * 255})
    parties.mask()
    assert parties.clients[3].peers == {0: b"x" * 998, 1: b"y" * 256, 2: b"z" * 255, 4: b""}


@pytest.mark.parametrize("alive", [[1, 2, 3, 4], [0, 0, 1, 2, 3], [0, 1, 2, 3, 9], [0, 1, 2, 2, 9], [], "0123", [0, 1, 2, True]])
def test_lists_of_survivors_that_cannot_be(alive):
    parties = Parties()
    parties.advertise()
    parties.share()
    parties.mask()
    with pytest.raises(ProtocolError, match="list of survivors is malformed"):
        parties.clients[0].consistency(alive)


def test_a_record_of_openings_that_was_closed_opens_again(tmp_path):
    openings = Openings(tmp_path / "opened.sqlite")
    for _ in range(2):
        openings.check(OwnWork(b"w", b"v", b"c", "train"), "run", 1, [0, 1, 2], lambda n: n)
        openings.record(OwnWork(b"w", b"v", b"c", "train"), "run", 1, [0, 1, 2])
        openings.close()
        openings.close()
    assert openings._all("SELECT COUNT(*) FROM opened") == [(2,)]


def test_a_discarded_session_holds_no_secret():
    parties = Parties().to("unmask")
    client = parties.clients[0]
    before = client._seal_key.public, client._mask_key.public
    client.unmask(parties.signatures[0])
    assert {client._seal_key.public, client._mask_key.public}.isdisjoint(before)
    assert (client._secret, client._shares, client._keys) == (b"", {}, {})
    assert "secrets" not in client.state()


@pytest.mark.parametrize("confirmed", [2, 3, 4, 5])
def test_too_few_confirmations_lose_the_sum(confirmed):
    parties = Parties(config=replace(CONFIG, active=False))
    parties.advertise()
    parties.share()
    parties.mask()
    for c in parties.alive[:confirmed]:
        parties.server.add_signature(c, parties.clients[c].consistency(parties.alive))
    if confirmed < 3:
        with pytest.raises(QuorumError, match=f"{confirmed} of 5 clients remained whose neighbours confirmed"):
            parties.server.signatures_for()
        return
    assert list(parties.server.signatures_for()) == parties.alive[:confirmed]


def test_cohorts_of_one_model_may_overlap_unless_a_difference_is_asked_for():
    for least, refused in ((1, False), (2, True)):
        openings = Openings(least_difference=least)
        openings.record(OwnWork(b"c", b"w", b"v", "train"), "run", 1, [0, 1, 2, 3])
        for cohort in ([2, 3, 4, 5], [4, 5, 6]):
            other = OwnWork(b"d", b"x", b"v", "train")
            if refused and 2 in cohort:
                with pytest.raises(ProtocolError, match="shares clients with this"):
                    openings.check(other, "run", 2, cohort, lambda n: n)
            else:
                openings.check(other, "run", 2, cohort, lambda n: n)


@pytest.mark.parametrize(
    "change", [{"clients": 5}, {"clients": None}, {"config": 5}, {"config": [1]}, {"more": 1}, {"clients": ["0"]}]
)
def test_malformed_sessions_are_refused(change):
    plain = Parties().session.plain()
    assert Session.from_plain(plain).plain() == plain
    with pytest.raises(ProtocolError, match="malformed session"):
        Session.from_plain({**plain, **change})


@pytest.mark.parametrize("wrong", [None, 3, [], [bytes(64)], {}, bytearray(64)], ids=repr)
def test_a_signature_of_another_type_signs_nothing(wrong):
    """What arrives in its place is any plain value; a list has no hash."""
    parties = Parties()
    parties.advertise()
    parties.share()
    assert not parties.server.add_masked(4, {**masked(parties, 4), "signature": wrong})
    assert parties.server.refused == {4: "vector without its valid signature"}
    parties.mask(only={0, 1, 2, 3})
    parties.server.add_signature(3, {"signature": wrong})
    assert parties.server.refused[3] == "signature of another list of survivors"
    assert parties.server._signatures == {}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("taken", [0, 1])
def test_the_server_leaves_out_who_uses_one_key_of_another(place, taken):
    """In the same place or in the other one; the neighbours would abort."""
    parties = Parties()
    advert = parties.clients[0].advertise()
    parties.server.add_advert(0, advert)
    keys = parties.clients[1].advertise()["keys"]
    own = [keys[:32], keys[32:64]]
    own[place] = advert["keys"][32 * taken :][:32]
    parties.server.add_advert(1, signed_keys(parties, 1, b"".join(own)))
    assert parties.server.refused == {1: "advertised keys that were used before"}


def wrong_unmasking(parties, answer):
    """Yield what holder 0 must not send: client 4 dropped out, the others survived, and nobody has the id 9."""
    selfs, keys, held = answer["self"], answer["keys"], dict(parties.clients[0]._shares)
    yield {"self": {**selfs, 4: held[4][0]}, "keys": keys}  # the self-mask of one whose mask key is opened
    yield {"self": selfs, "keys": {**keys, 1: held[1][1]}}  # and the other way round
    yield {"self": {**selfs, 0: bytes(32)}, "keys": keys}
    yield {"self": {**selfs, 9: bytes(32)}, "keys": keys}
    yield {"self": selfs, "keys": {**keys, 9: bytes(32)}}
    yield {"self": selfs, "keys": {**keys, 0: bytes(32)}}
    for junk in (None, 3, [], [4]):
        yield {"self": selfs, "keys": junk}
        yield {"self": junk, "keys": keys}
        yield {"self": junk, "keys": junk}


def test_shares_that_were_not_asked_for_are_not_taken():
    """With both shares of a client, the server could open its vector."""
    parties = Parties()
    parties.advertise()
    parties.share()
    parties.mask(only={0, 1, 2, 3})
    parties.confirm()
    held = parties.clients[0]._shares
    right = {"self": {v: held[v][0] for v in (1, 2, 3)}, "keys": {4: held[4][1]}}
    for wrong in wrong_unmasking(parties, right):
        parties.server.refused.clear()
        parties.server.add_unmasking(0, wrong)
        assert parties.server.refused == {0: "malformed shares"}
        assert (parties.server._shares_b, parties.server._shares_s, parties.server._dishonest) == ({}, {}, {})
    parties.server.refused.clear()
    assert parties.clients[0].unmask(parties.signatures[0]) == right
    parties.server.add_unmasking(0, right)
    assert parties.server.refused == {}
    assert parties.server._shares_b == {v: {0: right["self"][v]} for v in (1, 2, 3)}
    assert parties.server._shares_s == {4: {0: right["keys"][4]}}
