"""The protocol as a whole: sums, drop-outs at every step, and everything a party may do wrong."""

import hashlib
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.keys import IdentityKey
from paceline.aggregation.secure.masks import expand
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.session import alive_digest, new_session
from paceline.aggregation.secure.simulate import secure_sum
from paceline.core.errors import MisbehaviourError, ProtocolError, QuorumError

STEPS = ("advertise", "share", "masked", "consistency", "unmask")
CONFIG = SecureConfig(gamma=0.0, threshold=3)


def vectors(n, length=6, bits=19, seed=0):
    rng = np.random.default_rng(seed)
    segments = [Segment("main", length, bits), Segment("exact", 2, 64)]
    return {
        c: [(s, rng.integers(0, 1 << min(s.bits, 62), s.length, dtype=np.uint64).astype(s.dtype)) for s in segments]
        for c in range(n)
    }


def plain_sum(inputs, survivors):
    out = []
    for place, (segment, _) in enumerate(inputs[survivors[0]]):
        total = sum(0 + inputs[c][place][1].astype(object) for c in survivors)
        out.append([int(v) % (1 << segment.bits) for v in total])
    return out


def check(words, inputs, survivors):
    for got, expected, (segment, _) in zip(words, plain_sum(inputs, survivors), inputs[survivors[0]], strict=True):
        assert [int(v) & segment.mask for v in got] == expected


class Parties:
    """All machines of one session, driven by hand."""

    def __init__(self, n=5, config=CONFIG, round=1, attempt=0):
        self.inputs = vectors(n)
        self.session = new_session(self.inputs, config, round, attempt)
        self.identities = {c: IdentityKey.generate() for c in range(n)}
        self.directory = {c: k.public for c, k in self.identities.items()}
        self.clients = {c: SecureClient(c, self.session, self.identities[c], self.directory) for c in range(n)}
        self.server = SecureServer(self.session, self.directory)

    def advertise(self):
        for c, machine in self.clients.items():
            self.server.add_advert(c, machine.advertise())
        self.hashes, self.adverts = self.server.directory_for()

    def share(self, tells=None):
        for c in self.adverts:
            self.server.add_shares(c, self.clients[c].share(self.hashes, self.adverts[c], (tells or {}).get(c, b"")))
        self.mail = self.server.inbox_for()

    def mask(self, only=None):
        for c, mail in self.mail.items():
            if only is None or c in only:
                self.clients[c].receive(mail["sealed"], mail["told"])
                words = [(s, w.copy()) for s, w in self.inputs[c]]
                assert self.server.add_masked(c, self.clients[c].masked(words))
        self.alive = self.server.alive()

    def confirm(self):
        for c in self.alive:
            self.server.add_signature(c, self.clients[c].consistency(self.alive))
        self.signatures = self.server.signatures_for()

    def to(self, step):
        for name in ("advertise", "share", "mask", "confirm")[: ("share", "mask", "confirm", "unmask").index(step) + 1]:
            getattr(self, name)()
        return self


# -- S1, S4, S8, S9 ------------------------------------------------------------------------------
X = {1: (5, 250), 2: (7, 3), 3: (1, 10)}
B = {1: (60, 61), 2: (9, 200), 3: (77, 5)}
P = {(1, 2): (100, 17), (1, 3): (201, 90), (2, 3): (33, 250)}


def masked_by_hand(u, sign=1, self_mask=True, swap=False):
    y = np.array(X[u], dtype=np.int64) + (np.array(B[u]) if self_mask else 0)
    for (a, b), mask in P.items():
        if u in (a, b):
            first = (u == a) != swap
            y = y + sign * np.array(mask) * (1 if first else -1)
    return y % 256


def test_s1_the_sheets_numbers():
    y = {u: masked_by_hand(u) for u in X}
    assert {u: tuple(v) for u, v in y.items()} == {1: (110, 162), 2: (205, 180), 3: (100, 187)}
    total = sum(y.values()) - sum(np.array(b) for b in B.values())
    assert tuple(total % 256) == (13, 7)
    lost = y[1] + y[2]
    assert tuple(lost % 256) == (59, 86)
    opened = (lost - np.array(B[1]) - np.array(B[2]) - np.array(P[1, 3]) - np.array(P[2, 3])) % 256
    assert tuple(opened) == (12, 253)


