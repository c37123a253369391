"""Declarations of client functions: what the server may see of a reply, what bounds it, and which part of a model it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from paceline.core.errors import PlanError
from paceline.core.layout import Layout

__all__ = ["Bound", "ClientFunction", "Nesting", "declaration", "helpers"]


Bound = float | Callable[[Layout], float]
"""Largest absolute value of a coordinate: a number, infinity for floats that must not be clipped, such as sums over a client's samples,
or a function that computes it from the layout of the model."""


@dataclass(frozen=True)
class Nesting:
    """Tiers of a function that clients may run on a part of the model; smaller parts are contained in larger ones.

    Args:
        fraction: name of the function that returns which fraction of the units this client trains in the round.
        order: name of the function that returns the scores of the units that this client expects; None if it cannot
            compute them. Its message is a dict: ``now``, the received `PartialModel`, and ``before``, that of the previous
            round if this client received the whole model then, else None.
        fractions: the tiers, descending, beginning with 1.
        rounds_up: a layer keeps ceil(p n) units instead of floor(p n).
        settle: rounds for which a client stays in a tier before it changes again.
    """

    fraction: str
    order: str
    fractions: tuple[float, ...]
    rounds_up: bool = False
    settle: int = 3

    def tier(self, fraction: float) -> int:
        """Return the largest tier that is not above a fraction, as its index; the smallest tier if all are above it."""
        return next((i for i, p in enumerate(self.fractions) if p <= fraction + 1e-9), len(self.fractions) - 1)


@dataclass(frozen=True)
class ClientFunction:
    """What is declared about a client function.

    Args:
        each: the server needs every client's own reply; else it may see only sums.
        peer_record: name of the function whose small record each client publishes to the others of the cohort before
            this one runs; under secure aggregation the server relays only ciphertexts, and clients refuse sums of that function. It
            may run once more, at the end of the round before; what it stores then is lost.
        bounds: largest absolute value of a coordinate, by field. Secure aggregation clips floats to it, in place of
            its default clip, and sums those with an infinite bound exactly, in 64 bits; every aggregation refuses whole numbers
            above it. The fields of a dict or a `node` are
            its keys; any other reply that is not an `Update` is the field ``value``. A bound of ``weight`` makes
            weights multiples of bound / `max_weight` under secure aggregation, in place of whole numbers.
        collects: the function returns the result of work that `Federation.start` began earlier, see `Client.take`.
        nested: the message is a `PartialModel`, of which a slow client downloads and uploads a part only; see `Nesting`.
    """

    each: bool = False
    peer_record: str | None = None
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    collects: bool = False
    nested: Nesting | None = None

    def __post_init__(self) -> None:
        """Refuse exact sums of parts of a model."""
        if self.nested is not None and math.inf in self.bounds.values():
            raise PlanError(
                ["a function on a part of the model (nested=...) needs finite bounds, as its sum is formed segment by segment"]
            )

    @property
    def limits(self) -> dict[str, float]:
        """The bounds as numbers; raises `PlanError` if one depends on the model, see `fitted`."""
        if unknown := [name for name, bound in self.bounds.items() if callable(bound)]:
            raise PlanError([f"the bounds of {unknown} depend on the model's layout, which is not known here"])
        return {name: float(bound) for name, bound in self.bounds.items() if not callable(bound)}

    def fitted(self, layout: Callable[[], Layout]) -> ClientFunction:
        """Return the declaration for a model; `layout` is called only if a bound depends on it."""
        if not any(map(callable, self.bounds.values())):
            return self
        known = layout()
        return replace(self, bounds={n: bound(known) if callable(bound) else bound for n, bound in self.bounds.items()})


def helpers(functions: Mapping[str, ClientFunction]) -> set[str]:
    """Return the names of the functions that others declare: of their records, tiers and orders of the units.

    Their replies may have another shape on each client, so a secure sum of them would show more than the sum.

    Example:
        >>> helpers({"report": ClientFunction(), "train": ClientFunction(peer_record="report")})
        {'report'}
    """
    names = {declared.peer_record for declared in functions.values()}
    for nesting in (declared.nested for declared in functions.values()):
        names |= set() if nesting is None else {nesting.fraction, nesting.order}
    return {name for name in names if name is not None}


def declaration(fn: Callable[..., Any]) -> ClientFunction:
    """Return the declaration of a client function. Raises `PlanError` for any other function."""
    found = getattr(fn, "__client__", None)
    if not isinstance(found, ClientFunction):
        raise PlanError([f"{getattr(fn, '__name__', fn)!r} is not a client function; decorate it with @on_client"])
    return found
