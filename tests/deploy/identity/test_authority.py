from __future__ import annotations

import os
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from paceline.core.errors import ConfigError, IdentityError, StoreError, TokenError
from paceline.deploy.identity import pki
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.directory import open_signed
from paceline.deploy.identity.enrolment import begin
from tests.deploy.conftest import Clock, enrol


def handshake(server: Path, client: Path | None, host: str = "fed.example.org") -> str:
    """Do a TLS handshake in memory; return the name in the client's certificate."""
    ends = [ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)]
    ends[0].load_cert_chain(server / "server.pem", server / "server.key")
    ends[0].verify_mode = ssl.CERT_REQUIRED
    ends[0].load_verify_locations(server / "trust.pem")
    ends[1].load_verify_locations(server / "trust.pem")
    if client is not None:
        kind = "client" if (client / "client.pem").exists() else "server"
        ends[1].load_cert_chain(client / f"{kind}.pem", client / f"{kind}.key")
    pipes = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    a = ends[0].wrap_bio(pipes[0], pipes[1], server_side=True)
    b = ends[1].wrap_bio(pipes[1], pipes[0], server_hostname=host)
    for _ in range(6):
        for end in (b, a):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    found = a.getpeercert(binary_form=True)
    assert found is not None
    return pki.client_name(x509.load_der_x509_certificate(found)) or ""


def test_files_of_an_authority_are_private(ca: Authority) -> None:
    modes = {p.name: p.stat().st_mode & 0o777 for p in ca.folder.iterdir()}
    assert {"ca.key", "directory.key", "register.db", "trust.pem", "crl.pem", "directory"} == set(modes)
    assert {modes[n] for n in ("ca.key", "directory.key", "register.db")} == {0o600}
    assert ca.folder.stat().st_mode & 0o777 == 0o700
    again = Authority.open(ca.folder)
    assert again.trust == ca.trust
    assert again.federation == "hospitals"


def test_an_authority_is_never_overwritten(ca: Authority, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not empty"):
        Authority.create(ca.folder, "other")
    (tmp_path / "empty").mkdir()
    Authority.create(tmp_path / "empty", "other")
    with pytest.raises(ConfigError, match="not a valid name for a federation"):
        Authority.create(tmp_path / "x", "Two Words")
    with pytest.raises(IdentityError, match="paceline ca init"):
        Authority.open(tmp_path / "nothing")


def test_passphrase(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "ca", "fed", passphrase=b"tandem")
    assert b"ENCRYPTED" in (made.folder / "ca.key").read_bytes()
    assert Authority.open(made.folder, b"tandem").trust == made.trust
    for wrong in (None, b"velo"):
        with pytest.raises(IdentityError, match="passphrase"):
            Authority.open(made.folder, wrong)


def test_keys_must_fit_the_trust_file(tmp_path: Path) -> None:
    a, b = (Authority.create(tmp_path / n, "fed") for n in "ab")
    for name in ("ca.key", "directory.key"):
        kept = (a.folder / name).read_bytes()
        (a.folder / name).write_bytes((b.folder / name).read_bytes())
        with pytest.raises(IdentityError, match="not the key"):
            Authority.open(a.folder)
        (a.folder / name).write_bytes(kept)


def test_issued_certificates_hold_in_tls(ca: Authority, tmp_path: Path) -> None:
    server = ca.issue_server(["fed.example.org", "127.0.0.1"]).write(tmp_path / "server")
    client = ca.issue_client("st-mary").write(tmp_path / "st-mary")
    assert handshake(server, client) == "st-mary"
    assert handshake(server, client, "127.0.0.1") == "st-mary"
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, client, "other.example.org")
    with pytest.raises(ssl.SSLError):
        handshake(server, None)
    with pytest.raises(ssl.SSLError):
        handshake(server, server)  # a server's certificate is not good for a client
    stranger = Authority.create(tmp_path / "b", "hospitals").issue_client("st-mary").write(tmp_path / "stranger")
    with pytest.raises(ssl.SSLError):
        handshake(server, stranger)
    for path in (server / "server.key", client / "client.key", client / "identity.key"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_certificates_say_who_they_are_for(ca: Authority) -> None:
    issued = ca.issue_client("st-mary", days=30)
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["paceline://client/st-mary"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert (certificate.not_valid_after_utc - ca.clock()).days == 30
    rows = ca.certificates()
    assert [(r.kind, r.names, r.member) for r in rows] == [("client", "st-mary", 0)]
    assert rows[0].serial == pki.serial_text(certificate.serial_number)


def test_numbers_are_given_in_order_and_can_be_chosen(ca: Authority) -> None:
    numbers = {name: ca.issue_client(name).client for name in ("a", "1", "b", "c")}
    assert numbers == {"a": 0, "1": 1, "b": 2, "c": 3}
    with pytest.raises(IdentityError, match="number 2 already belongs"):
        ca.issue_client("2")
    listed = open_signed(ca.directory_file(), ca.trust.operator)
    assert [(m.id, m.name) for m in listed.members] == [(0, "a"), (1, "1"), (2, "b"), (3, "c")]


def test_known_clients_are_not_issued_twice(ca: Authority) -> None:
    first = ca.issue_client("a")
    with pytest.raises(IdentityError, match="--replace"):
        ca.issue_client("a")
    second = ca.issue_client("a", replace=True)
    assert (first.client, second.client) == (0, 0)
    assert [r.reason for r in ca.certificates()] == ["superseded", None]
    assert len(ca.members()) == 1


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "a/b", "-a", "é", "x" * 64])
def test_names_that_are_none(ca: Authority, name: str) -> None:
    for call in (ca.issue_client, ca.token):
        with pytest.raises(ConfigError, match="not a valid name for a client"):
            call(name)


