"""A real federation over gRPC with mutual TLS: clients dial out and keep one stream open each."""

from paceline.errors import MissingExtraError

try:
    import grpc  # noqa: F401
except ImportError as error:
    raise MissingExtraError("grpcio", "grpc") from error

from paceline.engines.grpc.engine import GrpcEngine, Stopped
from paceline.engines.grpc.hub import Hub
from paceline.engines.grpc.loop import LoopThread
from paceline.engines.grpc.node import Node, NodeSettings
from paceline.engines.grpc.phase import Patience
from paceline.engines.grpc.ports import HubSettings, Progress
from paceline.engines.grpc.runner import Runner
from paceline.engines.grpc.server import Server
from paceline.engines.grpc.tls import Credentials
from paceline.engines.grpc.welcome import Welcome

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
