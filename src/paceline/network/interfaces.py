"""Interfaces and settings of the gRPC engine: client authentication, server-side worker, progress and recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from paceline.core.engine import Receipt
from paceline.core.errors import ConfigError, IdentityError
from paceline.core.params import Params
from paceline.core.services import Services
from paceline.core.tree import Tree

__all__ = ["AdmittedClient", "HubSettings", "Members", "NotNow", "Progress", "Recorder", "ServerSide", "check_limit", "excess"]


class NotNow(IdentityError):
    """A certificate cannot be verified at present, or a clock is wrong: the same certificate may be accepted later."""


def check_limit(what: str, size: int, limit: int, option: str) -> None:
    """Raise `ConfigError` if messages of a run are known to exceed the size limit of one side.

    Args:
        what: description of the message.
        size: smallest possible size in bytes.
        limit: accepted size in bytes.
        option: name of the option that sets the limit.

    Example:
        >>> check_limit("a model", 10, 100, "limit")
    """
    if size > limit:
        raise ConfigError(excess(what, size, limit, option))


def excess(what: str, size: int, limit: int, option: str) -> str:
    """Return that a message exceeds the size limit of one side, and to what the limit should be set; see `check_limit`."""
    enough = 1 << (size + size // 4).bit_length()  # with a margin for the rest of the message
    return f"{what} needs at least {size} bytes, but {option} is {limit}; set {option} to about {enough}"


class AdmittedClient(Protocol):
    """Owner of a certificate."""

    @property
    def id(self) -> int:
        """Id of the client."""

    @property
    def name(self) -> str:
        """Name of the client."""


class Members(Protocol):
    """Register of certificates. It is queried repeatedly, so that a revocation also ends live streams."""

    def member(self, certificate: bytes) -> AdmittedClient:
        """Return the owner of a certificate.

        Raises:
            IdentityError: the certificate is unknown or revoked.
            NotNow: the certificate cannot be verified at present.
        """


class ServerSide(Protocol):
    """Initial model and central test set of the server; implemented by `Worker`."""

    @property
    def initial(self) -> Params:
        """The initial model."""

    @property
    def services(self) -> Services:
        """Services available to server programs."""

    def preview(self, function: str, message: Tree) -> Tree | None:
        """Return a reply of the shape that clients will send; None if unknown."""

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Evaluate a model on the central test set."""


class Recorder(Protocol):
    """Durable record of a run's progress."""

    def phase(self, round: int, attempt: int, name: str, asked: Sequence[int]) -> None:
        """Record the start of a phase."""

    def answers(self, round: int, attempt: int, name: str, receipts: Sequence[Receipt]) -> None:
        """Record the end of a phase and its receipts."""

    def committed(self, round: int, attempt: int, kept: Mapping[int, Sequence[int]]) -> None:
        """Record the end of a round; its result includes the work of the clients in `kept`, except for these operations."""


@dataclass(frozen=True)
class HubSettings:
    """Stream settings of the server.

    Args:
        heartbeat: seconds between pings; a stream that is silent for three of them is closed.
        hello: seconds within which a new stream must send its hello.
        waiting: number of streams of one client that may be in the handshake at once.
        limit: largest accepted message of a client, in bytes.
        memory: bytes of memory for incoming messages; beyond it they go to temporary files.
        lanes: number of concurrent large transfers, in each direction.
        window: bytes that a client may send ahead of what was read. Together with the round-trip time it bounds the
            upload speed: 256 KiB in 50 ms are 5 MB/s.
        pack: compress outgoing messages with zstd.
        watch: seconds between checks of the certificates of live streams.
    """

    heartbeat: float = 10.0
    hello: float = 15.0
    waiting: int = 3
    limit: int = 1 << 30
    memory: int = 64 << 20
    lanes: int = 16
    window: int = 256 << 10
    pack: bool = False
    watch: float = 1.0


@dataclass
class Progress:
    """Progress of a run, sent to each client when it connects.

    Args:
        run: id of the run.
        incarnation: increases with every start of the server.
        round: the last completed round.
        take: increases with every repeated round.
        saved: round of the last checkpoint; a resumed server never starts before it.
        kept: the last round whose result includes a client's work, and the operations of it that do not count that client.
    """

    run: str
    incarnation: int
    round: int = 0
    take: int = 0
    saved: int = 0
    kept: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
