"""Sums over parts of a model: tiers, one mask stream per segment, and what each client checks for itself."""

import hashlib
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.client_openings import Openings
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.covers import Cover
from paceline.aggregation.secure.graph import least_owners
from paceline.aggregation.secure.keys import IdentityKey
from paceline.aggregation.secure.masks import expand
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.session import new_session, sends, sizes
from paceline.aggregation.secure.simulate import secure_sum
from paceline.aggregation.secure.steps import STEPS
from paceline.aggregation.secure.task_hash import OwnWork, halves, message_digest
from paceline.aggregation.tiers import TierError, TierRules, Tiers, fill_rank
from paceline.core.declarations import ClientFunction, Nesting
from paceline.core.errors import ProtocolError, QuorumError
from paceline.core.nested import settled

LENGTHS = (3, 2, 4)
SEGMENTS = [Segment(f"seg|1|{s}", n, 19, s) for s, n in enumerate(LENGTHS)] + [
    Segment(f"wgt|1|{s}", 1, 8, s) for s in range(len(LENGTHS))
]
SEGMENTS.append(Segment("exact", 2, 64))
OPEN = SecureConfig(gamma=0.0, threshold=None)


def inputs(n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        c: [(s, rng.integers(0, 1 << min(s.bits, 62), s.length, dtype=np.uint64).astype(s.dtype)) for s in SEGMENTS]
        for c in range(n)
    }


class Party:
    """All machines of one session over parts of a model, driven by hand."""

    def __init__(self, wanted, config=OPEN, clients=SecureClient, **facts):
        self.wanted, n = wanted, len(wanted)
        session = new_session(wanted, config)
        self.session = replace(session, **({"parts": len(LENGTHS), "tiers": tuple(range(len(LENGTHS)))} | facts))
        self.identities = {c: IdentityKey.generate() for c in range(n)}
        self.directory = {c: k.public for c, k in self.identities.items()}
        self.clients = {c: clients(c, self.session, self.identities[c], self.directory, tier=w) for c, w in wanted.items()}
        self.server = SecureServer(self.session, self.directory)
        self.inputs = inputs(n)

    def advertise(self):
        for c, machine in self.clients.items():
            self.server.add_advert(c, machine.advertise())
        self.hashes, self.adverts = self.server.directory_for()
        self.declared = self.server.announced(self.hashes)["tiers"]
        return self

    def share(self):
        for c in self.adverts:
            self.server.add_shares(c, self.clients[c].share(self.hashes, self.adverts[c], b"", self.declared))
        self.mail = self.server.inbox_for()
        return self

    def vector(self, c):
        machine = self.clients[c]
        return [(s, w.copy()) for s, w in self.inputs[c] if sends(machine.tiers, c, s)]

    def masked(self, c):
        self.clients[c].receive(*self.mail[c].values())
        return self.clients[c].masked(self.vector(c), SEGMENTS)

    def mask(self, without=()):
        self.sent = {c: self.masked(c) for c in self.mail}
        for c, message in self.sent.items():
            if c not in without:
                assert self.server.add_masked(c, message), self.server.refused
        return self

    def confirm(self, alive):
        self.signatures = {c: self.clients[c].consistency(alive)["signature"] for c in alive}
        return self


# -- U4 and S3b of the sheets ----------------------------------------------------------------------
class Lenient(SecureClient):
    """Accepts every tier."""

    def _check_survivors(self, tiers, alive):
        pass

    def _owned_by_neighbours(self, tiers, near):
        pass


