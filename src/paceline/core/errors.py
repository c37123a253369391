"""Every error Paceline raises on purpose, as one tree.

Each class carries the exit code that the command line ends with, so a script can tell *what kind* of
thing went wrong without reading text. A message says what was wrong, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "AggregationError",
    "CheckpointError",
    "ChecksumError",
    "ClientError",
    "CohortError",
    "ConfigError",
    "DataError",
    "DataFormatError",
    "DiskFullError",
    "EmptyClientError",
    "EngineError",
    "IdentityError",
    "LayoutError",
    "MisbehaviourError",
    "MissingDataError",
    "MissingExtraError",
    "NameClashError",
    "NonFiniteError",
    "PacelineError",
    "PlanError",
    "PolicyError",
    "ProtocolError",
    "QuorumError",
    "SchemaError",
    "StoreError",
    "StoreUnavailableError",
    "SubmodelError",
    "SumOverflowError",
    "TokenError",
    "TreeError",
    "UnknownNameError",
    "UnusableSumError",
    "WireError",
    "WorkerDiedError",
    "ZeroCostError",
    "by_name",
    "install_command",
    "nearest",
]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean a, b?"`` for the known names closest to `name`, or the list of all."""
    known = sorted(known)
    # a name may come from outside; comparing one of a megabyte would take seconds and hundreds of them
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5) if len(name) <= 64 else []
    if close:
        return f"; did you mean {', '.join(close)}?"
    return f"; known: {', '.join(known)}" if known else ""


class PacelineError(Exception):
    """Base class of all errors that Paceline raises deliberately."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Serialise as text and attributes; constructor arguments are not transferred."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[PacelineError], args: tuple[Any, ...], attributes: dict[str, Any]) -> PacelineError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


def by_name(name: str, message: str) -> PacelineError:
    """Return an error of the class of a name, such as that of another process, with its message."""
    kind = globals().get(name)
    return _again(kind if isinstance(kind, type) and issubclass(kind, PacelineError) else PacelineError, (message,), {})


def install_command(extra: str) -> str:
    """Return the command that adds an extra's dependencies to an installed Paceline."""
    return f"pip install 'paceline[{extra}]'"


class ConfigError(PacelineError, ValueError):
    """An option has an invalid value."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """A method, task, field, fleet or other name does not exist; the message lists the closest names.

    Args:
        kind: what has no such name.
        name: the name.
        known: the names that exist.
        elsewhere: where there is one of that name, for the message.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], elsewhere: str = "") -> None:
        self.name = name
        super().__init__(f"unknown {kind} {name[:200]!r}{nearest(name, known)}{f'; {elsewhere}' if elsewhere else ''}")


class NameClashError(ConfigError):
    """A name is registered twice, by two installed packages or by a package and Paceline; the message names all of them."""

    def __init__(self, kind: str, name: str, owners: Sequence[str]) -> None:
        super().__init__(
            f"{kind} {name!r} is registered {len(owners)} times, by {' and '.join(owners)}; uninstall all but one, rename one, or "
            "write package.module:Name"
        )


class PlanError(ConfigError):
    """Parts of a run are incompatible; `misfits` lists all conflicts."""

    exit_code = 3

    def __init__(self, misfits: Sequence[str]) -> None:
        self.misfits = tuple(misfits)
        lines = "\n".join(f"  {i}. {text}" for i, text in enumerate(misfits, 1))
        super().__init__(f"this run cannot start: {len(misfits)} incompatible setting(s):\n{lines}")


class ZeroCostError(ConfigError):
    """Work would take no virtual time: a model that computes nothing, or an asynchronous job without duration."""


class MissingExtraError(PacelineError, ImportError):
    """An optional dependency is not installed; the message names the command that installs it."""

    exit_code = 4

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: {install_command(extra)}")


class DataError(PacelineError):
    """A data set is invalid."""

    exit_code = 5


class MissingDataError(DataError):
    """The data set is not in the cache; the message names the command that fetches it."""


