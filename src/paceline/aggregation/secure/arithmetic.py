"""The arithmetic of secure aggregation without its cryptography: clipping, rounding and modular sums, no keys, no masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paceline.aggregation.nested import NestedClient, partial_sums
from paceline.aggregation.plain import collect_records
from paceline.aggregation.secure.codec import Codec
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import Words
from paceline.aggregation.secure.session import new_session
from paceline.core.engine import Aggregation, Sink, Summed, SumRequest
from paceline.core.errors import AggregationError, ConfigError, QuorumError
from paceline.core.federation import Federation
from paceline.core.nested import joined
from paceline.core.profiling import spent
from paceline.core.tree import Tree

__all__ = ["Modular", "ModularSum", "SecureArithmetic", "enough", "misfits"]


@dataclass(frozen=True)
class SecureArithmetic(Aggregation):
    """Encoding and modular sums of secure aggregation without keys and masks. It protects nothing.

    Args:
        config: see `SecureConfig`.
    """

    config: SecureConfig = field(default_factory=SecureConfig)
    name: str = "secure-arithmetic"
    sees_each: bool = False

    @property
    def programs(self) -> dict[str, Any]:
        """Client functions of sums over parts of a model."""
        return {"nested": NestedClient()}

    def sum(self, fed: Federation, request: SumRequest) -> Summed:
        """Call the function on the cohort and add the encoded replies modulo 2^b.

        Raises:
            QuorumError: too few clients are available or replied.
        """
        enough(fed, request)
        peers, cohort = collect_records(fed, request)
        codec = Codec(self.config, len(request.cohort), request.declared.limits)
        if request.declared.nested is not None:
            return self._nested(fed, request, codec, peers, cohort)
        _, partials = fed.call(request.function, request.message, cohort, Modular(codec), deadline=request.deadline, peers=peers)
        total = partials[0]
        for other in partials[1:]:
            total.merge(other)
        self._enough_replies(fed, request, len(total.clients))
        return codec.decode(total.shape, total.sums, sorted(total.clients))

    def _nested(self, fed: Federation, request: SumRequest, codec: Codec, peers: Any, cohort: Sequence[int]) -> Summed:
        """Form a sum over parts of a model, with the tiers of the masked one."""
        session = new_session(request.cohort, self.config)
        complete = session.neighbours >= len(request.cohort) - 1
        model, tiers = partial_sums(fed, request, Modular(codec), peers, cohort, session.tier_rules, complete)
        sums = {segment.name: (segment, words) for segment, words in tiers[0].sums}
        for other in tiers[1:]:
            for segment, words in other.sums:
                np.add(sums[segment.name][1], words, out=sums[segment.name][1])
        clients = sorted(c for tier in tiers for c in tier.clients)
        self._enough_replies(fed, request, len(clients))
        return joined(codec.decode(tiers[0].shape, list(sums.values()), clients), model.places, model.layout)

    def _enough_replies(self, fed: Federation, request: SumRequest, count: int) -> None:
        least = max(self.config.least(len(request.cohort)), fed.quorum)
        if count < least:
            raise QuorumError(f"round {fed.round}: {count} of {len(request.cohort)} clients replied; the minimum is {least}")

    def check(self, fed: Federation) -> list[str]:
        """Return the reasons why a cohort of this size cannot be summed securely; empty if it can."""
        return misfits(self.config, fed)


@dataclass(frozen=True)
class Modular:
    """Channel that encodes replies and sums them modulo 2^b."""

    codec: Codec

    def open(self) -> ModularSum:
        """Return an empty sum."""
        return ModularSum(self.codec)


class ModularSum(Sink):
    """Per-worker sum of encoded replies."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.clients = codec, list[int]()
        self.shape: dict[str, Any] = {}
        self.sums: list[tuple[Segment, Words]] = []

    def size(self, reply: Tree) -> int:
        """Return the encoded size of a reply in bytes."""
        return self.codec.size(reply)

    def add(self, client: int, reply: Tree, seed: Callable[[], int]) -> None:
        """Encode a reply and add it to the sum.

        Args:
            client: id of the sender.
            reply: tree of tensors and numbers.
            seed: returns the seed of the stochastic rounding.
        """
        with spent.on("encoding"):
            encoded = self.codec.encode(reply, seed())
        if not self.sums:
            self.shape, self.sums = encoded.shape, encoded.segments
        else:
            self._same(encoded.shape)
            for (_, total), (_, words) in zip(self.sums, encoded.segments, strict=True):
                np.add(total, words, out=total)
        self.clients.append(client)

    def merge(self, other: ModularSum) -> None:
        """Add another sum of the same call in place."""
        if not self.sums:
            self.__dict__.update(other.__dict__)
        elif other.sums:
            self._same(other.shape)
            for (_, total), (_, words) in zip(self.sums, other.sums, strict=True):
                np.add(total, words, out=total)
            self.clients += other.clients

    def _same(self, shape: dict[str, Any]) -> None:
        if shape != self.shape:
            raise AggregationError(
                "clients returned replies of different structures; return the same fields and shapes on every client"
            )

    def partial(self) -> ModularSum:
        """Return this sum."""
        return self


def enough(fed: Federation, request: SumRequest) -> None:
    """Raise `QuorumError` if fewer than 3 clients are available: the sum of 2 reveals each to the other."""
    there = len(request.cohort)
    if there < 3:
        raise QuorumError(
            f"round {fed.round}: {there} clients are available; a secure sum needs 3, because a sum of 2 reveals each to the other"
        )


def misfits(config: SecureConfig, fed: Federation) -> list[str]:
    """Return the reasons why a cohort of this size cannot be summed securely; empty if it can."""
    if fed.cohort_size < 3:
        return [
            f"secure aggregation needs a cohort of at least 3 clients, not {fed.cohort_size}; a sum of 2 reveals each reply to the other"
        ]
    try:
        new_session(range(fed.cohort_size), config)
    except (ConfigError, QuorumError) as error:
        return [str(error)]
    return []