def test_s1_with_the_real_machines():
    config = SecureConfig(gamma=0.0, threshold=2)
    segment = Segment("main", 2, 8)
    inputs = {u: [(segment, np.array(x, dtype="<u4"))] for u, x in X.items()}
    words, alive, _ = secure_sum(inputs, config)
    assert alive == [1, 2, 3]
    assert (words[0] & 255).tolist() == [13, 7]


@pytest.mark.parametrize("wrong", [{"swap": True}, {"self_mask": False}])
def test_s4_a_wrong_mask_fails_s1(wrong):
    y = {u: masked_by_hand(u, **(wrong if u == 2 else {})) for u in X}
    total = sum(y.values()) - sum(np.array(b) for b in B.values())
    assert tuple(total % 256) != (13, 7)


@pytest.mark.parametrize("wrong", ["sign", "self", "ids"])
def test_s4_wrong_machines_do_not_open_the_sum(monkeypatch, wrong):
    from paceline.aggregation.secure import client as module

    real = module.apply_all

    def bent(words, seeds, segment, prg):
        if wrong == "sign":
            seeds = [seeds[0], *[(s, -g) for s, g in seeds[1:2]], *seeds[2:]]
        elif wrong == "self":
            seeds = seeds[1:]
        else:
            seeds = [seeds[0], *[(s, 1) for s, _ in seeds[1:]]]
        real(words, seeds, segment, prg)

    monkeypatch.setattr(module, "apply_all", bent)
    inputs = vectors(4)
    words, alive, _ = secure_sum(inputs, CONFIG)
    assert [int(v) & inputs[0][0][0].mask for v in words[0]] != plain_sum(inputs, alive)[0]


def test_s8_masked_words_look_uniform_whatever_the_input():
    """Chi-square of the bytes of a masked vector, for an all-zero and an all-max input."""
    for fill in (0, 255):
        counts = np.zeros(256)
        for _ in range(60):
            segment = Segment("main", 200, 8)
            parties = Parties(3, SecureConfig(gamma=0.0, threshold=2))
            parties.inputs = {c: [(segment, np.full(200, fill, dtype="<u4"))] for c in range(3)}
            parties.advertise()
            parties.share()
            parties.clients[0].receive(*parties.mail[0].values())
            packed = parties.clients[0].masked([(s, w.copy()) for s, w in parties.inputs[0]])["segments"][0]
            counts += np.bincount(np.frombuffer(packed, np.uint8), minlength=256)
        expected = counts.sum() / 256
        chi = ((counts - expected) ** 2 / expected).sum()
        assert 150 < chi < 400  # 255 degrees of freedom: mean 255, deviation 22.6


def test_s9_every_drop_set_and_step_gives_the_right_sum_or_a_clean_abort():
    """n = 5, t = 3: one step for each drop set of up to four clients, and mixed steps for two pairs; all cases are slow."""
    inputs = vectors(5, length=3)
    cases = [dict.fromkeys(s, step) for r in range(5) for s in combinations(range(5), r) for step in STEPS]
    cases += [
        dict(zip(pair, steps, strict=True)) for pair in ((0, 1), (2, 4)) for steps in product(STEPS, STEPS) if steps[0] != steps[1]
    ]
    for gone in cases:
        try:
            words, alive, _ = secure_sum(inputs, CONFIG, gone)
        except (QuorumError, ProtocolError):  # a client that sees too few confirmations refuses: clean as well
            assert len(gone) >= 2, gone
        else:  # each secret has 4 holders, of whom 3 must answer
            assert len(gone) <= 1, gone
            assert alive == [c for c in range(5) if gone.get(c) not in ("advertise", "share", "masked")]
            check(words, inputs, alive)