def test_wishes_that_cannot_be_met(ca: Authority) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        ca.issue_server([])
    with pytest.raises(ConfigError, match="without a port"):
        ca.issue_server(["fed.example.org:443"])
    with pytest.raises(ConfigError, match="0 days"):
        ca.issue_client("a", days=0)
    with pytest.raises(IdentityError, match="own certificate expires"):
        ca.issue_client("a", days=3700)
    assert ca.members() == []  # nothing is left of what failed


def test_keys_are_not_overwritten(ca: Authority, tmp_path: Path) -> None:
    issued = ca.issue_client("a")
    issued.write(tmp_path / "a")
    with pytest.raises(StoreError, match="already exists"):
        issued.write(tmp_path / "a")
    assert "PRIVATE" not in repr(issued)


def test_a_token_enrols_once(ca: Authority, tmp_path: Path) -> None:
    token = ca.token("st-mary")
    ask = begin(tmp_path / "a", token)
    first = ca.redeem(token, ask.request, ask.identity, ask.proof)
    assert (first.client, first.name) == (0, "st-mary")
    again = begin(tmp_path / "a", token)
    assert again == ask  # the same keys and request, so a lost answer is given again
    assert ca.redeem(token, again.request, again.identity, again.proof) == first
    thief = begin(tmp_path / "b", token)
    with pytest.raises(TokenError, match="already used"):
        ca.redeem(token, thief.request, thief.identity, thief.proof)
    ca.revoke("st-mary")
    with pytest.raises(TokenError, match="already used"):
        ca.redeem(token, ask.request, ask.identity, ask.proof)


def test_tokens_expire_and_are_stored_as_hashes(ca: Authority, clock: Clock, tmp_path: Path) -> None:
    token = ca.token("a", hours=2)
    secret = token.split(".")[2]
    assert secret.encode() not in (ca.folder / "register.db").read_bytes()
    assert secret not in repr(begin(tmp_path / "a", token))
    ask = begin(tmp_path / "a", token)
    clock.forward(hours=2, seconds=1)
    with pytest.raises(TokenError, match="expired"):
        ca.redeem(token, ask.request, ask.identity, ask.proof)
    clock.forward(hours=-1)
    assert ca.redeem(token, ask.request, ask.identity, ask.proof).name == "a"


