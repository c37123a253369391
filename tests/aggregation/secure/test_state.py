"""A client whose steps run in different processes, and sessions as plain values."""

import msgpack
import pytest

from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.config import SecureConfig
from paceline.aggregation.secure.session import Session, new_session
from paceline.core.errors import ProtocolError
from tests.aggregation.secure.test_protocol import Parties, check


def moved(parties, client):
    """Send a client to another process: only bytes go over."""
    data = msgpack.packb(parties.clients[client].state())
    state = msgpack.unpackb(data, strict_map_key=False)
    return SecureClient.from_state(state, parties.identities[client], parties.directory)


def test_every_step_may_run_in_another_process():
    parties = Parties()

    def move():
        parties.clients = {c: moved(parties, c) for c in parties.clients}

    move()
    parties.advertise()
    move()
    parties.share({c: f"tell {c}".encode() for c in range(5)})
    move()
    for c in (0, 1, 2, 3):  # client 4 is lost after it shared
        parties.clients[c].receive(parties.mail[c]["sealed"], parties.mail[c]["told"])
    move()
    assert parties.clients[0].peers == {v: f"tell {v}".encode() for v in (1, 2, 3, 4)}
    for c in (0, 1, 2, 3):
        words = [(s, w.copy()) for s, w in parties.inputs[c]]
        assert parties.server.add_masked(c, parties.clients[c].masked(words))
    parties.alive = parties.server.alive()
    move()
    parties.confirm()
    move()
    for c in parties.alive:
        parties.server.add_unmasking(c, parties.clients[c].unmask(parties.signatures[c]))
    check([w for _, w in parties.server.open()], parties.inputs, parties.alive)


def test_a_burnt_session_stays_burnt_and_keeps_no_secret():
    parties = Parties().to("unmask")
    client = parties.clients[0]
    before = client.state()
    hidden = [*before["secrets"], before["_secret"], *(x for row in before["_shares"] for x in row[1:])]
    client.unmask(parties.signatures[0])
    after = client.state()
    assert not any(secret in msgpack.packb(after) for secret in hidden)
    with pytest.raises(ProtocolError, match="was discarded"):
        moved(parties, 0).unmask(parties.signatures[0])


def test_a_session_is_plain_values_and_back():
    session = new_session(range(7), SecureConfig(clip=0.5, threshold=5), round=3, attempt=1, tell_bytes=0)
    again = Session.from_plain(msgpack.unpackb(msgpack.packb(session.plain())))
    assert again == session
    assert again.context("seal") == session.context("seal")