@pytest.fixture
def u4(monkeypatch):
    """4 clients, tiers (1, 1, 2, 2), segments of 2 coordinates each, with rules that the test sets."""

    def make(clients, rules):
        monkeypatch.setattr(type(new_session(range(4), OPEN)), "tier_rules", property(lambda session: rules))
        segments = [Segment("seg|1|0", 2, 16, 0), Segment("seg|1|1", 2, 16, 1)]
        party = Party({0: 0, 1: 0, 2: 1, 3: 1}, clients=clients, parts=2, tiers=(0, 1))
        party.inputs = {
            c: [(s, np.array(v, dtype=s.dtype)) for s, v in zip(segments, ([c, 9], [7 * c, 60000]), strict=True)] for c in range(4)
        }
        party.advertise().share()
        for c in range(4):
            party.clients[c].receive(*party.mail[c].values())
            message = party.clients[c].masked(party.vector(c), segments)
            assert sum(len(part) for part in message["segments"]) == (8, 8, 4, 4)[c]  # 4, 4, 2 and 2 words of 2 bytes
            assert party.server.add_masked(c, message)
        return party

    return make


def test_u4_uploads_have_the_length_of_the_tier_and_open_to_the_plain_sums(u4):
    party = u4(Lenient, TierRules())
    alive = party.server.alive()
    for c in alive:
        party.server.add_signature(c, party.clients[c].consistency(alive))
    signatures = party.server.signatures_for()
    for c in alive:
        party.server.add_unmasking(c, party.clients[c].unmask(signatures[c]))
    (_, top), (_, rest) = party.server.open()
    assert (top & 0xFFFF).tolist() == [0 + 1, 9 + 9]
    assert (rest & 0xFFFF).tolist() == [7 * (0 + 1 + 2 + 3), 4 * 60000 % 2**16]


def test_u4_two_owners_of_a_segment_make_all_clients_refuse(u4, monkeypatch):
    party = u4(SecureClient, TierRules())
    for machine in party.clients.values():
        machine.tiers = replace(machine.tiers, rules=TierRules(contributors=3))
        with pytest.raises(ProtocolError, match="only 2 clients are left that train segment 0 of the model; the minimum is 3"):
            machine.consistency([0, 1, 2, 3])


@pytest.mark.parametrize("draws", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_s3b_segments_open_to_the_plain_sums_of_their_surviving_owners(draws):
    """7 clients, 3 nested segments, random tiers, up to two drop-outs after R1."""
    rng, opened = np.random.default_rng(1), 0
    for draw in range(draws):
        wanted = {c: int(t) for c, t in enumerate(rng.integers(0, 3, 7))}
        lost = {int(c): "masked" for c in rng.permutation(7)[: rng.integers(0, 3)]}
        opened += outcome(inputs(7, draw), wanted, lost, SecureConfig(gamma=0.0, threshold=4, least_contributors=2)) is None
    assert opened > draws / 2


def assigned(wanted, lost, config):
    """Return the tiers of those that advertised keys, and those that are left after the masked vectors."""
    session = replace(new_session(wanted, config), parts=len(LENGTHS), tiers=tuple(range(len(LENGTHS))))
    there = {c: w for c, w in wanted.items() if lost.get(c) != "advertise"}
    tiers = Tiers.of(there, session.tiers, session.parts, session.tier_rules, {c: set(there) - {c} for c in there})
    return tiers, [c for c in there if lost.get(c) not in ("share", "masked")]


def outcome(vectors, wanted, lost, config):
    """Return None if every segment opens to the sum of its surviving owners, else the refusal."""
    try:
        words, alive, _ = secure_sum(vectors, config, lost, tiers=wanted, parts=len(LENGTHS))
    except QuorumError as error:
        return error
    tiers, left = assigned(wanted, lost, config)
    assert alive == left
    for got, (segment, _), place in zip(words, vectors[0], range(len(SEGMENTS)), strict=True):
        owners = [c for c in alive if segment.part is None or tiers.owned[c] <= segment.part]
        right = sum((vectors[c][place][1].astype(object) for c in owners), np.zeros(segment.length, dtype=object))
        assert [int(w) & segment.mask for w in got] == [int(w) % (1 << segment.bits) for w in right]
        if owners and segment.part is not None:  # else nobody sends it
            assert len(tiers.trainers(segment.part, alive)) >= max(config.least(len(wanted)), config.least_contributors)
    return None


PATTERNS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None] * 8 + list(STEPS))), min_size=4, max_size=12)
LOST = r"remained (after|with|whose)|neighbours own segment|of the required \d+ shares|are too few"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(PATTERNS, st.integers(0, 1000), st.sampled_from([0.0, 0.1]), st.integers(1, 4))
def test_any_pattern_of_tiers_and_drop_outs_opens_to_the_plain_sums_or_is_refused(pattern, seed, gamma, few):
    """In every phase of the protocol; a refusal states a reason that is true, and nobody's loss is no reason."""
    wanted = dict(enumerate(tier for tier, _ in pattern))
    lost = {c: step for c, (_, step) in enumerate(pattern) if step is not None}
    config = SecureConfig(gamma=gamma, least_contributors=few)
    refusal = outcome(inputs(len(pattern), seed), wanted, lost, config)
    if isinstance(refusal, TierError):
        tiers, left = assigned(wanted, lost, config)
        with pytest.raises(TierError) as again:
            tiers.check(left)
        assert str(again.value) == str(refusal)
        assert {tiers.owned[c] for c in left} - set(refusal.left)  # the next attempt merges a tier
    elif refusal is not None:
        assert re.search(LOST, str(refusal)), refusal
    assert lost or refusal is None