@pytest.mark.parametrize("n", [81, 120])
def test_regular_graph_with_dropouts_at_several_steps(n):
    inputs = vectors(n, length=4)
    gone = {1: "advertise", 7: "share", 13: "masked", 21: "masked", 33: "consistency", 40: "unmask"}
    config = SecureConfig(gamma=0.05, delta=0.05)
    words, alive, costs = secure_sum(inputs, config, gone)
    assert new_session(inputs, config).neighbours < n - 1
    assert alive == [c for c in range(n) if c not in (1, 7, 13, 21)]
    check(words, inputs, alive)
    assert costs.bytes_up > 0


def test_every_segment_has_a_stream_of_its_own():
    assert not np.array_equal(expand(b"k" * 32, "main", 8, np.dtype("<u4")), expand(b"k" * 32, "exact", 8, np.dtype("<u4")))


# -- S5, S6 --------------------------------------------------------------------------------------
def test_s5_shares_are_of_one_kind_only():
    parties = Parties()
    parties.advertise()
    parties.share()
    parties.mask(only={0, 1, 2, 3})
    parties.confirm()
    for c in parties.alive:
        answer = parties.clients[c].unmask(parties.signatures[c])
        assert set(answer["self"]).isdisjoint(answer["keys"])
        assert set(answer["keys"]) == {4}


def test_s5_two_lists_of_survivors_are_refused_and_burn_the_session():
    parties = Parties()
    parties.advertise()
    parties.share()
    parties.mask()
    victim = parties.clients[0]
    victim.consistency(parties.alive)
    with pytest.raises(ProtocolError, match="discarded the session"):
        victim.consistency([0, 1, 2, 3])
    with pytest.raises(ProtocolError, match="was discarded"):
        victim.unmask({})


def test_s6_unmasking_is_answered_once():
    parties = Parties().to("unmask")
    parties.clients[0].unmask(parties.signatures[0])
    with pytest.raises(ProtocolError, match="was discarded"):
        parties.clients[0].unmask(parties.signatures[0])


# -- misbehaviour --------------------------------------------------------------------------------
def test_swapped_keys_are_refused():
    parties = Parties()
    parties.advertise()
    liar = IdentityKey.generate()
    other = SecureClient(1, parties.session, liar, {**parties.directory, 1: liar.public}).advertise()["keys"]
    adverts = {**parties.adverts[0], 1: other}
    hashes = {**parties.hashes, 1: hashlib.sha256(other).digest()}
    with pytest.raises(ProtocolError, match="client 1 lack a valid signature"):
        parties.clients[0].share(hashes, adverts)


def test_repeated_keys_and_changed_own_keys_are_refused():
    parties = Parties()
    parties.advertise()
    with pytest.raises(ProtocolError, match="other keys for this client"):
        parties.clients[0].share({**parties.hashes, 0: b"x" * 32}, parties.adverts[0])
    with pytest.raises(ProtocolError, match="not in the session"):
        parties.clients[1].share({**parties.hashes, 99: b"x" * 32}, parties.adverts[1])
    with pytest.raises(ProtocolError, match="the neighbours in the graph are"):
        parties.clients[2].share(parties.hashes, {k: v for k, v in parties.adverts[2].items() if k != 0})


def test_forged_advertisement_is_left_out_by_the_server():
    parties = Parties()
    parties.server.add_advert(4, {"keys": b"\1" * 128})
    parties.server.add_advert(3, {"keys": "text"})
    assert set(parties.server.refused) == {3, 4}


def test_too_few_neighbours_are_refused():
    parties = Parties(n=5, config=replace(CONFIG, threshold=4))
    for c in range(4):
        parties.server.add_advert(c, parties.clients[c].advertise())
    with pytest.raises(QuorumError):
        parties.server.directory_for()


@pytest.mark.parametrize("how", ["changed", "addressed to another client", "random"])
def test_a_share_that_cannot_be_opened_counts_against_its_sender(how):
    parties = Parties().to("share")
    parties.share()
    sealed = dict(parties.mail[0]["sealed"])
    right = sealed[1]
    sealed[1] = {
        "changed": right[:-1] + bytes([right[-1] ^ 1]),
        "addressed to another client": parties.mail[2]["sealed"][1],
        "random": bytes(len(right)),
    }[how]
    client = parties.clients[0]
    client.receive(sealed, parties.mail[0]["told"])
    assert client.accused == [1]
    assert client.accuse() == {"accused": [1]}
    with pytest.raises(ProtocolError, match="was discarded"):
        client.masked([(s, w.copy()) for s, w in parties.inputs[0]])


