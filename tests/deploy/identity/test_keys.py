from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from paceline.aggregation.secure.keys import verify
from paceline.aggregation.secure.simulated_directory import SimulatedDirectory
from paceline.core.address import Address
from paceline.core.errors import IdentityError, ProtocolError, TokenError
from paceline.deploy.identity import directory as directories
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.directory import Directory, Member, open_signed
from paceline.deploy.identity.enrolment import Invitation, begin, finish
from paceline.deploy.identity.keys import PinnedDirectory
from paceline.deploy.identity.tokens import Token
from paceline.deploy.identity.trust import Trust
from tests.deploy.conftest import enrol


@pytest.fixture
def folders(ca: Authority, tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("a", "b", "c")]
    for folder in found:
        enrol(ca, folder.name, folder)
    for folder in found:
        (folder / "directory").write_bytes(ca.directory_file())
    return found


def test_clients_know_each_other(folders: list[Path]) -> None:
    ends = [PinnedDirectory.of(folder) for folder in folders]
    assert [end.client for end in ends] == [0, 1, 2]
    for end in ends:
        publics = end.publics(range(3))
        for other in ends:
            mine = other.identity(other.client or 0)
            assert verify(publics[other.client or 0], mine.sign(b"x"), b"x")


def test_the_interface_is_that_of_simulations() -> None:
    for name in ("identity", "publics"):
        assert callable(getattr(SimulatedDirectory, name))
        assert callable(getattr(PinnedDirectory, name))


def test_only_the_own_key_is_here(folders: list[Path], ca: Authority) -> None:
    end = PinnedDirectory.of(folders[0])
    with pytest.raises(ProtocolError, match="only its own"):
        end.identity(1)
    server = PinnedDirectory(ca.folder / "directory", ca.trust)
    assert server.publics([0, 2]) == end.publics([0, 2])
    with pytest.raises(ProtocolError, match="only its own"):
        server.identity(0)
    with pytest.raises(ProtocolError, match=r"\[7, 9\]"):
        end.publics([0, 7, 9])


def test_a_revoked_client_leaves_the_directory(folders: list[Path], ca: Authority) -> None:
    end, gone = PinnedDirectory.of(folders[0]), PinnedDirectory.of(folders[1])
    ca.revoke("b")
    assert end.update(ca.directory_file())
    assert not end.update(ca.directory_file())
    with pytest.raises(ProtocolError, match=r"\[1\]"):
        end.publics([0, 1])
    with pytest.raises(IdentityError, match="may have been revoked"):
        gone.update(ca.directory_file())
    assert PinnedDirectory.of(folders[0]).serial == end.serial


def test_an_older_directory_is_refused(folders: list[Path], ca: Authority) -> None:
    old = ca.directory_file()
    ca.revoke("c")
    end = PinnedDirectory.of(folders[0])
    end.update(ca.directory_file())
    with pytest.raises(IdentityError, match="seen before"):
        end.update(old)
    (folders[0] / "directory").write_bytes(old)
    with pytest.raises(IdentityError, match="seen before"):
        PinnedDirectory.of(folders[0])  # also after a restart
    (folders[0] / "pins.json").write_text("{")
    with pytest.raises(IdentityError, match=r"pins\.json is damaged"):
        PinnedDirectory.of(folders[0])


def test_changed_keys_need_consent(folders: list[Path], ca: Authority, tmp_path: Path) -> None:
    end = PinnedDirectory.of(folders[0])
    enrol(ca, "b", tmp_path / "b2", replace=True)
    with pytest.raises(IdentityError, match=r"clients b \(1\) have other identity keys"):
        end.update(ca.directory_file())
    assert end.publics([1]) == PinnedDirectory.of(folders[2]).publics([1])  # still the old key
    willing = PinnedDirectory.of(folders[0], accept_changed=True)
    reported = []
    willing.note = lambda event, facts: reported.append((event, facts["changed"]))
    assert willing.update(ca.directory_file())
    assert reported == [("keys", ["b"])]
    assert willing.publics([1]) != end.publics([1])
    assert PinnedDirectory.of(folders[0]).publics([1]) == willing.publics([1])  # and pinned from now on


def test_a_server_takes_up_a_new_directory(ca: Authority) -> None:
    server = PinnedDirectory(ca.folder / "directory", ca.trust)
    assert not server.follow(ca.directory_file())
    ca.issue_client("a")
    assert server.follow(ca.directory_file())
    assert list(server.publics([0])) == [0]


def test_what_is_not_signed_is_refused(folders: list[Path], ca: Authority, tmp_path: Path) -> None:
    end, data = PinnedDirectory.of(folders[0]), ca.directory_file()
    other = Authority.create(tmp_path / "other", "hospitals")
    head, _, text = data.partition(b"\n")
    for bad in (
        b"",
        data[:-1],
        data + b" ",
        head + b"\n" + text.replace(b'"b"', b'"d"'),
        text,
        b"x" + data,
        other.directory_file(),
    ):
        with pytest.raises(IdentityError, match="not signed by the operator"):
            end.update(bad)
    renamed = dataclasses.replace(open_signed(data, ca.trust.operator), federation="banks", serial=99)
    with pytest.raises(IdentityError, match="belongs to federation 'banks'"):
        end.update(directories.sign(renamed, ca.directory_key))


