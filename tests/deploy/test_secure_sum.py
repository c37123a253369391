"""Secure sums among clients that know each other only by the signed directory, and one policy's demands on them."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.keys import IdentityKey
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.session import new_session
from paceline.core.errors import ProtocolError
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.keys import PinnedDirectory
from tests.deploy.conftest import enrol

SEGMENT = Segment("w", 50, 24)


@pytest.fixture
def ends(ca: Authority, tmp_path: Path) -> list[PinnedDirectory]:
    folders = [tmp_path / f"site-{i}" for i in range(7)]
    for folder in folders:
        enrol(ca, folder.name, folder)
    found = [PinnedDirectory.of(folder) for folder in folders]
    for end in found:
        end.update(ca.directory_file())
    return found


def machines(ends: list[PinnedDirectory]) -> tuple[dict[int, SecureClient], SecureServer]:
    session = new_session(range(len(ends)), SecureConfig(), round=1)
    made = {i: SecureClient(i, session, end.identity(i), end.publics(session.clients)) for i, end in enumerate(ends)}
    server = PinnedDirectory(ends[0].path, ends[0].trust)
    return made, SecureServer(session, server.publics(session.clients))


def test_a_sum_with_real_identities(ends: list[PinnedDirectory]) -> None:
    clients, server = machines(ends)
    rng = np.random.default_rng(0)
    vectors = {i: rng.integers(0, 1 << 20, SEGMENT.length, dtype=np.uint32) for i in clients}
    for i, client in clients.items():
        server.add_advert(i, client.advertise())
    hashes, adverts = server.directory_for()
    for i, client in clients.items():
        server.add_shares(i, client.share(hashes, adverts[i]))
    for i, mail in server.inbox_for().items():
        clients[i].receive(mail["sealed"], mail["told"])
        if i != 3:  # lost before it sent its vector
            assert server.add_masked(i, clients[i].masked([(SEGMENT, vectors[i].copy())]))
    alive = server.alive()
    for i in alive:
        server.add_signature(i, clients[i].consistency(alive))
    for i, signatures in server.signatures_for().items():
        server.add_unmasking(i, clients[i].unmask(signatures))
    [(_, opened)] = server.open()
    assert alive == [0, 1, 2, 4, 5, 6]
    assert not server.refused
    assert np.array_equal(opened & SEGMENT.mask, sum(vectors[i] for i in alive) & SEGMENT.mask)


def test_keys_of_an_invented_client_are_refused(ends: list[PinnedDirectory]) -> None:
    clients, server = machines(ends)
    for i, client in clients.items():
        server.add_advert(i, client.advertise())
    hashes, adverts = server.directory_for()
    liar = dataclasses.replace(clients[1])  # the server plays client 1, with keys of its own
    liar.identity = IdentityKey.generate()
    forged = liar.advertise()["keys"]
    hashes[1] = hashlib.sha256(forged).digest()
    with pytest.raises(ProtocolError, match="sign"):
        clients[0].share(hashes, {**adverts[0], 1: forged})


def test_revoked_clients_cannot_be_part_of_a_session(ends: list[PinnedDirectory], ca: Authority) -> None:
    ca.revoke("site-2")
    ends[0].update(ca.directory_file())
    with pytest.raises(ProtocolError, match=r"clients \[2\] are not in the directory"):
        machines(ends)