def test_nothing_is_masked_where_a_share_cannot_be_opened():
    """The pair's masks would not cancel."""
    parties = Parties().to("share")
    parties.share()
    parties.clients[0].receive({**parties.mail[0]["sealed"], 1: bytes(108)}, parties.mail[0]["told"])
    with pytest.raises(ProtocolError, match=r"shares of clients \[1\] cannot be decrypted"):
        parties.clients[0].masked([(s, w.copy()) for s, w in parties.inputs[0]])


def test_a_shrunk_list_of_survivors_is_refused():
    parties = Parties(n=8, config=SecureConfig(gamma=0.25, threshold=4))
    parties.advertise()
    parties.share()
    parties.mask()
    with pytest.raises(ProtocolError, match="could expose one"):
        parties.clients[0].consistency([0, 1, 2, 3])


def test_two_views_of_the_survivors_leave_both_sides_without_a_quorum():
    """The server shows [0..3] to half of the clients and [0..4] to the others."""
    parties = Parties()
    parties.advertise()
    parties.share()
    parties.mask()
    views = {0: [0, 1, 2, 3, 4], 1: [0, 1, 2, 3, 4], 2: [0, 1, 2, 3], 3: [0, 1, 2, 3], 4: [0, 1, 2, 3, 4]}
    signatures = {c: parties.clients[c].consistency(view)["signature"] for c, view in views.items()}
    for c in range(5):
        with pytest.raises(ProtocolError, match="signed the same list of survivors"):
            parties.clients[c].unmask({v: s for v, s in signatures.items() if v != c})


def test_steps_out_of_order_are_refused():
    parties = Parties()
    parties.advertise()
    with pytest.raises(ProtocolError, match="step 5"):
        parties.clients[0].unmask({})


def test_a_wrong_share_of_a_self_mask_is_repaired_and_named():
    parties = Parties().to("unmask")
    for c in parties.alive:
        answer = parties.clients[c].unmask(parties.signatures[c])
        if c == 2:
            answer["self"] = {v: bytes(32) for v in answer["self"]}
        parties.server.add_unmasking(c, answer)
    opened = parties.server.open()
    check([w for _, w in opened], parties.inputs, parties.alive)
    assert "wrong" in parties.server.refused[2]


def test_too_many_wrong_shares_are_named():
    parties = Parties().to("unmask")
    for c in parties.alive:
        answer = parties.clients[c].unmask(parties.signatures[c])
        answer["self"] = {v: bytes(31) + bytes([c]) for v in answer["self"]}
        parties.server.add_unmasking(c, answer)
    with pytest.raises(MisbehaviourError, match="sent wrong shares") as lost:
        parties.server.open()
    assert set(lost.value.clients) == set(parties.alive) == set(lost.value.survivors)


def test_garbage_vectors_are_left_out():
    parties = Parties()
    parties.advertise()
    parties.share()
    for c, mail in parties.mail.items():
        parties.clients[c].receive(mail["sealed"], mail["told"])
        message = parties.clients[c].masked([(s, w.copy()) for s, w in parties.inputs[c]])
        if c == 1:
            message["segments"][0] = message["segments"][0][:-3]
        if c == 2:
            message["signature"] = bytes(64)
        parties.server.add_masked(c, message)
    assert set(parties.server.refused) == {1, 2}
    assert not parties.server.add_masked(0, {"table": 3})
    assert parties.server.alive() == [0, 3, 4]


def test_a_signature_on_another_list_is_noted():
    parties = Parties()
    parties.advertise()
    parties.share()
    parties.mask()
    other = parties.identities[1].sign(alive_digest(parties.session, [0, 1], [], b""))
    parties.server.add_signature(1, {"signature": other})
    assert 1 in parties.server.refused


def test_a_stranger_cannot_take_part():
    parties = Parties()
    with pytest.raises(ProtocolError, match="no identity keys"):
        SecureClient(0, parties.session, parties.identities[0], {0: parties.directory[0]})