def test_wrong_tokens(ca: Authority, tmp_path: Path) -> None:
    token = ca.token("a")
    head, id_, secret, trust = token.split(".")
    ask = begin(tmp_path / "a", token)
    for wrong in ("", "x" * 1000, token[:-3], f"{head}.{id_}.{secret}.é", f"{head}.{id_}.{secret}", f"{head}.zz.{secret}.{trust}"):
        with pytest.raises(TokenError, match="copy the complete"):
            ca.redeem(wrong, ask.request, ask.identity, ask.proof)
    other = ("A" if secret[0] != "A" else "B") + secret[1:]
    for wrong in (f"{head}.{id_}.{other}.{trust}", f"{head}.{'0' * 16}.{secret}.{trust}"):
        with pytest.raises(TokenError, match="unknown"):
            redeem(ca, tmp_path / "a", wrong)
    later = ca.token("a")
    with pytest.raises(TokenError, match="replaced by a later one"):
        redeem(ca, tmp_path / "a", token)
    assert redeem(ca, tmp_path / "a", later) == "a"
    with pytest.raises(ConfigError, match="0 hours"):
        ca.token("b", hours=0)


def redeem(ca: Authority, folder: Path, token: str) -> str:
    ask = begin(folder, token)
    return ca.redeem(token, ask.request, ask.identity, ask.proof).name


def test_known_clients_need_a_token_that_replaces(ca: Authority, tmp_path: Path) -> None:
    assert enrol(ca, "a", tmp_path / "1") == 0
    with pytest.raises(IdentityError, match="--replace"):
        ca.token("a")
    old = ca.members()[0].key
    assert enrol(ca, "a", tmp_path / "2", replace=True) == 0
    assert ca.members()[0].key != old
    assert [c.reason for c in ca.certificates()] == ["superseded", None]


def test_the_client_must_own_both_keys(ca: Authority, tmp_path: Path) -> None:
    token = ca.token("a")
    ask = begin(tmp_path / "a", token)
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    for identity, proof in ((other, ask.proof), (ask.identity, bytes(64)), (b"short", ask.proof), (ask.identity, b"")):
        with pytest.raises(IdentityError, match="identity key"):
            ca.redeem(token, ask.request, identity, proof)
    der = x509.load_pem_x509_csr(ask.request).public_bytes(Encoding.DER)
    forged = x509.load_der_x509_csr(der[:-1] + bytes([der[-1] ^ 1])).public_bytes(Encoding.PEM)
    with pytest.raises(IdentityError, match="request"):
        ca.redeem(token, forged, ask.identity, ask.proof)
    with pytest.raises(IdentityError, match="unsupported key"):
        ca.redeem(token, _csr(generate_private_key(65537, 2048)), ask.identity, ask.proof)
    with pytest.raises(IdentityError, match="not a certificate request"):
        ca.redeem(token, b"-----BEGIN", ask.identity, ask.proof)
    with pytest.raises(IdentityError, match="exceeds the limit"):
        ca.redeem(token, b"x" * 70_000, ask.identity, ask.proof)
    assert ca.redeem(token, ask.request, ask.identity, ask.proof).name == "a"


def _csr(key: object) -> bytes:
    subject = x509.Name([])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA256()).public_bytes(Encoding.PEM)  # type: ignore[arg-type]


def test_an_identity_key_belongs_to_one_client(ca: Authority, tmp_path: Path) -> None:
    enrol(ca, "a", tmp_path / "a")
    token = ca.token("b")
    ask = begin(tmp_path / "a", token)
    with pytest.raises(IdentityError, match="already belongs to client a"):
        ca.redeem(token, ask.request, ask.identity, ask.proof)


