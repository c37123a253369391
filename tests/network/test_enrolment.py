"""Clients enrol with a token and renew their certificates over the network; all hear of a new member."""

from datetime import timedelta

import pytest

from paceline.core.address import Address
from paceline.core.errors import EngineError, IdentityError
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.enrolment import Invitation
from paceline.deploy.identity.enrolment_client import enrol, renew
from paceline.deploy.identity.keys import PinnedDirectory
from paceline.network.tls import through

RUN = {"clients": 3, "cohort": 3, "rounds": 1}


@pytest.fixture
def serving(loopback):
    loopback.serve(RUN, {"ca": loopback.root / "ca", "enrol": "127.0.0.1:0"})
    return loopback


def invite(loopback, name, folder=None):
    ca = Authority.open(loopback.root / "ca")
    path = loopback.root / f"{name}.invite"
    Invitation(ca.token(name), ca.trust, Address("localhost", loopback.server.enrol_port)).save(path)
    return path


def test_a_new_client_enrols_once(serving, monkeypatch):
    folder = serving.root / "newcomer"
    invitation = invite(serving, "newcomer")
    with monkeypatch.context() as lost:
        lost.setattr("paceline.deploy.identity.enrolment_client.finish", power_cut)
        with pytest.raises(OSError, match="the power went"):
            enrol(folder, invitation)
    enrolled = enrol(folder, serving.root / "newcomer.invite")
    assert enrolled.client == 6
    assert {p.name for p in folder.iterdir()} >= {"client.key", "client.pem", "identity.key", "trust.pem", "directory"}
    assert serving.server_lines.of("enrolled")[0]["name"] == "newcomer"
    with pytest.raises(IdentityError, match="already used"):
        enrol(serving.root / "thief", serving.root / "newcomer.invite")
    assert serving.server_lines.of("refused")[0]["reason"] == "enrolment"


def power_cut(*_):
    raise OSError("the power went")


def test_those_who_are_there_hear_of_a_new_member_and_sum_with_it(loopback, federate):
    """Client 2 enrols anew, so with another number's keys, while 0 and 1 are connected; the secure sum still works."""
    run = {**RUN, "clients": 7, "cohort": 3, "rounds": 2, "aggregation": "secure"}
    loopback.serve(run, {"ca": loopback.root / "ca", "enrol": "127.0.0.1:0", "least": 3})
    nodes = [loopback.client(0), loopback.client(1)]
    loopback.loop.wait(_until(lambda: loopback.server.engine.hub.ready() == [0, 1]), 10)
    enrol(loopback.root / "client6", invite(loopback, "newcomer"))
    loopback.client(6)
    assert loopback.finish().rounds == 2
    learn = nodes[0].runner.learn.__self__
    assert 6 in learn.publics([0, 1, 6])


async def _until(condition):
    import asyncio

    while not condition():
        await asyncio.sleep(0.02)


def test_lists_are_published_in_good_time_where_the_authority_is(loopback, monkeypatch):
    monkeypatch.setattr("paceline.deploy.server.expiry.REPUBLISH", timedelta(days=40))  # so that it is time already
    serials = [PinnedDirectory.of(loopback.root / "client0").serial]
    loopback.serve(RUN, {"ca": loopback.root / "ca"})
    for number in range(3):
        loopback.client(number)
    assert loopback.finish().rounds == 1
    assert len(loopback.server_lines.of("published")) == 1
    serials.append(PinnedDirectory.of(loopback.root / "client0").serial)
    assert serials[1] > serials[0]  # the client took up the newer directory


def test_renewal_needs_the_old_certificate(serving):
    folder, port = serving.root / "client1", serving.server.renew_port
    before = (folder / "client.pem").read_bytes()
    assert renew(folder, Address("localhost", port)).client == 1
    assert (folder / "client.pem").read_bytes() != before
    with pytest.raises((EngineError, IdentityError)):
        renew(folder, Address("localhost", serving.server.enrol_port))  # that port asks for no certificate
    Authority.open(serving.root / "ca").revoke("client2")
    with pytest.raises((EngineError, IdentityError), match=r"no longer|revoked"):
        renew(serving.root / "client2", Address("localhost", port))


def test_garbage_is_answered_with_an_error(serving):
    import grpc

    roots = serving.server.trust.roots
    with grpc.secure_channel(f"localhost:{serving.server.enrol_port}", grpc.ssl_channel_credentials(roots), through()) as channel:
        call = channel.unary_unary("/paceline.Enrolment/Redeem")
        for data in (b"", b"garbage", b"\0" * 100_000):
            with pytest.raises(grpc.RpcError) as reported:
                call(data, timeout=5)
            assert reported.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
