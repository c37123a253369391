"""`paceline ca`: certificate authority of a federation."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from paceline.cli.run import Json
from paceline.cli.show import out, print_json, table
from paceline.core.errors import ConfigError

if TYPE_CHECKING:
    from paceline.deploy.identity.authority import Authority
    from paceline.deploy.identity.register import CertificateRow, TokenRow

__all__ = ["app"]

PASSPHRASE = "PACELINE_CA_PASSPHRASE"

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Folder = Annotated[Path, typer.Option("--ca", metavar="FOLDER", envvar="PACELINE_CA", help="folder of the authority")]
Days = Annotated[int, typer.Option("--days", help="validity of the certificate in days")]
ReplaceKeys = Annotated[
    bool,
    typer.Option("--replace", help="give a known client new keys and revoke its earlier certificates", show_default="off"),
]


@app.callback()
def start() -> None:
    """Manage the members of a federation: certificates, enrolment tokens, identity keys, revocations.

    If PACELINE_CA_PASSPHRASE is set when the authority is created, its keys are encrypted and it is needed for every
    use. docs/identity_and_policy.md describes the setup of a complete federation.
    """


@app.command()
def init(
    federation: Annotated[str, typer.Argument(help="the federation's name: lower-case letters, digits, dots, dashes")],
    ca: Folder = Path("ca"),
    days: Annotated[int, typer.Option("--days", help="validity of the authority's own certificate in days")] = 3650,
    own: Annotated[
        Path | None,
        typer.Option(
            "--own",
            metavar="FILE.pem",
            help="certificates of your organisation's authority, which issues all TLS certificates",
            show_default="create an authority",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Create an authority in a new folder. Store a backup of the folder in a safe place."""
    from paceline.deploy.identity.authority import Authority
    from paceline.deploy.identity.trust import read

    roots = None if own is None else read(own, "give the PEM file of your organisation's authority")
    made = Authority.create(ca, federation, days=days, passphrase=_passphrase(), ca=roots)
    summary = {"federation": federation, "folder": str(ca), "trust": str(ca / "trust.pem"), "fingerprint": made.trust.fingerprint}
    if json:
        print_json(summary)
        return
    _say(f"federation {federation}: authority in {ca}, trust file {ca / 'trust.pem'}")
    _say(f"fingerprint: {made.trust.fingerprint}")
    if _passphrase() is None:
        _say(f"its keys are not encrypted; anyone who can read the folder can join (set {PASSPHRASE} before `paceline ca init`)")


@app.command()
def issue(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="clients; with --server, DNS names and addresses of one server")
    ],
    server: Annotated[
        bool, typer.Option("--server", help="issue one server certificate for all NAMEs", show_default="off")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="folder for the files", show_default="./NAME for each"),
    ] = None,
    days: Days = 365,
    replace: ReplaceKeys = False,
    ca: Folder = Path("ca"),
    json: Json = False,
) -> None:
    """Generate keys and certificates here. Prefer `paceline ca token` for clients: their keys then never leave them."""
    if folder is not None and len(names) > 1 and not server:
        raise ConfigError("--out is for one client; omit it to create one folder per client")
    from paceline.deploy.identity.pki import check_name

    if not server:
        for name in names:
            check_name(name)
    authority = _open(ca)
    made = []
    for name in names[:1] if server else names:
        place = folder or Path("server" if server else name)
        if any((place / key).exists() for key in ("server.key", "client.key", "identity.key")):
            raise ConfigError(f"{place} already contains keys; move them, or choose another folder with --out")
        issued = authority.issue_server(names, days=days) if server else authority.issue_client(name, days=days, replace=replace)
        made.append({"name": name, "client": issued.client, "folder": str(issued.write(place))})
    if json:
        print_json(made)
        return
    for row in made:
        number = "" if row["client"] is None else f" is client {row['client']}"
        _say(f"{row['name']}{number}: files in {row['folder']}")


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="the client")],
    certificate: Annotated[
        Path, typer.Option("--certificate", metavar="FILE.pem", help="certificate issued by your organisation's authority")
    ],
    identity: Annotated[
        str, typer.Option("--identity", metavar="HEX", help="the client's public Ed25519 key: 64 hexadecimal digits")
    ],
    replace: ReplaceKeys = False,
    ca: Folder = Path("ca"),
    json: Json = False,
) -> None:
    """Bind a certificate issued by your organisation's own authority, and an identity key, to a client."""
    from paceline.deploy.identity.trust import read

    try:
        key = bytes.fromhex(identity)
    except ValueError:
        raise ConfigError(f"--identity {identity!r} is not in hexadecimal digits") from None
    data = read(certificate, "give the client's certificate in PEM")
    member = _open(ca).register_client(name, data, key, replace=replace)
    if json:
        print_json({"client": member.id, "name": member.name})
    else:
        _say(f"{member.name} is client {member.id}")


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="the client that the token is for")],
    hours: Annotated[float, typer.Option("--hours", help="validity of the token in hours")] = 24.0,
    invite: Annotated[
        Path | None,
        typer.Option(
            "--invite", metavar="FILE", help="write token and trust file as one invitation", show_default="print the token"
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server", metavar="HOST:PORT", help="address for enrolment, included in the invitation", show_default="none"
        ),
    ] = None,
    replace: ReplaceKeys = False,
    ca: Folder = Path("ca"),
    json: Json = False,
) -> None:
    """Create an enrolment token, with which one client can obtain its certificate once. Transfer it over a secure channel."""
    from paceline.core.address import Address
    from paceline.deploy.identity.enrolment import Invitation

    if server is not None and invite is None:
        raise ConfigError("--server is part of an invitation; add --invite FILE")
    where = None if server is None else Address.parse(server, "--server")
    authority = _open(ca)
    made = authority.token(name, hours=hours, replace=replace)
    if invite is not None:
        Invitation(made, authority.trust, where).save(invite)
    if json:
        print_json({"name": name, "hours": hours, "token": made, "invitation": None if invite is None else str(invite)})
    elif invite is not None:
        _say(f"invitation for {name}, valid for {hours:g} hours: {invite}")
    else:
        typer.echo(made)


