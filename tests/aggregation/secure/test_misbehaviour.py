"""What a lying server or client may try, beyond the tests of the protocol."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.keys import derive, pair_info
from paceline.aggregation.secure.masks import expand
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.session import alive_digest, near_of, new_session, number
from paceline.aggregation.secure.simulate import arithmetic_sum, secure_sum
from paceline.core.errors import ConfigError, ProtocolError, QuorumError
from tests.aggregation.secure.test_protocol import CONFIG, STEPS, Parties, check, vectors

JUNK = [None, 3, "text", b"bytes", [], [1], {}, {1: 2}, {"a": b"b"}, {0: b""}, {1: b"x", 2: None}, {(1, 2): b"x"}]


def signed_keys(parties, client, keys):
    return {"keys": keys + parties.identities[client].sign(parties.session.context("advertise") + number(client) + keys)}


# -- clients against a lying server --------------------------------------------------------------
@pytest.mark.parametrize("change", [{"round": 2}, {"attempt": 1}, {"id": bytes(32)}])
def test_keys_of_another_round_attempt_or_session_are_refused(change):
    parties = Parties()
    old = replace(parties.session, **change)
    parties.advertise()
    replayed = SecureClient(1, old, parties.identities[1], parties.directory).advertise()["keys"]
    with pytest.raises(ProtocolError, match="client 1 lack a valid signature"):
        parties.clients[0].share({**parties.hashes, 1: hashlib.sha256(replayed).digest()}, {**parties.adverts[0], 1: replayed})


def test_pair_masks_differ_between_rounds_even_with_the_same_keys():
    """S7: one X25519 secret, two rounds: no 16-byte block occurs twice."""
    sessions = [replace(Parties().session, round=r) for r in (1, 2)]
    blocks = []
    for session in sessions:
        seed = derive(b"s" * 32, session.context("salt"), pair_info("mask", 1, 2))
        for name in ("main", "exact"):
            data = expand(seed, name, 4096, "<u4").tobytes()
            blocks += [data[i : i + 16] for i in range(0, len(data), 16)]
    assert len(set(blocks)) == len(blocks)


@pytest.mark.parametrize("change", [{"threshold": 1}, {"neighbours": 2}, {"id": b""}, {"clients": (0, 0, 1)}, {"tell_bytes": 1}])
def test_sessions_that_were_tampered_with_are_refused(change):
    parties = Parties()
    with pytest.raises(ProtocolError, match="discarded the session"):
        SecureClient(0, replace(parties.session, **change), parties.identities[0], parties.directory)


def test_a_client_may_insist_on_its_own_options():
    parties = Parties()
    args = (0, parties.session, parties.identities[0], parties.directory)
    SecureClient(*args, policy=CONFIG)
    with pytest.raises(ProtocolError, match="this client's policy"):
        SecureClient(*args, policy=SecureConfig())


def test_thresholds_that_a_lying_server_could_split_are_refused():
    with pytest.raises(ConfigError, match="t > k/2"):
        new_session(range(9), SecureConfig(threshold=4))
    new_session(range(9), SecureConfig(threshold=4, active=False))
    with pytest.raises(QuorumError, match="too few"):
        new_session(range(4), SecureConfig(threshold=4))
    with pytest.raises(ConfigError, match="even number"):
        new_session(range(60), SecureConfig(neighbours=31, threshold=20))


def test_invented_keys_of_strangers_are_found_out_before_anything_opens():
    """On a ring a client checks its neighbours' keys only; the graph's digest is signed with the survivors."""
    parties = Parties(12, SecureConfig(gamma=0.0, complete_up_to=3, neighbours=4, threshold=3))
    parties.advertise()
    stranger = next(v for v in range(1, 12) if v not in parties.adverts[0])
    forged = dict(parties.hashes)
    for counter in range(10_000):  # grind until the victim's own neighbours are the same, as it checks those
        forged[stranger] = hashlib.sha256(number(counter)).digest()
        if near_of(parties.session, forged, 0) == near_of(parties.session, parties.hashes, 0):
            break
    for c in parties.adverts:
        hashes = forged if c == 0 else parties.hashes
        parties.server.add_shares(c, parties.clients[c].share(hashes, parties.adverts[c]))
    parties.mail = parties.server.inbox_for()
    parties.mask()
    signatures = {c: parties.clients[c].consistency(parties.alive)["signature"] for c in parties.alive}
    with pytest.raises(ProtocolError, match="signed the same list"):
        parties.clients[0].unmask({v: signatures[v] for v in parties.adverts[0]})
    parties.clients[stranger].unmask({v: signatures[v] for v in parties.adverts[stranger]})


def test_two_segments_of_one_name_are_refused():
    """Their masks would be the same, and their difference would be open."""
    parties = Parties()
    parties.advertise()
    parties.share()
    parties.clients[0].receive(*parties.mail[0].values())
    segment = Segment("main", 2, 8)
    with pytest.raises(ProtocolError, match="same name"):
        parties.clients[0].masked([(segment, np.zeros(2, "<u4")), (segment, np.zeros(2, "<u4"))])


@pytest.mark.parametrize("words", [np.zeros(2), np.zeros(2, np.int32), np.zeros(3, np.uint32), np.zeros(2, np.uint64)])
def test_words_of_another_type_are_never_masked(words):
    parties = Parties()
    parties.advertise()
    parties.share()
    parties.clients[0].receive(*parties.mail[0].values())
    with pytest.raises(ProtocolError, match="words of <u4"):
        parties.clients[0].masked([(Segment("main", 2, 8), words)])
    assert not words.any()


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_whatever_a_server_sends_a_client_only_refuses(junk):
    parties = Parties()
    parties.advertise()
    for call in (lambda c: c.share(junk, parties.adverts[0]), lambda c: c.share(parties.hashes, junk)):
        machine = SecureClient(0, parties.session, parties.identities[0], parties.directory)
        machine.advertise()
        with pytest.raises(ProtocolError):
            call(machine)
    parties.share()
    with pytest.raises(ProtocolError):
        parties.clients[0].receive(junk, parties.mail[0]["told"])
    with pytest.raises(ProtocolError):
        parties.clients[1].receive(parties.mail[1]["sealed"], junk)
    for c in (2, 3):
        parties.clients[c].receive(*parties.mail[c].values())
        parties.clients[c].masked([(s, w.copy()) for s, w in parties.inputs[c]])
    with pytest.raises(ProtocolError):
        parties.clients[2].consistency(junk)
    parties.clients[3].consistency([0, 1, 2, 3])
    with pytest.raises(ProtocolError):
        parties.clients[3].unmask(junk)


# -- the server against lying clients ------------------------------------------------------------
@pytest.mark.parametrize("junk", [*JUNK, {"keys": 1}, {"sealed": {}, "told": {}}, {"table": [[1, 2, 3]]}, {"self": 1}], ids=repr)
def test_whatever_a_client_sends_the_server_only_leaves_it_out(junk):
    parties = Parties(6)
    server = parties.server
    for c, machine in parties.clients.items():
        server.add_advert(c, junk if c == 5 else machine.advertise())
    server.add_advert(77, parties.clients[0].state())
    parties.hashes, parties.adverts = server.directory_for()
    server.add_shares(5, junk)
    parties.share()
    server.add_masked(5, junk)
    parties.mask()
    server.add_signature(5, junk)
    parties.confirm()
    server.add_unmasking(5, junk)
    for c in parties.alive:
        server.add_unmasking(c, parties.clients[c].unmask(parties.signatures[c]))
    check([w for _, w in server.open()], parties.inputs, [0, 1, 2, 3, 4])
    assert set(server.refused) == {5, 77}


def test_what_comes_late_is_never_added():
    parties = Parties()
    parties.advertise()
    parties.share()
    late = {}
    for c in range(5):
        parties.clients[c].receive(*parties.mail[c].values())
        late[c] = parties.clients[c].masked([(s, w.copy()) for s, w in parties.inputs[c]])
        if c < 4:
            parties.server.add_masked(c, late[c])
    parties.alive = parties.server.alive()
    assert not parties.server.add_masked(4, late[4])
    parties.server.add_advert(4, {})
    parties.server.add_shares(4, {})
    assert parties.server.late == {4}
    parties.confirm()
    for c in parties.alive:
        parties.server.add_unmasking(c, parties.clients[c].unmask(parties.signatures[c]))
    check([w for _, w in parties.server.open()], parties.inputs, [0, 1, 2, 3])
    with pytest.raises(ProtocolError, match="close step 4"):
        parties.server.open()


def test_steps_of_the_server_come_in_order():
    parties = Parties()
    with pytest.raises(ProtocolError, match="was closed"):
        parties.server.add_masked(0, {})
    with pytest.raises(ProtocolError, match="close step 2"):
        parties.server.alive()


def test_copied_and_low_order_keys_are_left_out_by_the_server():
    """A neighbour would have to abort on seeing them: one client could stop the round."""
    parties = Parties()
    parties.server.add_advert(0, first := parties.clients[0].advertise())
    parties.server.add_advert(1, signed_keys(parties, 1, first["keys"][:64]))
    parties.server.add_advert(2, signed_keys(parties, 2, b"\x09" + bytes(31) + bytes(32)))
    parties.server.add_advert(3, signed_keys(parties, 3, b"\x09" + bytes(31) + b"\x09" + bytes(31)))
    assert "before" in parties.server.refused[1]
    assert "low order" in parties.server.refused[2]
    assert "before" in parties.server.refused[3]


def test_the_expected_segments_can_be_fixed_before_the_round():
    parties = Parties()
    parties.server = SecureServer(parties.session, parties.directory, segments=[s for s, _ in parties.inputs[1]])
    parties.inputs[0] = [(Segment("main", 9, 19), np.zeros(9, "<u4"))]
    parties.advertise()
    parties.share()
    for c in range(5):
        parties.clients[c].receive(*parties.mail[c].values())
        parties.server.add_masked(c, parties.clients[c].masked([(s, w.copy()) for s, w in parties.inputs[c]]))
    assert parties.server.alive() == [1, 2, 3, 4]
    assert "other segments" in parties.server.refused[0]


# -- sums without masks ---------------------------------------------------------------------------
@pytest.mark.parametrize("step", STEPS)
def test_sums_with_and_without_masks_are_the_same(step):
    inputs = vectors(6, length=50)
    words, alive, _ = secure_sum(inputs, SecureConfig(gamma=0.0, threshold=4), {2: step})
    plain, same = arithmetic_sum(inputs, {2: step})
    assert same == alive
    for got, expected, (segment, _) in zip(words, plain, inputs[0], strict=True):
        assert np.array_equal(got & got.dtype.type(segment.mask), expected)
    with pytest.raises(QuorumError):
        arithmetic_sum(inputs, dict.fromkeys(inputs, "share"))


def test_a_survivor_that_shared_nothing_with_a_neighbour_is_refused():
    """Its mask could not be taken away; and whoever has no share of it would be asked for none, so nobody would notice."""
    parties = Parties()
    parties.advertise()
    for c in range(4):
        parties.server.add_shares(c, parties.clients[c].share(parties.hashes, parties.adverts[c]))
    parties.mail = parties.server.inbox_for()
    parties.mask()
    with pytest.raises(ProtocolError, match="sent this client no shares"):
        parties.clients[0].consistency([0, 1, 2, 3, 4])


@pytest.mark.parametrize("change", [{"threshold": 3}, {"neighbours": 2, "threshold": 2}, {"neighbours": 3}])
def test_sizes_that_do_not_follow_from_cohort_and_options_are_refused(change):
    """Each of these would do by itself: above k/2, and possible."""
    parties = Parties(5, SecureConfig())
    with pytest.raises(ProtocolError, match="do not follow"):
        SecureClient(0, replace(parties.session, **change), parties.identities[0], parties.directory)


def test_what_is_signed_at_last_tells_tables_apart():
    """So no two clients open a sum of vectors of which they think differently."""
    parties = Parties()
    one, other = (alive_digest(parties.session, [0, 1, 2], table, b"graph") for table in ([["main", 6, 19]], [["main", 6, 20]]))
    assert one != other