def test_of_many_redemptions_at_once_one_wins(ca: Authority, tmp_path: Path) -> None:
    token = ca.token("a")
    asks = [begin(tmp_path / str(i), token) for i in range(6)]
    won, lost = [], []

    def redeem(i: int) -> None:
        try:
            won.append(ca.redeem(token, asks[i].request, asks[i].identity, asks[i].proof))
        except TokenError as error:
            lost.append(error)

    threads = [threading.Thread(target=redeem, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 5)


def test_renewal_keeps_number_and_identity(ca: Authority, clock: Clock, tmp_path: Path) -> None:
    from paceline.deploy.identity.enrolment import renewal, renewed

    number = enrol(ca, "a", tmp_path / "a")
    before, key = (tmp_path / "a" / "client.pem").read_bytes(), ca.members()[0].key
    clock.forward(days=300)
    renewed(tmp_path / "a", ca.renew(number, renewal(tmp_path / "a")))
    assert (tmp_path / "a" / "client.pem").read_bytes() != before
    assert ca.members()[0].key == key
    ca.revoke("a")
    with pytest.raises(IdentityError, match="no longer"):
        ca.renew(number, renewal(tmp_path / "a"))


def test_revocation(ca: Authority, tmp_path: Path) -> None:
    issued = [ca.issue_client(name) for name in ("a", "b")]
    server = ca.issue_server(["localhost"])
    done = ca.revoke("0", "keyCompromise")
    assert [(r.names, r.reason) for r in done] == [("a", "keyCompromise")]
    assert [m.name for m in ca.members()] == ["b"]
    rows = ca.certificates()
    ca.revoke(next(r.serial for r in rows if r.kind == "server").upper())
    crl = x509.load_pem_x509_crl((ca.folder / "crl.pem").read_bytes())
    assert crl.is_signature_valid(ca.trust.certificates[0].public_key())  # type: ignore[arg-type]
    listed = {r.serial_number for r in crl}
    assert listed == {x509.load_pem_x509_certificate(i.certificate).serial_number for i in (issued[0], server)}
    with pytest.raises(IdentityError, match="paceline ca list"):
        ca.revoke("a")
    with pytest.raises(ConfigError, match="not a revocation reason"):
        ca.revoke("b", "because")
    assert ca.issue_client("c").client == 2  # the revoked client's number is not given away


def test_publishing_again_changes_serial_and_date_only(ca: Authority, clock: Clock) -> None:
    ca.issue_client("a")
    before = open_signed(ca.directory_file(), ca.trust.operator)
    clock.forward(days=20)
    ca.publish()
    after = open_signed(ca.directory_file(), ca.trust.operator)
    assert after.serial == before.serial + 1
    assert after.members == before.members
    crl = x509.load_pem_x509_crl((ca.folder / "crl.pem").read_bytes())
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == after.serial


def test_what_a_crash_left_unpublished_is_published_next(ca: Authority) -> None:
    stale = ca.directory_file()
    ca.issue_client("a")
    (ca.folder / "directory").write_bytes(stale)  # as after a kill between commit and file
    Authority.open(ca.folder).issue_server(["localhost"])
    Authority.open(ca.folder).publish()
    assert [m.name for m in open_signed(ca.directory_file(), ca.trust.operator).members] == ["a"]


def test_own_certificates(tmp_path: Path, clock: Clock) -> None:
    corporate = Authority.create(tmp_path / "corporate", "corporate", clock=clock)
    ca = Authority.create(tmp_path / "ca", "hospitals", ca=corporate.trust.roots, clock=clock)
    assert not (ca.folder / "ca.key").exists()
    for call in (lambda: ca.issue_server(["x"]), lambda: ca.issue_client("a"), lambda: ca.token("a")):
        with pytest.raises(IdentityError, match="paceline ca register"):
            call()
    identity = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    mine = corporate.issue_client("whoever").certificate
    member = ca.register_client("st-mary", mine, identity)
    listed = open_signed(ca.directory_file(), ca.trust.operator)
    assert listed.by_certificate[ca.certificates()[0].digest].name == "st-mary"
    assert member.id == 0
    with pytest.raises(IdentityError, match="already registered"):
        ca.register_client("st-mary", mine, identity)
    later = corporate.renew(0, _csr(pki.new_key())).certificate
    ca.register_client("st-mary", later, identity)
    assert len(open_signed(ca.directory_file(), ca.trust.operator).by_certificate) == 2
    ca.revoke(ca.certificates()[0].serial)
    assert len(open_signed(ca.directory_file(), ca.trust.operator).by_certificate) == 1
    with pytest.raises(IdentityError, match="32 bytes"):
        ca.register_client("b", later, b"short")
    with pytest.raises(IdentityError, match="does not contain a certificate"):
        Authority.create(tmp_path / "c", "hospitals", ca=b"nothing")


def test_a_damaged_register_is_named(ca: Authority) -> None:
    (ca.folder / "register.db").write_bytes(b"x" * 5000)
    with pytest.raises(StoreError, match=r"register\.db is damaged"):
        ca.members()
    os.unlink(ca.folder / "register.db")
    with pytest.raises(IdentityError, match="contains no authority"):
        ca.members()
