from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from paceline.core.errors import IdentityError
from paceline.deploy.identity.admission import Gate
from paceline.deploy.identity.authority import CRL_DAYS, Authority
from tests.deploy.conftest import Clock, enrol


@pytest.fixture
def gate(ca: Authority, clock: Clock) -> Gate:
    return Gate(ca.trust, ca.folder / "directory", ca.folder / "crl.pem", every=0, clock=clock)


def test_clients_are_known_by_their_certificates(ca: Authority, gate: Gate) -> None:
    issued = [ca.issue_client(name) for name in ("a", "b")]
    assert [gate.member(i.certificate).id for i in issued] == [0, 1]
    assert [gate.member(i.certificate).name for i in issued] == ["a", "b"]
    assert [m.name for m in gate.members()] == ["a", "b"]
    assert gate.directory_file() == ca.directory_file()


def test_a_revocation_counts_at_once(ca: Authority, gate: Gate) -> None:
    a, b = (ca.issue_client(name) for name in ("a", "b"))
    assert gate.member(a.certificate).id == 0
    ca.revoke("a")
    with pytest.raises(IdentityError, match="no longer"):
        gate.member(a.certificate)
    serial = next(c.serial for c in ca.certificates() if c.names == "b")
    assert gate.member(b.certificate).id == 1
    ca.revoke(serial)
    with pytest.raises(IdentityError, match="was revoked"):
        gate.member(b.certificate)  # still in the directory, but this certificate is on the list


def test_a_replaced_client_cannot_come_back_with_its_old_certificate(ca: Authority, gate: Gate) -> None:
    old = ca.issue_client("a")
    new = ca.issue_client("a", replace=True)
    assert gate.member(new.certificate).id == 0
    with pytest.raises(IdentityError, match="was revoked"):
        gate.member(old.certificate)


def test_certificates_that_are_refused(ca: Authority, gate: Gate, clock: Clock, tmp_path: Path) -> None:
    good = ca.issue_client("a", days=20)
    stranger = Authority.create(tmp_path / "b", "hospitals", clock=clock).issue_client("a")
    cases = {
        b"nothing": "not a certificate in PEM",
        b"x" * 100_000: "100000 bytes",
        stranger.certificate: "neither issued by the federation's authority",
        ca.issue_server(["localhost"]).certificate: "not a client certificate",
        ca.trust.roots: "does not name a client",
    }
    for certificate, text in cases.items():
        with pytest.raises(IdentityError, match=text):
            gate.member(certificate)
    clock.forward(days=21)
    with pytest.raises(IdentityError, match="renew it"):
        gate.member(good.certificate)


def test_a_stale_list_lets_nobody_in(ca: Authority, gate: Gate, clock: Clock) -> None:
    a = ca.issue_client("a")
    clock.forward(days=CRL_DAYS - 1)
    assert gate.member(a.certificate).id == 0
    clock.forward(days=2)
    with pytest.raises(IdentityError, match="paceline ca publish"):
        gate.member(a.certificate)
    ca.publish()
    assert gate.member(a.certificate).id == 0


@pytest.mark.parametrize("name", ["directory", "crl.pem"])
def test_bad_files_never_replace_good_ones(ca: Authority, gate: Gate, name: str, tmp_path: Path) -> None:
    a = ca.issue_client("a")
    old = (ca.folder / name).read_bytes()
    ca.issue_client("b")
    assert gate.member(a.certificate).id == 0
    assert gate.fault is None
    other = Authority.create(tmp_path / "b", "hospitals")
    for bad in (b"", b"garbage", (other.folder / name).read_bytes(), old):
        (ca.folder / name).write_bytes(bad)
        assert gate.member(a.certificate).id == 0
        assert len(gate.members()) == 2
        assert gate.fault is not None
        if bad == old:
            assert "older" in gate.fault
    os.unlink(ca.folder / name)
    assert len(gate.members()) == 2
    assert "paceline ca publish" in (gate.fault or "")
    ca.publish()
    assert len(gate.members()) == 2
    assert gate.fault is None


@pytest.mark.parametrize("name", ["directory", "crl.pem"])
def test_a_gate_does_not_open_without_good_files(ca: Authority, name: str, tmp_path: Path) -> None:
    for bad in (None, b"garbage", b"paceline-directory-v1 00\n{}"):
        os.unlink(ca.folder / name) if bad is None else (ca.folder / name).write_bytes(bad)
        with pytest.raises(IdentityError, match=name.replace(".", r"\.")):
            Gate(ca.trust, ca.folder / "directory", ca.folder / "crl.pem")


def test_files_are_not_looked_at_too_often(ca: Authority, clock: Clock) -> None:
    gate = Gate(ca.trust, ca.folder / "directory", ca.folder / "crl.pem", every=3600, clock=clock)
    ca.issue_client("a")
    assert gate.members() == []


def test_registered_certificates_of_another_authority(tmp_path: Path, clock: Clock) -> None:
    corporate = Authority.create(tmp_path / "corporate", "corporate", clock=clock)
    ca = Authority.create(tmp_path / "ca", "hospitals", ca=corporate.trust.roots, clock=clock)
    gate = Gate(ca.trust, ca.folder / "directory", corporate.folder / "crl.pem", every=0, clock=clock)
    mine, other = (corporate.issue_client(name).certificate for name in ("x", "y"))
    ca.register_client("st-mary", mine, Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    assert gate.member(mine).name == "st-mary"
    with pytest.raises(IdentityError, match="not, or no longer"):
        gate.member(other)
    corporate.revoke("x")
    with pytest.raises(IdentityError, match="was revoked"):
        gate.member(mine)


def test_who_has_just_enrolled_is_known_at_once(ca: Authority, tmp_path: Path) -> None:
    """However rarely the files are looked at; a client that is refused as unknown would not come again."""
    gate = Gate(ca.trust, ca.folder / "directory", ca.folder / "crl.pem", every=3600.0)
    enrol(ca, "late", tmp_path / "late")
    assert gate.member((tmp_path / "late" / "client.pem").read_bytes()).name == "late"
    enrol(ca, "later", tmp_path / "later")
    assert gate.directory_file() == ca.directory_file()
