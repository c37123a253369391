"""Enrolment over the network: a client shows a token or its old certificate, and gets a certificate.

A token's holder has no certificate yet, so enrolment has a port of its own on which only the server shows one.
The client knows the authority from its invitation. Renewal needs the old certificate, on a port that asks for one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc

from paceline.address import Address
from paceline.deploy.authority import Authority
from paceline.deploy.enrol import Invitation, begin, finish, renewal, renewed
from paceline.deploy.files import Enrolled
from paceline.deploy.gate import Gate
from paceline.deploy.notes import Notes
from paceline.deploy.trust import Trust
from paceline.engines.grpc.protocol import clean, field
from paceline.engines.grpc.tls import Credentials, through
from paceline.errors import EngineError, IdentityError, PacelineError, WireError
from paceline.wire import Limits, dumps, loads

__all__ = ["Enrolment", "enrol", "renew"]

SERVICE = "paceline.Enrolment"
_LIMITS = Limits(size=64 << 10, header=64 << 10, depth=16, items=100, tensors=0)
_ANSWER = Limits(size=64 << 20, header=64 << 20, depth=16, items=100, tensors=0)
_STATUS = grpc.StatusCode


class Enrolment:
    """Answers enrolling and renewing clients.

    Args:
        authority: who issues.
        gate: knows the certificates that are renewed.
        credentials: the server's.
        notes: where events go.
    """

    def __init__(self, authority: Authority, gate: Gate, credentials: Credentials, notes: Notes) -> None:
        self._authority, self._gate, self._credentials, self._notes = authority, gate, credentials, notes
        self._server: grpc.Server | None = None

    def start(self, enrol: Address, renew: Address) -> tuple[int, int]:
        """Listen on two addresses, for tokens and for renewals (which need a certificate); return the ports."""
        handlers = {"Redeem": self._redeem, "Renew": self._renew}
        rpc = {name: grpc.unary_unary_rpc_method_handler(handler) for name, handler in handlers.items()}
        self._server = grpc.server(
            ThreadPoolExecutor(4, "enrolment"),
            options=[("grpc.max_receive_message_length", _LIMITS.size), ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=64,
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, rpc),))
        pair = [(self._credentials.key, self._credentials.certificate)]
        try:
            first = self._server.add_secure_port(str(enrol), grpc.ssl_server_credentials(pair))
            second = self._server.add_secure_port(str(renew), self._credentials.server())
        except RuntimeError as error:
            raise EngineError(f"cannot listen on {enrol} and {renew}: {error}") from error
        self._server.start()
        return first, second

    def stop(self) -> None:
        """Close the ports."""
        if self._server is not None:
            self._server.stop(0.5).wait()

    def _redeem(self, data: bytes, context: Any) -> bytes:
        try:
            ask = _dict(data)
            parts = (field(ask, "token", str), field(ask, "request", bytes), field(ask, "identity", bytes), field(ask, "proof", bytes))
            enrolled = self._authority.redeem(*parts)
        except PacelineError as error:
            self._refuse(error, context)
            raise
        self._notes.event("enrolled", enrolled.client, {"name": enrolled.name, "from": context.peer()})
        return dumps(asdict(enrolled))

    def _renew(self, data: bytes, context: Any) -> bytes:
        try:
            shown = context.auth_context().get("x509_pem_cert")
            if not shown:
                raise IdentityError("a certificate is renewed only for who shows the old one")
            member = self._gate.member(shown[0])
            enrolled = self._authority.renew(member.id, field(_dict(data), "request", bytes))
        except PacelineError as error:
            self._refuse(error, context)
            raise
        self._notes.event("renewed", enrolled.client, {"name": enrolled.name})
        return dumps(asdict(enrolled))

    def _refuse(self, error: PacelineError, context: Any) -> None:
        self._notes.event("refused", None, {"reason": "enrolment", "why": clean(error), "from": context.peer()})
        context.abort(_STATUS.INVALID_ARGUMENT if isinstance(error, WireError) else _STATUS.PERMISSION_DENIED, clean(error))


def enrol(folder: Path, invitation: Path, address: Address | None = None, proxy: str = "") -> Enrolled:
    """Enrol a client with an invitation and write its folder; may be repeated after a crash or a lost answer.

    Raises `IdentityError` with the operator's reason where it is refused, `EngineError` where nobody answers.
    """
    invited = Invitation.load(invitation)
    where = address or invited.server
    if where is None:
        raise IdentityError(f"{invitation} does not say where to enrol; give the server's address")
    ask = begin(folder, invited.token)
    credentials = grpc.ssl_channel_credentials(invited.trust.roots)
    parts = {"token": ask.token, "request": ask.request, "identity": ask.identity, "proof": ask.proof}
    enrolled = _call(where, credentials, "Redeem", parts, proxy)
    finish(folder, invited.token, enrolled)
    return enrolled


def renew(folder: Path, address: Address, proxy: str = "") -> Enrolled:
    """Get a new certificate for a client while its old one is good, and write it into its folder."""
    credentials = Credentials.read(folder / "client.key", folder / "client.pem", Trust.load(folder / "trust.pem").roots)
    enrolled = _call(address, credentials.channel(), "Renew", {"request": renewal(folder)}, proxy)
    renewed(folder, enrolled)
    return enrolled


def _call(address: Address, credentials: grpc.ChannelCredentials, method: str, parts: dict[str, Any], proxy: str) -> Enrolled:
    options = [("grpc.max_receive_message_length", _ANSWER.size), ("grpc.enable_retries", 0), *through(proxy)]
    with grpc.secure_channel(address.target, credentials, options) as channel:
        try:
            answer = channel.unary_unary(f"/{SERVICE}/{method}")(dumps(parts), timeout=30.0)
        except grpc.RpcError as error:
            told = clean(error.details())
            if error.code() in (_STATUS.PERMISSION_DENIED, _STATUS.INVALID_ARGUMENT):
                raise IdentityError(f"{address} refuses: {told}") from None
            raise EngineError(f"nobody at {address} can be asked for a certificate: {told}") from None
    tree = _dict(answer, _ANSWER)
    kinds = {"certificate": bytes, "trust": bytes, "directory": bytes, "client": int, "name": str}
    return Enrolled(**{name: field(tree, name, kind) for name, kind in kinds.items()})


def _dict(data: bytes, limits: Limits = _LIMITS) -> dict[str, Any]:
    tree = loads(data, limits)
    if not isinstance(tree, dict):
        raise WireError("a request is a dict of names")
    return tree