# -- tiers -----------------------------------------------------------------------------------------
RULES = TierRules(members=3, contributors=4, neighbours=8)


def merged(wanted, allowed=(0, 1, 2), rules=RULES):
    clients = dict(enumerate(wanted))
    return list(Tiers.of(clients, allowed, 3, rules, {c: set(clients) - {c} for c in clients}).owned.values())


@pytest.mark.parametrize(
    ("wanted", "owned"),
    [
        ([0] * 9 + [2] * 3, [0] * 9 + [2] * 3),  # as declared
        ([0] * 10 + [2] * 2, [0, 2] + [0] * 8 + [2] * 2),  # two are no tier: a third one joins them
        ([0] * 10 + [1, 2], [0, 1] + [0] * 8 + [1] * 2),  # in the part that two of the three have declared, or a smaller one
        ([0] * 10 + [2, 1], [0, 1] + [0] * 8 + [1] * 2),
        ([1] * 3 + [0] * 10 + [2] * 2, [1] * 3 + [0] * 10 + [1] * 2),  # but a tier that gives one keeps three
        ([1] * 4 + [0] * 10 + [2] * 2, [1, 2, 1, 1] + [0] * 10 + [2] * 2),  # and it comes from the next larger part
        ([0] * 12 + [2], [0] * 13),  # one client moves no two others: padded
        ([0] * 9 + [2] * 2, [0] * 11),  # only seven neighbours of an owner would own segment 0: padded
        ([0] * 9 + [1] * 2 + [2] * 3, [0] * 9 + [2] * 5),  # merged with the next smaller part
        ([0] * 2 + [1] * 8 + [2] * 3, [1] * 10 + [2] * 3),  # the same for the largest one
        ([0] * 3 + [1] * 8 + [2] * 3, [1] * 11 + [2] * 3),  # three are a tier, but too few for a segment
        ([0] * 8 + [2] * 4, [0] * 12),  # only seven neighbours of an owner own segment 0
        ([2] * 12, [2] * 12),  # nobody has the whole model: it is not sent
        ([0] * 8 + [1] * 3 + [2] * 3, [0] * 11 + [2] * 3),  # the next tier sends zeros, so that enough own segment 0
    ],
)
def test_tiers_are_merged_until_the_rules_hold(wanted, owned):
    assert merged(wanted) == owned


@given(st.lists(st.integers(0, 5), min_size=3, max_size=14), st.sampled_from([2, 3]))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_half_of_a_tier_has_declared_it_or_less(wanted, members):
    """So a client alone makes nobody train less, and k clients together at most k others in their tier."""
    clients = dict(enumerate(wanted))
    tiers = Tiers.of(clients, range(6), 6, TierRules(members=members))
    for tier in set(tiers.owned.values()):
        inside = tiers.members(tier)
        assert len(inside) >= members or len(set(tiers.owned.values())) == 1
        assert sum(clients[c] >= tier for c in inside) >= len(inside) / 2
    alone = Tiers.of({**dict.fromkeys(clients, 0), 0: wanted[0]}, range(6), 6, TierRules(members=members))
    assert members == 2 or [alone.fraction_index(c) for c in range(1, len(wanted))] == [0] * (len(wanted) - 1)


