"""Records that clients exchange in a secure sum: ciphertexts of equal size for the server. Options that cannot be."""

import pytest

from paceline.aggregation.secure.config import SecureConfig
from paceline.core.errors import ConfigError, ProtocolError
from tests.aggregation.secure.test_protocol import Parties


def test_records_reach_neighbours_and_only_as_ciphertexts():
    parties = Parties()
    parties.advertise()
    secrets = {c: f"client {c} took {c} s".encode() for c in range(5)}
    parties.share(secrets)
    on_server = repr(parties.server._shared).encode()
    assert not any(s in on_server for s in secrets.values())
    sizes = {len(m) for message in parties.server._shared.values() for m in message["told"].values()}
    assert len(sizes) == 1
    parties.mask()
    for c in range(5):
        assert parties.clients[c].peers == {v: s for v, s in secrets.items() if v != c}
    with pytest.raises(ProtocolError, match="the maximum is 62"):
        Parties().clients[0]._at(0) or _share_long()


def _share_long():
    parties = Parties()
    parties.advertise()
    parties.clients[0].share(parties.hashes, parties.adverts[0], b"x" * 63)


def test_impossible_options_are_named():
    with pytest.raises(ConfigError, match=r"clip=-1.*bits=40"):
        SecureConfig(clip=-1, bits=40)
