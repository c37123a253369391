"""`paceline ca`, from an empty folder to a revoked client."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Call, last_json


def reported(call: Call, *words: str):  # type: ignore[no-untyped-def]
    return json.loads(call("ca", *words, "--json").stdout)


def test_from_init_to_revoke(call: Call) -> None:
    made = reported(call, "init", "hospitals")
    assert Path(made["trust"]).exists()
    server = reported(call, "issue", "--server", "fed.example.org", "127.0.0.1")
    assert server == [{"name": "fed.example.org", "client": None, "folder": "server"}]
    assert sorted(p.name for p in Path("server").iterdir()) == ["server.key", "server.pem", "trust.pem"]
    assert [row["client"] for row in reported(call, "issue", "st-mary", "st-paul")] == [0, 1]
    assert sorted(p.name for p in Path("st-mary").iterdir()) == [
        "client.key",
        "client.pem",
        "directory",
        "identity.key",
        "trust.pem",
    ]
    listed = reported(call, "list")
    assert [c["name"] for c in listed["clients"]] == ["st-mary", "st-paul"]
    assert [c["state"] for c in listed["certificates"]] == ["valid"] * 3
    assert listed["fingerprint"] == made["fingerprint"]
    assert [r["names"] for r in reported(call, "revoke", "st-mary", "--reason", "keyCompromise")] == ["st-mary"]
    listed = reported(call, "list")
    assert [c["name"] for c in listed["clients"]] == ["st-paul"]
    assert [c["state"] for c in listed["certificates"]] == ["valid", "revoked (keyCompromise)", "valid"]
    assert "revoked (keyCompromise)" in call("ca", "list").stdout
    assert reported(call, "publish") == {"crl": "ca/crl.pem", "directory": "ca/directory"}


def test_tokens_and_invitations(call: Call) -> None:
    from paceline.deploy.identity.enrolment import Invitation, begin

    call("ca", "init", "hospitals", "--ca", "x")
    printed = call("ca", "token", "st-mary", "--ca", "x").stdout.strip()
    assert begin("client", printed).token == printed
    call("ca", "token", "st-mary", "--ca", "x", "--invite", "i.json", "--server", "fed:8443", "--hours", "2")
    assert str(Invitation.load("i.json").server) == "fed:8443"
    listed = reported(call, "list", "--ca", "x")
    assert [(t["name"], t["state"]) for t in listed["tokens"]] == [("st-mary", "open")]  # the first one is void
    assert "open" in call("ca", "list", "--ca", "x").stdout


def test_addresses_on_the_command_line(call: Call) -> None:
    call("ca", "init", "hospitals")
    for bad in ("fed", "fed:0", "::1:9101", "http://fed:9101"):
        assert f"--server = {bad!r}: " in call("ca", "token", "a", "--invite", "i", "--server", bad, code=2).stderr.replace(
            "\n", " "
        )
        assert f"--renew = {bad!r}: " in call("client", "--renew", bad, code=2).stderr.replace("\n", " ")
        assert f"--address = {bad!r}: " in call("client", "--enrol", "i", "--address", bad, code=2).stderr.replace("\n", " ")
    assert not Path("i").exists()
    assert reported(call, "list")["tokens"] == []


@pytest.mark.parametrize("name", ["x" * 300, "../x", "ü", "a b", "", "007", "4294967296", "9" * 63, "a\0"])
def test_names_that_are_none_are_refused_at_once(call: Call, name: str) -> None:
    call("ca", "init", "hospitals")
    for words in (("issue", "good", name), ("token", name)):
        assert "is not a valid name for a client" in call("ca", *words, code=2).stderr
    assert not Path("good").exists()  # nothing was made before the fault was found
    assert reported(call, "list")["clients"] == []
    assert reported(call, "issue", "7")[0]["client"] == 7
    assert [c["name"] for c in reported(call, "list")["clients"]] == ["7"]


def test_an_authority_in_odd_folders(call: Call) -> None:
    call("ca", "init", "hospitals", "--ca", "x" * 250)
    call("ca", "list", "--ca", "x" * 250)
    call("ca", "init", "hospitals", "--ca", "x" * 300, code=13)
    call("ca", "init", "hospitals", "--ca", ".", code=13)


def test_own_certificates(call: Call) -> None:
    call("ca", "init", "corporate", "--ca", "corporate")
    call("ca", "issue", "x", "--ca", "corporate")
    call("ca", "init", "hospitals", "--own", "corporate/trust.pem")
    words = ("st-mary", "--certificate", "x/client.pem", "--identity")
    assert reported(call, "register", *words, "ab" * 32) == {"client": 0, "name": "st-mary"}
    assert "hexadecimal" in call("ca", "register", *words, "zz", code=2).stderr
    assert "paceline ca register" in call("ca", "issue", "b", code=14).stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("list",), 14, "paceline ca init"),
        (("init", "Two Words"), 2, "is not a valid name for a federation"),
        (("init", "x", "--own", "nothing.pem"), 14, "nothing.pem does not exist"),
    ],
)
def test_errors_before_there_is_an_authority(call: Call, words: tuple[str, ...], code: int, text: str) -> None:
    assert text in call("ca", *words, code=code).stderr


def test_errors_say_what_to_do(call: Call) -> None:
    call("ca", "init", "hospitals")
    call("ca", "issue", "a")
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("init", "hospitals"), 13, "not empty"),
        (("issue", "a"), 2, "already contains keys"),
        (("issue", "a", "--out", "b"), 14, "--replace"),
        (("issue", "b", "c", "--out", "d"), 2, "--out is for one client"),
        (("issue", "--server", "host:443"), 2, "without a port"),
        (("token", "a"), 14, "--replace"),
        (("token", "b", "--hours", "0"), 2, "0.0 hours"),
        (("token", "b", "--server", "fed:1"), 2, "--invite"),
        (("revoke", "nobody"), 14, "paceline ca list"),
        (("revoke", "a", "--reason", "no"), 2, "keyCompromise"),
    ]
    for words, code, text in cases:
        assert text in call("ca", *words, code=code).stderr, words
    assert last_json(call("ca", "revoke", "nobody", "--json", code=14))["error"] == "IdentityError"


def test_the_passphrase_comes_from_the_environment(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CA_PASSPHRASE", "tandem")
    call("ca", "init", "hospitals")
    call("ca", "list")
    monkeypatch.delenv("PACELINE_CA_PASSPHRASE")
    assert "PACELINE_CA_PASSPHRASE" in call("ca", "list", code=14).stderr


def test_it_works_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from paceline.cli.app import app\n"
        "for w in (['init', 'f'], ['issue', 'a'], ['token', 'b'], ['list']):\n"
        "    assert CliRunner().invoke(app, ['ca', *w]).exit_code == 0, w\n"
        "print([n for n in ('torch', 'numpy', 'sqlalchemy') if n in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.strip() == "[]"