def test_a_smaller_part_is_trained_where_a_tier_is_merged_and_zeros_are_sent_where_it_is_padded():
    padded = Tiers.of(dict(enumerate([0] * 9 + [2])), (0, 1, 2), 3, RULES)
    assert [padded.fraction_index(c) for c in (0, 9)] == [0, 2]
    assert padded.trainers(0) == list(range(9))
    assert padded.owners(0) == list(range(10))
    reduced = Tiers.of(dict(enumerate([0] * 2 + [1] * 9)), (0, 1, 2), 3, RULES)
    assert {reduced.fraction_index(c) for c in range(11)} == {1}


def test_clients_that_fill_a_tier_are_the_same_in_each_round():
    """Whoever else takes part; and never so many that too few train a segment."""
    rules = replace(RULES, neighbours=0)
    assert sorted(range(20), key=fill_rank) == [1, 6, 19, 17, 13, 5, 4, 16, 8, 2, 15, 14, 7, 0, 18, 9, 11, 12, 10, 3]
    for there, filled in ((range(8), 1), ((0, 1, 2, 3, 6, 7), 1), ((0, 2, 3, 4, 5, 6, 7), 5)):
        tiers = Tiers.of({c: 2 if c >= 6 else 0 for c in there}, (0, 1, 2), 3, replace(rules, contributors=3))
        assert tiers.members(2) == [filled, 6, 7]
    assert merged([0] * 5 + [2] * 2, rules=rules) == [0, 2, 0, 0, 0, 2, 2]
    assert merged([0] * 4 + [2] * 2, rules=rules) == [0] * 6
    assert merged([0] * 4 + [2] * 2, rules=replace(rules, contributors=3)) == [0, 2, 0, 0, 2, 2]
    assert merged([0] * 4 + [2] * 1, rules=replace(rules, contributors=3, members=2)) == [0, 2, 0, 0, 2]


@pytest.mark.parametrize(
    ("clients", "gamma", "most"), [(6, 0.1, 0), (7, 0.1, 3), (8, 0.1, 4), (8, 0.2, 3), (8, 0.0, 5), (15, 0.1, 8), (20, 0.1, 11)]
)
def test_how_many_clients_may_have_a_smaller_part(clients, gamma, most):
    """With the default threshold and all in one neighbourhood."""
    found = []
    session = replace(new_session(range(clients), SecureConfig(gamma=gamma)), parts=3, tiers=(0, 1, 2))
    for slow in range(clients):
        wanted = {c: 2 if c < slow else 0 for c in range(clients)}
        tiers = session.assigned_tiers(wanted, {c: bytes(32) for c in range(clients)})
        found += [slow] if tiers.members(2) == list(range(slow)) and tiers.members(0) else []
    assert max(found, default=0) == most


def test_more_co_owners_have_helped_than_are_corrupt():
    """Of any t helpers in a complete graph; in a sparse one the threshold is required, as fewer than 2t - k neighbours are corrupt."""
    for n in range(5, 51):
        for gamma in (0.0, 0.1, 0.2):
            k, t = sizes(n, SecureConfig(gamma=gamma))
            owners = least_owners(n, k, t, gamma)
            corrupt = math.ceil(gamma * n - 1e-9)
            assert owners + t - k == corrupt + 1 or owners == t
            assert corrupt < owners <= t
    k, t = sizes(300, SecureConfig())
    assert least_owners(300, k, t, 0.1) == t


def test_tiers_that_a_session_does_without_are_merged():
    wanted = [0] * 9 + [1] * 3 + [2] * 3
    assert merged(wanted, allowed=(0, 2)) == [0] * 9 + [2] * 6
    assert merged(wanted, allowed=(0, 1)) == [0] * 9 + [1] * 6
    assert merged(wanted, allowed=(2,)) == [2] * 15
    assert merged(wanted, allowed=(0,)) == [0] * 15


