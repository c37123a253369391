"""Server side of enrolment: two independent ports, for tokens and for renewals.

Each port has its own server, event loop, threads and limits, so that unauthenticated peers on the first one cannot
affect the clients on the second. Requests are read on the event loop, with a deadline, and signed in a thread.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import grpc
import grpc.aio

from paceline.core.address import Address
from paceline.core.errors import EngineError, IdentityError, PacelineError, WireError
from paceline.core.serialization import dumps
from paceline.deploy.identity.admission import Gate
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.call_limits import Bounds, CallLimiter, RequestTimeout, TooManyCalls
from paceline.deploy.identity.enrolment_client import REQUEST, SERVICE, request_of
from paceline.deploy.identity.files import Enrolled
from paceline.network import LoopThread
from paceline.network.protocol import clean, field
from paceline.network.tls import Credentials

if TYPE_CHECKING:
    from paceline.deploy.server.events import Notes

__all__ = ["Enrolment", "peer_of"]

_STATUS = grpc.StatusCode
_WINDOW, _MOST_LOGGED = 10.0, 10
"""Interval in seconds, and the number of refusals logged within it; further ones are only counted."""


class Enrolment:
    """Serves enrolment and renewal requests.

    Args:
        authority: issues the certificates.
        gate: authenticates clients that renew.
        credentials: credentials of the server.
        notes: event log.
        bounds: limits of each of the two ports.
    """

    def __init__(
        self, authority: Authority, gate: Gate, credentials: Credentials, notes: Notes, bounds: Bounds | None = None
    ) -> None:
        self._authority, self._gate, self._notes = authority, gate, notes
        bounds = bounds or Bounds()
        pair = [(credentials.key, credentials.certificate)]
        self.enrolling = _Port("Redeem", grpc.ssl_server_credentials(pair), peer_of, self._redeem, notes, bounds)
        self.renewing = _Port("Renew", credentials.server(), self._member, self._renew, notes, bounds)

    def start(self, enrol: Address | None, renew: Address | None) -> tuple[int, int]:
        """Listen for enrolments and for renewals (which require a certificate); return the two ports, 0 for none.

        Raises:
            EngineError: an address is in use or not available.
        """
        try:
            return tuple(port.start(address) if address else 0 for port, address in self._ports(enrol, renew))  # type: ignore[return-value]
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Close the ports."""
        for port, _ in self._ports(None, None):
            port.stop()

    def _ports(self, enrol: Address | None, renew: Address | None) -> list[tuple[_Port, Address | None]]:
        return [(self.enrolling, enrol), (self.renewing, renew)]

    def _redeem(self, data: bytes, _: str, peer: str) -> Enrolled:
        ask = request_of(data)
        parts = (field(ask, "token", str), field(ask, "request", bytes), field(ask, "identity", bytes), field(ask, "proof", bytes))
        enrolled = self._authority.redeem(*parts)
        self._notes.event("enrolled", enrolled.client, {"name": enrolled.name, "from": peer})
        return enrolled

    def _member(self, context: Any) -> str:
        shown = context.auth_context().get("x509_pem_cert")
        if not shown:
            raise IdentityError("a certificate is renewed only for a client that presents its old one")
        return str(self._gate.member(shown[0]).id)

    def _renew(self, data: bytes, client: str, _: str) -> Enrolled:
        enrolled = self._authority.renew(int(client), field(request_of(data), "request", bytes))
        self._notes.event("renewed", enrolled.client, {"name": enrolled.name})
        return enrolled


