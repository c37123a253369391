"""Message kinds of the network protocol, and validation of their heads.

======== ========= ============================================================================
kind     from      head (further parts)
======== ========= ============================================================================
HELLO    client    protocol, version, instance, pack
WELCOME  server    run, incarnation, number, round, take, kept, lost, saved, plan, heartbeat, pack (directory)
READY    client    (none)
CALL     server    id, program, function, round, take, stream, deadline, channel, cohort,
                   operation (message; own, peers, lost)
REPLY    client    id, dropped, compute, network, down, up, seconds, trained (value)
COMMIT   server    round, saved, kept, lost, took: measured seconds of this client's last training, or 0
ROLLBACK server    take
PING     server    (none); answered by PONG
REFUSE   client    reasons why it does not participate; later: whether that is temporary
LEAVE    client    why
BYE      server    why; done: whether the run has ended
NEWS     server    (none) (directory)
======== ========= ============================================================================

`incarnation` increases with every start of the server, `take` with every repeated round: uncommitted work of a
client belongs to one (incarnation, take). A call's `id` increases over the whole run. `operation` numbers the method's operations of
a round; `lost` lists those that do not count this client, whose staged values it restores (`paceline.core.memory`). `kept` in
a WELCOME is the last round whose result includes this client's work, in a COMMIT whether this one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from paceline.core.errors import WireError
from paceline.core.serialization import NETWORK

__all__ = [
    "BYE",
    "CALL",
    "COMMIT",
    "HELLO",
    "LEAVE",
    "METHOD",
    "NAMES",
    "NEWS",
    "PING",
    "PONG",
    "PROTOCOL",
    "READY",
    "REFUSE",
    "REPLY",
    "ROLLBACK",
    "SERVICE",
    "WELCOME",
    "clean",
    "directory_of",
    "field",
    "operations",
    "seconds",
]

PROTOCOL = 2
SERVICE = "paceline.Federation"
METHOD = f"/{SERVICE}/Connect"

HELLO, WELCOME, READY, CALL, REPLY, COMMIT, ROLLBACK, PING, PONG, REFUSE, LEAVE, BYE, NEWS = range(1, 14)

NAMES = dict(
    zip(
        range(1, 14),
        ("hello", "welcome", "ready", "call", "reply", "commit", "rollback", "ping", "pong", "refuse", "leave", "bye", "news"),
        strict=True,
    )
)
"""Names of the message kinds, for logs."""

T = TypeVar("T")
_DAY = 86_400.0


def field(head: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """Return a field of a head.

    Raises:
        WireError: the field is missing or of another type.

    Example:
        >>> field({"round": 3}, "round", int)
        3
    """
    value = head.get(name) if isinstance(head, Mapping) else None
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise WireError(f"malformed message: {name!r} is missing or not of type {kind.__name__}")
    return value


def seconds(head: Mapping[str, Any], name: str) -> float:
    """Return a duration reported by the other side, from 0 to 30 days.

    Raises:
        WireError: any other value.
    """
    value = field(head, name, float)
    if not (math.isfinite(value) and 0 <= value <= 30 * _DAY):
        raise WireError(f"{name}={value} must be finite and at least 0 seconds")
    return value


def operations(head: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the operations that a message reports as lost; empty if it reports none.

    Raises:
        WireError: they are not a list of numbers.

    Example:
        >>> operations({"lost": [2]})
        (2,)
    """
    value = head.get("lost", [])
    if not isinstance(value, list) or len(value) > 10_000 or not all(type(number) is int for number in value):
        raise WireError("the lost operations of a message are no list of numbers")
    return tuple(value)


def clean(text: Any, most: int = 500) -> str:
    r"""Return untrusted text in a form safe to log and display: printable, on one line, at most `most` characters.

    Example:
        >>> clean("two\nlines")
        'two lines'
    """
    plain = "".join(c if c.isprintable() else " " for c in str(text)[: most + 1])
    return plain if len(plain) <= most else plain[:most] + "…"


def directory_of(message: Any) -> bytes:
    """Return the signed directory attached to a welcome or news, or nothing.

    Raises:
        WireError: the message is malformed.
    """
    if not message.parts:
        return b""
    return field(message.tree(0, replace(NETWORK, size=64 << 20)), "directory", bytes)
