"""gRPC's credentials and options: mutual TLS, keep-alive, small frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from paceline.core.errors import IdentityError
from paceline.network.frames import CHUNK

__all__ = ["Credentials", "narrow", "options", "through"]

_FRAME = CHUNK + 4096


@dataclass(frozen=True)
class Credentials:
    """One party's key and certificate, and the roots that it trusts; all PEM."""

    key: bytes
    certificate: bytes
    roots: bytes

    @staticmethod
    def read(key: Path, certificate: Path, roots: bytes) -> Credentials:
        """Read the files. Raises `IdentityError` where one cannot be read."""
        try:
            return Credentials(key.read_bytes(), certificate.read_bytes(), roots)
        except OSError as error:
            raise IdentityError(f"{error.filename} cannot be read: {error.strerror}") from error

    def server(self) -> grpc.ServerCredentials:
        """Return a server's end: a client without a certificate of ours gets no further than the handshake."""
        return grpc.ssl_server_credentials([(self.key, self.certificate)], self.roots, require_client_auth=True)

    def channel(self) -> grpc.ChannelCredentials:
        """Return a client's end."""
        return grpc.ssl_channel_credentials(self.roots, self.key, self.certificate)


def narrow(window: int) -> Sequence[tuple[str, Any]]:
    """Return what bounds the memory that gRPC's core takes for each connection of a server."""
    return [
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", window),
        ("grpc.experimental.tcp_max_read_chunk_size", CHUNK),
    ]


def through(proxy: str = "") -> Sequence[tuple[str, Any]]:
    """Return what a channel is told of proxies: none of the environment's, unless `proxy` says so.

    Args:
        proxy: the URL of an HTTP proxy that knows CONNECT, ``environment``, or nothing.
    """
    if not proxy:
        return [("grpc.enable_http_proxy", 0)]
    return [("grpc.enable_http_proxy", 1), *([] if proxy == "environment" else [("grpc.http_proxy", proxy)])]


def options(name: str = "", keepalive: float = 30.0, proxy: str = "") -> Sequence[tuple[str, Any]]:
    """Return what both ends tell gRPC.

    Args:
        name: the server's in its certificate, where its address has another one.
        keepalive: seconds between two pings.
        proxy: see `through`.
    """
    chosen: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", _FRAME),
        ("grpc.max_send_message_length", _FRAME),
        ("grpc.keepalive_time_ms", int(keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_frame_size", CHUNK),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.so_reuseport", 0),
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        *through(proxy),
    ]
    if name:
        chosen.append(("grpc.ssl_target_name_override", name))
    return chosen
