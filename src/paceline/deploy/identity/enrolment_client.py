"""Client side of enrolment over the network: obtain a certificate with a token, or with the old certificate.

The owner of a token has no certificate yet, so enrolment uses a separate port on which only the server presents one.
The client knows the authority from its invitation. Renewal requires the old certificate, on a port with mutual TLS.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import grpc

from paceline.core.address import Address
from paceline.core.errors import EngineError, IdentityError, WireError
from paceline.core.serialization import Limits, dumps, loads
from paceline.deploy.identity.enrolment import Invitation, begin, finish, renewal, renewed
from paceline.deploy.identity.files import Enrolled
from paceline.deploy.identity.trust import Trust
from paceline.network.protocol import clean, field
from paceline.network.tls import Credentials, through

__all__ = ["REQUEST", "SERVICE", "enrol", "renew", "request_of"]

SERVICE = "paceline.Enrolment"
REQUEST = Limits(size=64 << 10, header=64 << 10, depth=16, items=100, tensors=0)
_ANSWER = Limits(size=64 << 20, header=64 << 20, depth=16, items=100, tensors=0)
_STATUS = grpc.StatusCode
_TRIES = 5
"""Maximum number of tries if the server is temporarily overloaded."""


def enrol(folder: Path, invitation: Path, address: Address | None = None, proxy: str = "") -> Enrolled:
    """Enrol a client with an invitation and write its folder. Can be repeated after a crash or a lost answer.

    Args:
        folder: folder of the client.
        invitation: invitation file.
        address: address for enrolment; overrides the invitation's.
        proxy: see `paceline.network.tls.through`.

    Raises:
        IdentityError: refused, with the operator's reason.
        EngineError: the server is not reachable.
    """
    invited = Invitation.load(invitation)
    where = address or invited.server
    if where is None:
        raise IdentityError(f"{invitation} has no enrolment address; pass the server's address")
    ask = begin(folder, invited.token)
    credentials = grpc.ssl_channel_credentials(invited.trust.roots)
    parts = {"token": ask.token, "request": ask.request, "identity": ask.identity, "proof": ask.proof}
    enrolled = _call(where, credentials, "Redeem", parts, proxy)
    finish(folder, invited.token, enrolled)
    return enrolled


def renew(folder: Path, address: Address, proxy: str = "") -> Enrolled:
    """Obtain a new certificate for a client whose old one is still valid, and write it into its folder.

    Raises:
        IdentityError: refused, or a file is damaged.
        EngineError: the server is not reachable.
    """
    credentials = Credentials.read(folder / "client.key", folder / "client.pem", Trust.load(folder / "trust.pem").roots)
    enrolled = _call(address, credentials.channel(), "Renew", {"request": renewal(folder)}, proxy)
    renewed(folder, enrolled)
    return enrolled


def _call(address: Address, credentials: grpc.ChannelCredentials, method: str, parts: dict[str, Any], proxy: str) -> Enrolled:
    options = [("grpc.max_receive_message_length", _ANSWER.size), ("grpc.enable_retries", 0), *through(proxy)]
    with grpc.secure_channel(address.target, credentials, options) as channel:
        for left in reversed(range(_TRIES)):
            try:
                answer = channel.unary_unary(f"/{SERVICE}/{method}")(dumps(parts), timeout=30.0)
                break
            except grpc.RpcError as error:
                message = clean(error.details())
                if error.code() in (_STATUS.PERMISSION_DENIED, _STATUS.INVALID_ARGUMENT):
                    raise IdentityError(f"{address} refuses: {message}") from None
                if error.code() is not _STATUS.RESOURCE_EXHAUSTED or not left:
                    raise EngineError(f"no certificate could be requested at {address}: {message}") from None
            time.sleep(random.uniform(0.5, 1.0))
    tree = request_of(answer, _ANSWER)
    kinds = {"certificate": bytes, "trust": bytes, "directory": bytes, "client": int, "name": str}
    return Enrolled(**{name: field(tree, name, kind) for name, kind in kinds.items()})


def request_of(data: bytes, limits: Limits = REQUEST) -> dict[str, Any]:
    """Decode the fields of a request or an answer; raises `WireError` for malformed data."""
    tree = loads(data, limits)
    if not isinstance(tree, dict):
        raise WireError("the request must be a dict with text keys")
    return tree
