"""The gRPC server: opens and closes the port."""

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
"""Options that close connections on which no stream is opened."""


class Server:
    """The gRPC server of a hub.

    Args:
        hub: serves the streams.
        credentials: key and certificate of the server, and the roots of the clients' certificates.
        address: address to listen on; port 0 selects a free port.
    """

    def __init__(self, hub: Hub, credentials: Credentials, address: Address) -> None:
        self.hub, self.credentials, self.address = hub, credentials, address
        self.port = 0

    async def start(self) -> int:
        """Start listening; return the port.

        Raises:
            EngineError: the address is in use or not available.
        """
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
        """Send goodbye to all clients, then close the port.

        Args:
            why: reason sent to the clients.
            done: whether the run has ended.
            grace: seconds to wait for the clients to leave.
        """
        for session in list(self.hub.sessions.values()):
            session.put(p.BYE, {"why": why, "done": done})
        await self.hub.left(grace)
        await self._server.stop(0.1)
