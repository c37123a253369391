"""Description of missing replies: their number, reasons, and the code location of errors."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paceline.core import errors
from paceline.core.errors import (
    AggregationError,
    ClientError,
    DataError,
    NonFiniteError,
    PacelineError,
    PlanError,
)

if TYPE_CHECKING:
    from paceline.core.engine import Receipt

__all__ = ["DECLINED", "Declined", "account", "class_in", "class_of", "client_error", "kind_of", "place_of", "reason_of", "reasons"]

Kind = Literal["late", "gone", "declined", "refused", "failed"]

DECLINED = "declined"
"""``dropped`` of the receipt of a client that sits out."""


class Declined(Exception):
    """Raised by a client function to sit out the operation: the client sends nothing and is no part of the sum.

    It is an ordinary drop-out, so the server sees who sits out. A function with a `peer_record` decides in the latter, which
    under secure aggregation runs before the vector is masked, and for a round whose keys are prepared also at the end of the round
    before, with `Client.round` and memory as they will be. What the function has stored is reset.
    """


_HERE = str(Path(__file__).parents[1]) + os.sep
_PATHS = sysconfig.get_paths()
_INSTALLED = tuple({_PATHS[name] + os.sep for name in ("purelib", "platlib")})
_LIBRARIES = tuple(root + name + os.sep for root in _INSTALLED for name in ("torch", "numpy"))
_STANDARD = tuple({_PATHS[name] + os.sep for name in ("stdlib", "platstdlib")})


def kind_of(dropped: str) -> Kind:
    """Return the kind of a missing reply, from a receipt's ``dropped``."""
    if dropped == "late":
        return "late"
    if dropped == "gone":
        return "gone"
    if dropped == DECLINED:
        return "declined"
    return "refused" if dropped.startswith("refused") else "failed"


def account(dropped: Mapping[int, str], asked: int, most: int = 3) -> str:
    """Return how many clients gave no reply, and why; see `reasons`.

    Args:
        dropped: reason by client.
        asked: number of clients called.
        most: number of reasons per kind to list.

    Example:
        >>> account({0: "late", 3: "KeyError: 'x' (mine.py:7)", 4: "KeyError: 'x' (mine.py:7)"}, 5)
        "3 of 5 clients gave no reply: 1 late, 2 failed (2 times KeyError: 'x' (mine.py:7), such as client 3)"
    """
    return f"{len(dropped)} of {asked} clients gave no reply: {reasons(dropped, most)}"


def reasons(dropped: Mapping[int, str], most: int = 3) -> str:
    """Return the number of missing replies by kind, with the `most` frequent reasons of each and one example client."""
    found: dict[Kind, dict[str, list[int]]] = {}
    for client, why in sorted(dropped.items()):  # reasons that differ only in numbers count as one
        found.setdefault(kind_of(why), {}).setdefault(re.sub(r"\d+", "#", why), []).append(client)
    parts = []
    for kind in ("late", "gone", "declined", "refused", "failed"):
        groups = sorted(found.get(kind, {}).values(), key=lambda clients: (-len(clients), clients))
        if not groups:
            continue
        text = f"{sum(map(len, groups))} {kind}"
        if kind in ("refused", "failed"):
            texts = []
            for clients in groups[:most]:
                times = f"{len(clients)} times " if len(clients) > 1 else ""
                texts.append(f"{times}{_short(dropped[clients[0]].removeprefix('refused: '))}, such as client {clients[0]}")
            rest = [f"{len(groups) - most} other reasons"] if len(groups) > most else []
            text += f" ({'; '.join([*texts, *rest])})"
        parts.append(text)
    return ", ".join(parts)


def _short(text: str, most: int = 200) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def reason_of(error: Exception) -> str:
    """Return class, message and location of a client function's error, on one line; `DECLINED` for a client that sits out."""
    if isinstance(error, Declined):
        return DECLINED
    text = "; ".join(error.misfits) if isinstance(error, PlanError) else str(error)
    place = place_of(error)
    return f"{type(error).__name__}: {text}" + (f" ({place})" if place else "")


def client_error(receipt: Receipt, function: str, round: int) -> PacelineError:
    """Return the exception for a failed client: of its original class if that is one of Paceline's, else a `ClientError`.

    Args:
        receipt: receipt of the client.
        function: name of the client function.
        round: the round.
    """
    reason, kept = str(receipt.dropped), (NonFiniteError, AggregationError, PlanError, DataError)
    cls: type[PacelineError] = getattr(errors, receipt.error, ClientError)
    if issubclass(cls, kept):
        text = f"client {receipt.client}, function {function!r}, round {round}: {reason.removeprefix(f'{receipt.error}: ')}"
        return PlanError([text]) if issubclass(cls, PlanError) else cls(text)
    return ClientError(receipt.client, function, round, reason)


def class_of(error: Exception) -> str:
    """Return the name of the most derived class in `paceline.core.errors` that an error belongs to; empty if there is none."""
    if not isinstance(error, PacelineError):
        return ""
    return next(str(c.__name__) for c in type(error).__mro__ if getattr(errors, c.__name__, None) is c)


def class_in(text: str) -> str:
    """Return the class of `paceline.core.errors` with which an untrusted text begins; empty if it names none.

    Example:
        >>> class_in("WireError: malformed"), class_in("KeyError: 'x'")
        ('WireError', '')
    """
    name, colon, _ = text.partition(": ")
    return name if colon and name in errors.__all__ and isinstance(getattr(errors, name), type) else ""


def place_of(error: BaseException) -> str:
    """Return ``file:line`` of the code that raised an error, preferring the user's own code.

    This is the innermost frame outside Paceline, torch, NumPy and the standard library; else the innermost in Paceline,
    else the innermost. Files below the current folder are shown relative to it, others by their last components.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    best = min(reversed(frames), key=lambda frame: _distance(frame.filename))
    return f"{_named(best.filename)}:{best.lineno}"


def _distance(file: str) -> int:
    """Return the rank of a file: 0 for user code, 1 for Paceline, 2 for libraries."""
    if file.startswith(_HERE):
        return 1
    if file.startswith(_LIBRARIES) or file.startswith("<frozen"):
        return 2
    return 2 if file.startswith(_STANDARD) and not file.startswith(_INSTALLED) else 0


def _named(file: str) -> str:
    path, here = Path(file), Path.cwd()
    if path.is_relative_to(here):
        return str(path.relative_to(here))
    return str(path) if len(path.parts) <= 4 else str(Path("…", *path.parts[-3:]))
