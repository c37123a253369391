"""gRPC credentials and channel options: mutual TLS, keep-alive, small frames."""

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
    """Key and certificate of one party, and its trusted roots; all PEM."""

    key: bytes
    certificate: bytes
    roots: bytes

    @staticmethod
    def read(key: Path, certificate: Path, roots: bytes) -> Credentials:
        """Read key and certificate from files.

        Raises:
            IdentityError: a file cannot be read.
        """
        try:
            return Credentials(key.read_bytes(), certificate.read_bytes(), roots)
        except OSError as error:
            raise IdentityError(f"{error.filename} cannot be read: {error.strerror}") from error

    def server(self) -> grpc.ServerCredentials:
        """Return server credentials. A client without a certificate issued by the trusted roots fails the TLS handshake."""
        return grpc.ssl_server_credentials([(self.key, self.certificate)], self.roots, require_client_auth=True)

    def channel(self) -> grpc.ChannelCredentials:
        """Return client credentials."""
        return grpc.ssl_channel_credentials(self.roots, self.key, self.certificate)


def narrow(window: int) -> Sequence[tuple[str, Any]]:
    """Return options that bound the memory of gRPC's core per server connection.

    Args:
        window: bytes that a client may send ahead of what was read.
    """
    return [
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", window),
        ("grpc.experimental.tcp_max_read_chunk_size", CHUNK),
    ]


def through(proxy: str = "") -> Sequence[tuple[str, Any]]:
    """Return the proxy options of a channel; proxies of the environment are ignored unless requested.

    Args:
        proxy: URL of an HTTP proxy that supports CONNECT, ``environment``, or empty for none.

    Example:
        >>> through()
        [('grpc.enable_http_proxy', 0)]
    """
    if not proxy:
        return [("grpc.enable_http_proxy", 0)]
    return [("grpc.enable_http_proxy", 1), *([] if proxy == "environment" else [("grpc.http_proxy", proxy)])]


def options(name: str = "", keepalive: float = 30.0, proxy: str = "") -> Sequence[tuple[str, Any]]:
    """Return the gRPC options common to client and server.

    Args:
        name: server name in its certificate, if different from its address.
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
