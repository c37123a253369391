"""Federation over gRPC with mutual TLS. Each client opens one long-lived bidirectional stream to the server."""

from paceline.core.errors import MissingExtraError

try:
    import grpc  # noqa: F401
except ImportError as error:
    raise MissingExtraError("grpcio", "grpc") from error

from paceline.network.client_runner import Runner
from paceline.network.client_stream import Node, NodeSettings
from paceline.network.engine import GrpcEngine, Stopped
from paceline.network.event_loop import LoopThread
from paceline.network.handshake import Welcome
from paceline.network.interfaces import HubSettings, Progress
from paceline.network.pending_call import Patience
from paceline.network.server import Server
from paceline.network.server_streams import Hub
from paceline.network.tls import Credentials

__all__ = [
    "Credentials",
    "GrpcEngine",
    "Hub",
    "HubSettings",
    "LoopThread",
    "Node",
    "NodeSettings",
    "Patience",
    "Progress",
    "Runner",
    "Server",
    "Stopped",
    "Welcome",
]
