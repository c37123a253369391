"""A revocation list that ends: renewed where the authority is, told of elsewhere."""

from datetime import timedelta
from pathlib import Path

import pytest

from paceline.core.errors import IdentityError
from paceline.deploy.identity.admission import Gate
from paceline.deploy.identity.authority import CRL_DAYS, Authority
from paceline.deploy.server import expiry as lists
from paceline.deploy.server.expiry import Lists
from tests.deploy.conftest import Clock


@pytest.fixture
def reported() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def make(ca: Authority, clock: Clock, reported: list[tuple[str, str]]):
    gate = Gate(ca.trust, ca.folder / "directory", ca.folder / "crl.pem", every=0.0, clock=clock)

    def build(authority: Authority | None = None, certificate: bytes = b"") -> tuple[Gate, Lists]:
        return gate, Lists(gate, lambda event, client, facts: reported.append((event, str(facts["why"]))), authority, certificate)

    return build


def test_an_authority_on_the_server_publishes_by_itself(ca: Authority, clock: Clock, make, reported) -> None:
    client = ca.issue_client("a").certificate
    gate, keeper = make(ca)
    keeper.check()
    assert reported == []
    for _ in range(20):  # a year and a half
        clock.forward(days=CRL_DAYS - 2)
        keeper.check()
        assert gate.stale() - clock.now == timedelta(days=CRL_DAYS)
    assert {event for event, _ in reported} == {"published"}
    with pytest.raises(IdentityError, match="renew it"):  # only its certificate has ended
        gate.member(client)


def test_without_the_authority_the_operator_is_told_early_and_again(
    ca: Authority, clock: Clock, make, reported, monkeypatch
) -> None:
    client = ca.issue_client("a").certificate
    gate, keeper = make()
    clock.forward(days=CRL_DAYS - 8)
    keeper.check()
    assert reported == []
    clock.forward(days=2)
    keeper.check()
    keeper.check()
    (one,) = reported
    assert one[0] == "lists"
    assert "expires, after which no client is admitted; run paceline ca publish" in one[1]
    monkeypatch.setattr(lists, "AGAIN", 0.0)
    keeper.check()
    assert reported == [one, one]
    clock.forward(days=7)
    keeper.check()
    assert "has expired, so no client is admitted" in reported[-1][1]
    with pytest.raises(IdentityError, match="expired on"):
        gate.member(client)
    ca.publish()
    keeper.check()
    assert len(reported) == 3
    assert gate.member(client).id == 0


def test_what_cannot_be_published_is_told(ca: Authority, clock: Clock, make, reported, tmp_path: Path) -> None:
    _, keeper = make(ca)
    clock.forward(days=CRL_DAYS - 1)
    (ca.folder / "register.db").rename(tmp_path / "away")
    (ca.folder / "register.db").mkdir()
    keeper.check()
    assert ["cannot be published" in why for _, why in reported] == [True, False]


def test_bad_files_and_a_certificate_that_ends_are_told(ca: Authority, clock: Clock, make, reported) -> None:
    _, keeper = make(certificate=ca.issue_server(["localhost"], days=20).certificate)
    keeper.check()
    (ca.folder / "directory").write_bytes(b"garbage")
    keeper.check()
    assert reported[0][0] == "lists"
    assert "not signed" in reported[0][1]
    clock.forward(days=14)
    keeper.check()
    assert [event for event, _ in reported] == ["lists", "certificate"]
