"""Network addresses (host and port) and proxy URLs, with one common validation."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import BeforeValidator

from paceline.core.errors import ConfigError

__all__ = ["Address", "Dialled", "Listening", "MaybeListening", "ProxyUrl", "proxy_shown", "proxy_url"]

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Environment variables in which gRPC looks for a proxy, in its order."""

_DOTTED = re.compile(r"[0-9.]+")


@dataclass(frozen=True)
class Address:
    """A host and a port.

    Args:
        host: DNS name, IPv4 or IPv6 address, without brackets.
        port: 1 to 65535; 0 selects a free port for listening.
    """

    host: str
    port: int

    @staticmethod
    def parse(value: Any, field: str = "", *, listen: bool = False) -> Address:
        """Parse a text ``host:port``; an IPv6 address must be in brackets.

        Args:
            value: the text, or an `Address`.
            field: name of the option, for the error message.
            listen: the address is for listening, so port 0 is permitted.

        Raises:
            ConfigError: the address is malformed; the message contains field and value.

        Example:
            >>> Address.parse("[::1]:9100"), str(Address("::1", 9100))
            (Address(host='::1', port=9100), '[::1]:9100')
        """
        try:
            return _read(value, listen)
        except ValueError as error:
            shown = repr(str(value) if isinstance(value, Address) else value)[:200]
            raise ConfigError(f"{field} = {shown}: {error}" if field else f"{shown}: {error}") from None

    @property
    def target(self) -> str:
        """Target for gRPC; it is always resolved by DNS, whatever the host is called."""
        return f"dns:///{self}"

    def taken(self) -> str:
        """Return the system's reason why the address is not available for listening; empty if it is, or if unknown."""
        try:
            kind, how, protocol, _, where = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(kind, how, protocol) as probe:
                if os.name == "posix":  # like gRPC: closing connections do not block the port
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _read(value: Any, listen: bool) -> Address:
    return _checked(*((value.host, str(value.port)) if isinstance(value, Address) else _split(value)), listen)


def _split(value: Any) -> tuple[str, str]:
    if not isinstance(value, str):
        raise ValueError(f"expected text, not {type(value).__name__}; write host:port")
    if "://" in value:
        raise ValueError("a URL is not accepted here; write host:port alone, such as fed.example.org:9100")
    if value.startswith("["):
        host, mark, rest = value[1:].partition("]")
        if not mark:
            raise ValueError("the closing bracket is missing; write an IPv6 address as in [::1]:9100")
        if not _is(ipaddress.IPv6Address, host):
            raise ValueError(f"{host!r} is not a valid IPv6 address; only IPv6 addresses are written in brackets")
        if not rest.startswith(":"):
            raise ValueError(f"the port is missing; write it after a colon, as in [{host}]:9100")
        return host, rest[1:]
    host, mark, port = value.rpartition(":")
    if not mark:
        raise ValueError(f"the port is missing; write it after a colon, as in {value or 'localhost'}:9100")
    if ":" in host:
        raise ValueError("write an IPv6 address in brackets, as in [::1]:9100")
    return host, port


def _checked(host: str, port: str, listen: bool) -> Address:
    if not host:
        raise ValueError("the host is missing; write host:port" + (", with 0.0.0.0 or [::] for all interfaces" if listen else ""))
    dotted = _DOTTED.fullmatch(host) is not None
    if not (_is(ipaddress.IPv6Address, host) or (_is(ipaddress.IPv4Address, host) if dotted else _HOST.fullmatch(host))):
        raise ValueError(f"{host!r} is neither a DNS name nor an IP address")
    least = 0 if listen else 1
    if not re.fullmatch(r"[0-9]{1,5}", port) or not least <= int(port) <= 65535:
        raise ValueError(
            f"{port!r} is not a valid port; write a number from {least} to 65535" + (", 0 for a free one" if listen else "")
        )
    return Address(host, int(port))


def _is(kind: Callable[[str], object], host: str) -> bool:
    """Return whether `host` is an address of the given class (IPv4 or IPv6)."""
    try:
        kind(host)
    except ValueError:
        return False
    return True


def proxy_url(value: Any, field: str = "") -> str:
    """Validate and normalise the URL of an HTTP proxy; ``environment`` and the empty text are returned unchanged.

    Raises:
        ConfigError: the value is invalid; the message contains the field but no password.
    """
    name = field or "the proxy"
    if not isinstance(value, str):
        raise ConfigError(f"{name}: expected text, not {value!r}; write http://HOST:PORT, environment, or nothing")
    if value in ("", "environment"):
        return value
    try:
        parts = urlsplit(value)
        if parts.scheme != "http" or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("write http://HOST:PORT, http://USER:PASSWORD@HOST:PORT, or environment")
        user, _, where = parts.netloc.rpartition("@")
        if any(c.isspace() or not c.isprintable() for c in unquote(user)):
            raise ValueError("user and password must not contain whitespace; percent-encode it")
        address = Address.parse(where)
    except ValueError as error:
        raise ConfigError(f"{name} is not a valid HTTP proxy: {error}") from None
    return f"http://{quote(unquote(user), safe=':')}@{address}" if user else f"http://{address}"


def proxy_shown(proxy: str) -> str | None:
    """Return a proxy in a form safe to log, without user and password; None if there is none.

    Example:
        >>> proxy_shown("http://me:secret@proxy:3128")
        'http://proxy:3128'
    """
    if proxy != "environment":
        return re.sub(r"//.*@", "//", proxy) or None
    name = next((n for n in _PROXIES if os.environ.get(n)), None)
    return (
        "none (http_proxy is not set in the environment)"
        if name is None
        else f"{re.sub(r'//.*@', '//', os.environ[name])} ({name})"
    )


Dialled = Annotated[Address, BeforeValidator(lambda value: _read(value, listen=False))]
"""Configuration field: host:port to connect to."""

Listening = Annotated[Address, BeforeValidator(lambda value: _read(value, listen=True))]
"""Configuration field: host:port to listen on."""

MaybeListening = Annotated[
    Address | None, BeforeValidator(lambda value: None if value in ("", None) else _read(value, listen=True))
]
"""Configuration field: host:port to listen on; None for an empty text."""

ProxyUrl = Annotated[str, BeforeValidator(proxy_url)]
"""Configuration field: URL of an HTTP proxy, ``environment``, or empty."""
