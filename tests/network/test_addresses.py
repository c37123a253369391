"""IPv6 from end to end: streams, enrolment, renewal and the pages for Prometheus."""

import socket
import urllib.request

import pytest

from paceline.core.address import Address
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.enrolment import Invitation
from paceline.deploy.identity.enrolment_client import enrol, renew
from paceline.deploy.metrics import Metrics


def _ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _ipv6(), reason="no IPv6 here")


def test_a_federation_over_ipv6(loopback):
    root = loopback.root
    ca = Authority.open(root / "ca")
    for kind in ("server.key", "server.pem"):
        (root / "server" / kind).unlink()
    ca.issue_server(["::1", "localhost"]).write(root / "server")
    server = {"listen": "[::1]:0", "ca": root / "ca", "enrol": "[::1]:0"}
    loopback.serve({"clients": 7, "cohort": 2, "rounds": 1}, {**server, "least": 2})
    Invitation(ca.token("newcomer"), ca.trust, Address("::1", loopback.server.enrol_port)).save(root / "i")
    assert enrol(root / "client6", root / "i").client == 6
    assert renew(root / "client1", Address("::1", loopback.server.renew_port)).client == 1
    for number in (1, 6):
        loopback.client(number, server=f"[::1]:{loopback.server.port}")
    assert loopback.finish().rounds == 1


def test_pages_over_ipv6():
    metrics = Metrics()
    port = metrics.serve(Address("::1", 0))
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://[::1]:{port}/healthz", timeout=5) as answer:
            assert answer.read() == b"ok\n"
    finally:
        metrics.close()


def test_a_silent_connection_to_the_pages_ends(monkeypatch, capsys):
    monkeypatch.setattr("paceline.deploy.metrics._Quiet.timeout", 0.2)
    metrics = Metrics()
    port = metrics.serve(Address("127.0.0.1", 0))
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as silent:
            assert silent.recv(1) == b""
        assert capsys.readouterr().err == ""
    finally:
        metrics.close()