class _Port:
    """One RPC method on one port.

    Args:
        method: name of the method.
        credentials: credentials of the port.
        who: returns the peer that a call is counted for.
        answer: computes the answer in a thread, from the request, `who` and the peer's address.
        notes: event log.
        bounds: limits of the port.
    """

    def __init__(
        self,
        method: str,
        credentials: grpc.ServerCredentials,
        who: Callable[[Any], str],
        answer: Callable[[bytes, str, str], Enrolled],
        notes: Notes,
        bounds: Bounds,
    ) -> None:
        self._method, self._credentials, self._who, self._answer = method, credentials, who, answer
        self._notes, self._bounds, self.limiter = notes, bounds, CallLimiter(bounds)
        self._loop: LoopThread | None = None
        self._server: grpc.aio.Server | None = None
        self._pool = ThreadPoolExecutor(2, method.lower())
        self._window, self._logged, self._omitted = 0.0, 0, 0

    def start(self, address: Address) -> int:
        """Start listening; return the port.

        Raises:
            EngineError: the address is in use or not available.
        """
        self._loop = LoopThread(self._method.lower())
        return self._loop.wait(self._open(address))

    async def _open(self, address: Address) -> int:
        self._server = grpc.aio.server(options=_options(self._bounds))
        # the client's call is unary; handling it as a stream starts the handler at once, so that the request has a deadline
        rpc = {self._method: grpc.stream_unary_rpc_method_handler(self._serve)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, rpc),))
        try:
            port = int(self._server.add_secure_port(str(address), self._credentials))
        except RuntimeError as error:
            raise EngineError(f"cannot listen on {address}: {address.taken() or error}") from error
        await self._server.start()
        return port

    def stop(self) -> None:
        """Close the port."""
        if self._loop is not None:
            if self._server is not None:
                self._loop.wait(self._server.stop(0.2))
            self._loop.stop()
            self._loop = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, _: Any, context: Any) -> bytes:
        peer = context.peer()
        try:
            who = self._who(context)
            with self.limiter.enter(who) as ticket:
                data = await ticket.read(context.read)
                if data is grpc.aio.EOF:
                    raise WireError("the call has no request")
                self.limiter.work(ticket)
                work = asyncio.get_running_loop().run_in_executor(self._pool, self._answer, data, who, peer)
                return dumps(asdict(await asyncio.wait_for(work, self._bounds.work)))
        except (PacelineError, TimeoutError, OSError) as error:
            code, message, reason = _refusal(error)
            self._note(reason, clean(error) or "timeout", peer)
        await context.abort(code, message)
        raise AssertionError("not reached")

    def _note(self, reason: str, why: str, peer: str) -> None:
        """Log a refusal; rate-limited, with the number of omitted ones."""
        now = time.monotonic()
        if now - self._window > _WINDOW:
            self._window, self._logged = now, 0
        self._logged += 1
        if self._logged > _MOST_LOGGED:
            self._omitted += 1
            return
        more = {"others": self._omitted} if self._omitted else {}
        self._omitted = 0
        self._notes.event("refused", None, {"reason": reason, "why": why, "from": peer, **more})


def peer_of(context: Any) -> str:
    """Return the address of a call's peer without its port; for IPv6 the /64 network, which one party controls."""
    kind, _, rest = unquote(context.peer()).partition(":")
    host = rest.rpartition(":")[0].strip("[]")
    try:
        return str(ipaddress.IPv6Network((host.partition("%")[0], 64), strict=False)) if kind == "ipv6" else host or rest
    except ValueError:
        return host or rest


def _refusal(error: Exception) -> tuple[grpc.StatusCode, str, str]:
    """Return the status, the message for the client, and the logged reason."""
    message = clean(error)
    match error:
        case TooManyCalls():
            return _STATUS.RESOURCE_EXHAUSTED, message, "crowd"
        case RequestTimeout() | TimeoutError():
            return _STATUS.DEADLINE_EXCEEDED, message or "the response timed out; try again", "silent"
        case WireError():
            return _STATUS.INVALID_ARGUMENT, message, "enrolment"
        case IdentityError():
            return _STATUS.PERMISSION_DENIED, message, "enrolment"
    return (
        _STATUS.UNAVAILABLE,
        "the server cannot issue certificates at present; its operator finds the cause in the server's log",
        "enrolment",
    )


def _options(bounds: Bounds) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", REQUEST.size),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.max_concurrent_streams", bounds.each),
        ("grpc.max_allowed_incoming_connections", bounds.connections),
        ("grpc.server_handshake_timeout_ms", int(bounds.idle * 1000)),
        ("grpc.max_connection_idle_ms", int(bounds.idle * 1000)),
        ("grpc.max_connection_age_ms", int(bounds.age * 1000)),
        ("grpc.max_connection_age_grace_ms", int(bounds.read * 1000)),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),
    ]