def test_clients_that_send_zeros_do_not_count_as_contributors():
    """Two train segment 0, of fourteen that could send it."""
    assert merged([0] * 2 + [2] * 12, allowed=(0,)) == [2] * 14
    assert merged([0] * 4 + [2] * 10, allowed=(0,)) == [0] * 14


def test_without_rules_a_client_may_be_alone_in_its_tier():
    tiers = Tiers.of({0: 0, 1: 2}, range(3), 3, TierRules(), {0: [1], 1: [0]})
    assert tiers.owned == {0: 0, 1: 2}
    tiers.check([0])
    tiers.check([0, 1])


def test_too_few_clients_have_no_tiers():
    with pytest.raises(QuorumError, match="3 clients are too few: a segment of the model needs 4"):
        merged([0, 0, 2])


# -- malicious servers -----------------------------------------------------------------------------
WANTED = {c: 2 if c >= 12 else 0 for c in range(15)}


def test_a_moved_client_is_noticed_by_its_signature_or_by_the_survivors():
    """In a sparse graph a client knows the signatures of its neighbours only; all survivors sign the list."""
    config = SecureConfig(gamma=0.0, complete_up_to=3, neighbours=4, threshold=3)
    wanted = {c: 2 if c in (3, 7, 11) else 0 for c in range(24)}
    party = Party(wanted, config).advertise()
    stranger = next(v for v in range(1, 24) if v not in party.adverts[0] and wanted[v] == 0)
    lied = {**party.declared, stranger: 2}
    for c in party.adverts:
        if c == 0 or c == stranger or stranger not in party.adverts[c]:
            continue
        with pytest.raises(ProtocolError, match=f"announced tier 2 for client {stranger}, which signed tier 0"):
            party.clients[c].share(party.hashes, party.adverts[c], b"", lied)
    others = [c for c in party.adverts if stranger not in party.adverts[c] and c != stranger]
    tables = {c: lied if c == others[0] else party.declared for c in others}
    for c in others:
        party.server.add_shares(c, party.clients[c].share(party.hashes, party.adverts[c], b"", tables[c]))
    liar, neighbour = party.clients[others[0]], party.clients[others[1]]
    assert liar._graph != neighbour._graph  # so that no signature of one counts for the other


def test_forged_advertisements_with_another_tier_lack_a_signature():
    party = Party(WANTED).advertise()
    advert = party.adverts[0][14]
    forged = advert[:64] + bytes([0]) + advert[65:]
    hashes = {**party.hashes, 14: hashlib.sha256(forged).digest()}
    with pytest.raises(ProtocolError, match="client 14 lack a valid signature"):
        party.clients[0].share(hashes, {**party.adverts[0], 14: forged}, b"", {**party.declared, 14: 0})


@pytest.mark.parametrize("tiers", [None, {}, [], {0: 0}, {c: "x" for c in WANTED}, {c: 3 for c in WANTED}, {c: -1 for c in WANTED}])
def test_malformed_tiers_are_refused(tiers):
    party = Party(WANTED).advertise()
    with pytest.raises(ProtocolError, match="tier"):
        party.clients[0].share(party.hashes, party.adverts[0], b"", tiers)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"parts": 3, "tiers": ()}, "do not fit together"),
        ({"parts": 0, "tiers": (0,)}, "do not fit together"),
        ({"parts": 3, "tiers": (0, 3)}, "ascending list"),
        ({"parts": 3, "tiers": (2, 0)}, "ascending list"),
        ({"parts": 256, "tiers": (0,)}, "do not fit together"),
    ],
)
def test_sessions_with_other_tiers_than_there_are_have_faults(facts, text):
    session = replace(new_session(range(5), OPEN), **facts)
    assert text in "; ".join(session.faults())


