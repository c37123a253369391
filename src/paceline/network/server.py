"""Opens the server's port and ends it again."""

from __future__ import annotations

import grpc
import grpc.aio

from paceline.core.address import Address
from paceline.core.errors import EngineError
from paceline.network import protocol as p
from paceline.network.server_streams import Hub
from paceline.network.tls import Credentials, narrow, options

__all__ = ["Server"]

_IDLE = (("grpc.server_handshake_timeout_ms", 15_000), ("grpc.max_connection_idle_ms", 60_000))
"""What ends connections on which no stream is opened."""


class Server:
    """A hub's port.

    Args:
        hub: who serves the streams.
        credentials: the server's key and certificate, and the roots of the clients' certificates.
        address: where to listen; port 0 takes a free one.
    """

    def __init__(self, hub: Hub, credentials: Credentials, address: Address) -> None:
        self.hub, self.credentials, self.address = hub, credentials, address
        self.port = 0

    async def start(self) -> int:
        """Listen; return the port. Raises `EngineError` where that cannot be."""
        self._server = grpc.aio.server(options=[*options(), *narrow(self.hub.settings.window), *_IDLE])
        handler = grpc.stream_stream_rpc_method_handler(self.hub.connect)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(p.SERVICE, {"Connect": handler}),))
        try:
            self.port = self._server.add_secure_port(str(self.address), self.credentials.server())
        except RuntimeError as error:
            raise EngineError(f"cannot listen on {self.address}: {self.address.taken() or error}") from error
        await self._server.start()
        return self.port

    async def stop(self, why: str, done: bool, grace: float = 2.0) -> None:
        """Say goodbye to all clients, then close the port."""
        for session in list(self.hub.sessions.values()):
            session.put(p.BYE, {"why": why, "done": done})
        await self.hub.left(grace)
        await self._server.stop(0.1)