class DataFormatError(DataError, ValueError):
    """A file does not have the expected format."""


class SchemaError(DataFormatError):
    """A site's files do not match the schema of a run.

    Args:
        where: the files, for the message.
        shared: differences in names of columns, kinds and classes of the schema; no value of the files is in them.
        own: the same with rows and values, for the site itself.
    """

    def __init__(self, where: str, shared: Sequence[str], own: Sequence[str]) -> None:
        self.shared, self.own = tuple(shared), tuple(own)
        super().__init__(f"{where} does not match the schema of the run: {'; '.join(own)}")


class ChecksumError(DataError):
    """A file's SHA-256 is not the recorded one."""


class EmptyClientError(DataError):
    """A client would have no samples."""


class LayoutError(PacelineError, ValueError):
    """Two parameter vectors, or a vector and a module, do not have the same layout."""

    exit_code = 6


class TreeError(PacelineError, TypeError):
    """A message, reply or state contains an object that is not a tree of tensors and plain values."""

    exit_code = 6


class WireError(PacelineError, ValueError):
    """Received bytes are malformed or exceed a limit."""

    exit_code = 6


class SubmodelError(PacelineError):
    """A module cannot be cut into sub-models."""

    exit_code = 7


class CohortError(PacelineError, ValueError):
    """A cohort is empty, or larger than the population."""

    exit_code = 8


class ClientError(PacelineError):
    """A client function failed; names client, function, round and, during local training, step and batch."""

    exit_code = 9

    def __init__(self, client: int, function: str, round_: int, cause: str, step: int | None = None) -> None:
        self.client, self.function, self.round, self.step = client, function, round_, step
        at = "" if step is None else f", step {step}"
        super().__init__(f"client {client}, function {function!r}, round {round_}{at}: {cause}")


class NonFiniteError(PacelineError, ArithmeticError):
    """A loss or an update is NaN or infinite."""

    exit_code = 10


class AggregationError(PacelineError):
    """A sum could not be formed."""

    exit_code = 11


class SumOverflowError(AggregationError, ArithmeticError):
    """A value exceeds the bound of the fixed-point encoding of a sum."""


class QuorumError(AggregationError):
    """Too few clients are left to form the sum."""


class UnusableSumError(AggregationError):
    """Sums that clients sent give no figures; the round is not evaluated."""


class MisbehaviourError(QuorumError):
    """A client corrupted a secure sum, which is repeated without the named clients.

    Args:
        message: what happened.
        clients: fault of each identified client; empty where none can be identified.
        survivors: the clients whose sum was opened and cannot be used; empty where nothing was opened.
    """

    def __init__(self, message: str, clients: Mapping[int, str] | None = None, survivors: Sequence[int] = ()) -> None:
        self.clients, self.survivors = dict(clients or {}), tuple(survivors)
        super().__init__(message)


class ProtocolError(AggregationError):
    """A party broke the secure-aggregation protocol; the session is discarded."""


class EngineError(PacelineError):
    """The engine cannot run client functions."""

    exit_code = 12


class WorkerDiedError(EngineError):
    """A worker process ended unexpectedly."""


class StoreError(PacelineError):
    """A run's folder cannot be read or written."""

    exit_code = 13


class StoreUnavailableError(StoreError):
    """The server's database is unavailable; earlier writes are intact."""


class CheckpointError(StoreError):
    """A checkpoint is corrupt, incomplete or belongs to another run."""


class DiskFullError(StoreError, OSError):
    """The disk is full; earlier writes are intact."""


class IdentityError(PacelineError):
    """A key, certificate or directory is missing, wrong, expired or revoked."""

    exit_code = 14


class TokenError(IdentityError):
    """An enrolment token is unknown, expired or used up."""


class PolicyError(PacelineError):
    """A client's own policy forbids a request of the server; `reasons` lists every violation."""

    exit_code = 15

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__(f"this client's policy does not permit this: {'; '.join(reasons)}")