def test_after_drop_outs_no_segment_of_few_owners_is_confirmed():
    party = Party(WANTED).advertise().share().mask()
    for c, alive, text in (
        (0, [0, 1, *range(12, 15)], "only 2 clients are left that train segment 0"),
        (14, [*range(12), 13, 14], "only 2 clients are left in tier 2"),
        (1, [0, 1, 2, 77], "malformed"),
    ):
        with pytest.raises(ProtocolError, match=text):
            party.clients[c].consistency(alive)


def test_a_filled_tier_is_not_left_to_the_two_that_declared_it():
    """With the default options, eight clients and two slow ones, which client 1 joins."""
    party = Party({c: 2 if c >= 6 else 0 for c in range(8)}, SecureConfig()).advertise().share().mask()
    assert [len(party.sent[c]["segments"]) for c in range(8)] == [7, 3, 7, 7, 7, 7, 3, 3]
    with pytest.raises(ProtocolError, match="only 2 clients are left in tier 2"):
        party.clients[0].consistency([0, 2, 3, 4, 5, 6, 7])


def test_after_a_loss_of_shares_too_few_neighbours_own_a_segment():
    """5 of 15 own segment 0, so each owner has 4 neighbours that do; of 11 helpers, one at least is another owner."""
    wanted = {c: 2 if c >= 5 else 0 for c in range(15)}
    party = Party(wanted).advertise().share()
    mail = {part: {v: x for v, x in party.mail[0][part].items() if v != 3} for part in ("sealed", "told")}
    with pytest.raises(ProtocolError, match="only 3 neighbours own segment 0 of the model; the minimum is 4"):
        party.clients[0].receive(mail["sealed"], mail["told"])
    late = Party(wanted).advertise()
    for c in range(14):  # without client 14, a slow one
        late.server.add_shares(c, late.clients[c].share(late.hashes, late.adverts[c], b"", late.declared))
    assert set(late.server.inbox_for()) == set(range(14))
    lost = Party(wanted).advertise()
    for c in range(1, 15):  # without client 0
        lost.server.add_shares(c, lost.clients[c].share(lost.hashes, lost.adverts[c], b"", lost.declared))
    with pytest.raises(QuorumError, match="only 3 neighbours own segment 0"):
        lost.server.inbox_for()


def test_a_client_sends_the_segments_of_its_tier_and_nothing_else():
    party = Party(WANTED).advertise().share()
    for wrong in ([(s, w.copy()) for s, w in party.inputs[14]], party.inputs[14][2:3]):
        machine = SecureClient.from_state(party.clients[14].state(), party.identities[14], party.directory)
        machine.receive(*party.mail[14].values())
        with pytest.raises(ProtocolError, match="not those of tier 2"):
            machine.masked([(s, w.copy()) for s, w in wrong], SEGMENTS)


def test_a_client_that_was_restarted_goes_on_with_its_tier():
    party = Party(WANTED).advertise().share()
    machine = SecureClient.from_state(party.clients[14].state(), party.identities[14], party.directory)
    assert (machine.tier, machine.tiers, machine._graph) == (2, party.clients[14].tiers, party.clients[14]._graph)


def test_an_upload_that_lacks_a_segment_is_left_out_whole():
    party = Party(WANTED).advertise().share()
    message = party.masked(0)
    assert not party.server.add_masked(0, {**message, "segments": message["segments"][1:]})
    assert party.server.refused[0] == "malformed vector"
    assert 0 not in party.server._vectors


def test_s7_streams_of_segments_and_rounds_share_no_block():
    blocks = []
    for name in [f"{kind}|{r}|{s}" for kind in ("seg", "weight") for r in (1, 2) for s in range(3)]:
        data = expand(b"s" * 32, name, 4096, "<u4").tobytes()
        blocks += [data[i : i + 16] for i in range(0, len(data), 16)]
    assert len(set(blocks)) == len(blocks)


# -- openings --------------------------------------------------------------------------------------
def cover(clients, slow, partition="p"):
    clients = list(clients)
    owned = {c: 2 if c in slow else 0 for c in clients}
    return Cover.of(clients, Tiers(owned, owned, 3, TierRules()), partition)


def own(work=b"w", version=b"v", function="train"):
    return OwnWork(b"c", work, version, function)