@app.command()
def revoke(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="clients by name or number, or certificates by serial")],
    reason: Annotated[
        str, typer.Option("--reason", help="unspecified, keyCompromise, affiliationChanged, superseded or cessationOfOperation")
    ] = "unspecified",
    ca: Folder = Path("ca"),
    json: Json = False,
) -> None:
    """Exclude clients: add their certificates to the revocation list and remove their keys from the directory.

    A server that reads the authority's folder applies it immediately; otherwise copy crl.pem and directory to it.
    """
    authority = _open(ca)
    rows = [row for name in names for row in authority.revoke(name, reason)]
    if json:
        print_json([_certificate(row) for row in rows])
        return
    for row in rows:
        _say(f"revoked: {row.kind} {row.names}, serial {row.serial}")
    if not rows:
        _say("there was no certificate left to revoke; the directory no longer contains them")


@app.command("list")
def list_all(ca: Folder = Path("ca"), json: Json = False) -> None:
    """List clients, certificates and tokens."""
    authority = _open(ca)
    members, certificates, tokens = authority.members(), authority.certificates(), authority.tokens()
    now = authority.clock()
    if json:
        summary = {
            "federation": authority.federation,
            "fingerprint": authority.trust.fingerprint,
            "clients": [{"client": m.id, "name": m.name, "identity": m.key.hex()} for m in members],
            "certificates": [_certificate(row) | {"state": _state(row, now)} for row in certificates],
            "tokens": [{"name": t.name, "expires": t.expires.isoformat(), "state": _token_state(t, now)} for t in tokens],
        }
        print_json(summary)
        return
    console = out()
    shown = table(
        f"Certificates of {authority.federation}", "name", "kind", "client", "state", "expires", "serial", right=("client",)
    )
    for row in certificates:
        number = "" if row.member is None else str(row.member)
        shown.add_row(*map(escape, (row.names, row.kind, number, _state(row, now), f"{row.expires:%Y-%m-%d}", row.serial)))
    console.print(shown)
    if tokens:
        shown = table("Tokens", "client", "state", "expires")
        for each in tokens:
            shown.add_row(*map(escape, (each.name, _token_state(each, now), f"{each.expires:%Y-%m-%d %H:%M} UTC")))
        console.print(shown)
    _say(f"{len(members)} clients are members; trust fingerprint {authority.trust.fingerprint}")


@app.command()
def publish(ca: Folder = Path("ca"), json: Json = False) -> None:
    """Rewrite revocation list and directory; a list expires after 30 days without a change."""
    _open(ca).publish()
    if json:
        print_json({"crl": str(ca / "crl.pem"), "directory": str(ca / "directory")})
    else:
        _say(f"written: {ca / 'crl.pem'}, {ca / 'directory'}")


def _open(folder: Path) -> Authority:
    from paceline.deploy.identity.authority import Authority

    return Authority.open(folder, _passphrase())


def _passphrase() -> bytes | None:
    text = os.environ.get(PASSPHRASE)
    return text.encode() if text else None


def _say(text: str) -> None:
    out().print(text, markup=False, soft_wrap=True)


def _certificate(row: CertificateRow) -> dict[str, Any]:
    summary = {
        "serial": row.serial,
        "kind": row.kind,
        "client": row.member,
        "names": row.names,
        "own": row.own,
        "reason": row.reason,
    }
    revoked = None if row.revoked is None else row.revoked.isoformat()
    return summary | {"issued": row.issued.isoformat(), "expires": row.expires.isoformat(), "revoked": revoked}


def _state(row: CertificateRow, now: datetime) -> str:
    if row.revoked is not None:
        return f"revoked ({row.reason})"
    return "valid" if row.issued <= now <= row.expires else "expired"


def _token_state(row: TokenRow, now: datetime) -> str:
    return "used" if row.used is not None else "expired" if now > row.expires else "open"