def test_signed_nonsense_is_refused(ca: Authority) -> None:
    def signed(*members: Member, serial: int = 1) -> bytes:
        return directories.sign(Directory("hospitals", serial, "now", members), ca.directory_key)

    a, b = Member(0, "a", bytes(32)), Member(1, "b", bytes([1] * 32))
    assert open_signed(signed(a, b), ca.trust.operator).members == (a, b)
    cases = {
        signed(a, dataclasses.replace(b, id=0)): "same number",
        signed(a, dataclasses.replace(b, name="a")): "same name",
        signed(a, dataclasses.replace(b, key=bytes(32))): "same key",
        signed(*(dataclasses.replace(m, certificates=("f" * 64,)) for m in (a, b))): "same certificate",
        signed(dataclasses.replace(a, key=b"short")): "5 bytes",
        signed(dataclasses.replace(a, name="7")): "name of another client",
        signed(dataclasses.replace(a, name="A B")): "not a valid name",
        signed(dataclasses.replace(a, id=-1)): "not a number",
        signed(dataclasses.replace(a, certificates=("f",))): "certificates",
        signed(a, serial=-1): "not a number",
    }
    for text in (b"[]", b"{}", b"1", b"[" * 100_000, b"\xff", b'{"clients": [1]}', b'{"clients": [{"key": 1}]}'):
        head = b"paceline-directory-v1 "
        cases[head + ca.directory_key.sign(head + text).hex().encode() + b"\n" + text] = "malformed"
    for data, what in cases.items():
        with pytest.raises(IdentityError, match=what):
            open_signed(data, ca.trust.operator)


def test_keys_of_a_client_are_private_files(folders: list[Path]) -> None:
    for name in ("client.key", "identity.key"):
        assert (folders[0] / name).stat().st_mode & 0o777 == 0o600
    assert not (folders[0] / "request.pem").exists()


def test_answers_of_a_lying_server_are_refused(ca: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    token = ca.token("a")
    ask = begin(folder, token)
    good = ca.redeem(token, ask.request, ask.identity, ask.proof)
    other = Authority.create(tmp_path / "other", "hospitals")
    theirs = other.token("a")
    lie = other.redeem(theirs, ask.request, ask.identity, begin(folder, theirs).proof)
    stranger = ca.issue_client("b")
    with pytest.raises(TokenError, match="same operator"):
        finish(folder, token, lie)
    cases = {
        "for another key": {"certificate": stranger.certificate},
        "authority, or names another": {"certificate": lie.certificate},
        "names another client": {"name": "b"},
        "this client with its identity key": {"client": 1, "name": "a"},
        "not signed by the operator": {"directory": lie.directory},
        "not a trust file": {"trust": b""},
        "not a certificate": {"certificate": b""},
    }
    for text, change in cases.items():
        with pytest.raises(IdentityError, match=text):
            finish(folder, token, dataclasses.replace(good, **change))
    assert not (folder / "client.pem").exists()
    assert finish(folder, token, good).name == "a"


def test_invitations(ca: Authority, tmp_path: Path) -> None:
    path = tmp_path / "a.invite"
    Invitation(ca.token("a"), ca.trust, Address("fed.example.org", 8443)).save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    found = Invitation.load(path)
    assert (found.server, found.trust) == (Address("fed.example.org", 8443), ca.trust)
    assert found.token not in repr(found)
    facts = json.loads(path.read_text())
    other = Authority.create(tmp_path / "other", "hospitals")
    path.write_text(json.dumps(facts | {"trust": other.trust.pem.decode()}))
    with pytest.raises(TokenError, match="same operator"):
        Invitation.load(path)
    wrong = ({"token": 1}, {"server": []}, {"server": "fed.example.org"})
    for bad in ("", "[]", "{}", *(json.dumps(facts | change) for change in wrong)):
        path.write_text(bad)
        with pytest.raises(IdentityError, match="not an invitation"):
            Invitation.load(path)


def test_trust_files(ca: Authority, tmp_path: Path) -> None:
    trust = Trust.load(ca.folder / "trust.pem")
    assert trust.fingerprint == ca.trust.fingerprint
    assert Token.parse(ca.token("a")).trust == trust.digest[:16]
    both = Trust(trust.federation, trust.roots + Authority.create(tmp_path / "b", "b").trust.roots, trust.operator)
    assert len(Trust.parse(both.pem).certificates) == 2
    assert both.fingerprint != trust.fingerprint
    whole = trust.pem
    for bad in (b"", trust.roots, whole.replace(b"# paceline", b"# "), whole + whole, whole[:-40]):
        with pytest.raises(IdentityError, match="not a trust file"):
            Trust.parse(bad)
    with pytest.raises(IdentityError, match="damaged"):
        Trust.parse(whole.replace(b"-----BEGIN PUBLIC KEY-----\nMC", b"-----BEGIN PUBLIC KEY-----\nMD"))
    with pytest.raises(IdentityError, match="request it from the operator"):
        Trust.load(tmp_path / "nothing.pem")