WHOLE = cover(range(12), {9, 10, 11})


@pytest.mark.parametrize(
    "other",
    [
        cover(range(11), {9, 10}),  # one client less
        cover(range(12), {8, 9, 10, 11}),  # the same clients, one in another tier
        cover(range(12), {8, 9, 10}),  # one fills the tier in place of another
        cover(range(12), set()),
        cover(range(12), {9, 10, 11}, "another"),  # the same tiers, other segments
        Cover.of(range(12)),
        *(cover(half, {9, 10, 11}) for half in halves(b"c", range(12), 3)),
    ],
)
def test_the_same_work_is_opened_over_the_same_clients_in_every_segment(other):
    record = Openings(durable=False)
    record.record(own(), "run", 1, WHOLE)
    record.check(own(), "another run", 9, WHOLE, lambda n: 3)
    with pytest.raises(ProtocolError, match="opened before for other survivors"):
        record.check(own(), "another run", 9, other, lambda n: 3)


@pytest.mark.parametrize(
    ("other", "refused"),
    [
        (cover(range(12), {9, 10, 11}), False),
        (cover(range(12), {9, 10, 11}, "another"), True),  # a coordinate of segment 0 may be in segment 2 of the other
        (cover(range(12), {8, 9, 10, 11}), True),  # segment 0 lacks client 8
        (cover(range(12), {8, 9, 10}), True),  # and has client 11 in its place
        (cover(range(12, 24), {23}), False),  # others
    ],
)
def test_nearly_the_same_work_is_compared_segment_by_segment(other, refused):
    record = Openings(durable=False, least_difference=3, scope="round")
    record.record(own(), "run", 1, WHOLE)
    near = own(work=b"x")
    if refused:
        with pytest.raises(ProtocolError, match="least_difference"):
            record.check(near, "run", 1, other, lambda n: 3)
    else:
        record.check(near, "run", 1, other, lambda n: 3)


def test_a_half_of_a_sum_over_whole_models_is_no_sum_over_parts():
    half = halves(b"c", range(12), 3)[0]
    record = Openings(durable=False)
    record.record(own(), "run", 1, range(12))
    record.check(own(), "run", 1, half, lambda n: 3)
    with pytest.raises(ProtocolError, match="opened before for other survivors"):
        record.check(own(), "run", 1, cover(half, set(half[:3])), lambda n: 3)


def test_the_same_model_in_other_segments_is_the_same_model():
    """Sums over it are compared, whatever the order of the units; another model is another one."""
    part = ClientFunction(nested=Nesting("tier", "order", (1.0, 0.5)))
    head = {"order": {"a": torch.ones(2)}, "hashes": torch.zeros(2, 32), "model": torch.zeros(32)}
    other = {**head, "order": {"a": torch.zeros(2)}, "hashes": torch.ones(2, 32)}
    (whole, model), (whole_2, model_2) = message_digest(head, part), message_digest(other, part)
    assert model == model_2
    assert whole != whole_2
    assert message_digest({**head, "model": torch.ones(32)}, part)[1] != model
    assert message_digest(other, ClientFunction())[1] != message_digest(head, ClientFunction())[1]


def test_covers_are_stored_and_lists_of_earlier_versions_are_read():
    assert Cover.read(WHOLE.text()) == WHOLE
    assert Cover.read("[1, 2, 3]") == Cover.of([3, 1, 2])
    assert Cover.of([1, 2]).text() == "[1, 2]"


def test_a_client_stays_in_its_tier_for_some_rounds():
    nesting, memory, seen = Nesting("tier", "order", (1.0, 0.75, 0.5), settle=3), {}, []
    for number, fraction in enumerate([1.0, 0.5, 0.5, 0.5, 1.0, 0.75, 0.75, 0.75], 1):
        seen.append(settled(memory, nesting.tier(fraction), number, nesting))
    assert seen == [0, 0, 0, 2, 2, 2, 1, 1]
    assert [nesting.tier(p) for p in (1.0, 0.9, 0.75, 0.74, 0.1)] == [0, 1, 1, 2, 2]
