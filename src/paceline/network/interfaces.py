"""What the engine needs of others: who may come in, what the server has at home, and where progress is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from paceline.core.engine import Receipt
from paceline.core.errors import ConfigError, IdentityError
from paceline.core.params import Params
from paceline.core.services import Services
from paceline.core.tree import Tree

__all__ = ["AdmittedClient", "HubSettings", "Members", "NotNow", "Progress", "Recorder", "ServerSide", "check_limit"]


class NotNow(IdentityError):
    """A certificate cannot be judged at present, or a clock is wrong: the same one may be good later."""


def check_limit(what: str, size: int, limit: int, option: str) -> None:
    """Raise `ConfigError` where messages of a run are known to be larger than one side accepts."""
    if size > limit:
        enough = 1 << (size + size // 4).bit_length()  # with room for what else is in them
        raise ConfigError(f"{what} takes at least {size} bytes, but {option} accepts {limit}; set {option} to {enough} or so")


class AdmittedClient(Protocol):
    """Whom a certificate belongs to."""

    @property
    def id(self) -> int:
        """The client's number."""

    @property
    def name(self) -> str:
        """The client's name."""


class Members(Protocol):
    """Knows the certificates; asked again and again, so that a revocation takes effect on live streams."""

    def member(self, certificate: bytes) -> AdmittedClient:
        """Return whom a certificate belongs to.

        Raises `IdentityError` when it is unknown or revoked, `NotNow` when that may pass by itself.
        """


class ServerSide(Protocol):
    """What the server has at home: the initial model and the central test set; a `Worker` does."""

    @property
    def initial(self) -> Params:
        """The initial model."""

    @property
    def services(self) -> Services:
        """What server programs may use."""

    def preview(self, function: str, message: Tree) -> Tree | None:
        """Return a reply with the shape that clients will send."""

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Evaluate on the central test set."""


class Recorder(Protocol):
    """Where it is written down, durably, how far the run is."""

    def phase(self, round: int, attempt: int, name: str, asked: Sequence[int]) -> None:
        """A phase begins."""

    def answers(self, round: int, attempt: int, name: str, receipts: Sequence[Receipt]) -> None:
        """A phase has ended; these came of it."""

    def committed(self, round: int, attempt: int, kept: Sequence[int]) -> None:
        """A round has ended; the work of these clients is in its result."""


@dataclass(frozen=True)
class HubSettings:
    """How the server deals with streams.

    Args:
        heartbeat: seconds between pings; a stream that is silent for three of them is ended.
        hello: seconds that a new stream has to introduce itself.
        waiting: streams of one client that may be introducing themselves at once.
        limit: largest message of a client, in bytes.
        memory: bytes that incoming messages may take together before they go to files.
        lanes: large messages that come, and that go, at a time.
        window: bytes that a client may send ahead of what was read; with the time of a round trip it bounds the
            speed of an upload: 256 KiB in 50 ms are 5 MB/s.
        pack: compress what is sent with zstd.
        watch: seconds between looks at the certificates of live streams.
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
    """How far the run is, as clients are told when they connect.

    Args:
        run: its id.
        incarnation: grows with every start of the server.
        round: the last completed round.
        take: grows with every round that is tried again.
        saved: the last round of a checkpoint; no resumed server goes back behind it.
        kept: the clients whose work of the last completed round is in its result.
    """

    run: str
    incarnation: int
    round: int = 0
    take: int = 0
    saved: int = 0
    kept: frozenset[int] = frozenset()
