"""The arithmetic of secure aggregation alone: the same clipping, rounding and modular sums, without keys and masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paceline.aggregation.plain import tell
from paceline.aggregation.secure.codec import Codec
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import Words
from paceline.aggregation.secure.simulate import new_session
from paceline.core.engine import Sink
from paceline.core.errors import AggregationError, ConfigError, QuorumError
from paceline.core.federation import Aggregation, Federation, Summed, SumRequest
from paceline.core.profiling import spent
from paceline.core.tree import Tree

__all__ = ["Modular", "ModularSum", "SecureArithmetic", "enough", "misfits"]


@dataclass(frozen=True)
class SecureArithmetic(Aggregation):
    """The encoding and modular sums of secure aggregation, without its keys and masks: no protection.

    Args:
        config: see `SecureConfig`.
    """

    config: SecureConfig = field(default_factory=SecureConfig)
    name: str = "secure-arithmetic"
    sees_each: bool = False

    def sum(self, fed: Federation, request: SumRequest) -> Summed:
        """Ask the cohort and add encoded replies modulo 2^b."""
        enough(fed, request)
        peers = tell(fed, request)
        codec = Codec(self.config, len(request.cohort), request.declared.bounds)
        _, partials = fed.call(
            request.function, request.message, request.cohort, Modular(codec), deadline=request.deadline, peers=peers
        )
        total = partials[0]
        for other in partials[1:]:
            total.merge(other)
        least = max(self.config.least(len(request.cohort)), fed.quorum)
        if len(total.clients) < least:
            raise QuorumError(
                f"round {fed.round}: {len(total.clients)} of {len(request.cohort)} clients replied; {least} are needed"
            )
        return codec.decode(total.shape, total.sums, sorted(total.clients))

    def check(self, fed: Federation) -> list[str]:
        """Return why a cohort of this size cannot be summed securely."""
        return misfits(self.config, fed)


@dataclass(frozen=True)
class Modular:
    """The channel of encoded replies."""

    codec: Codec

    def open(self) -> ModularSum:
        """Return an empty sum."""
        return ModularSum(self.codec)


class ModularSum(Sink):
    """A sum of encoded replies at one worker."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.clients = codec, list[int]()
        self.shape: dict[str, Any] = {}
        self.sums: list[tuple[Segment, Words]] = []

    def size(self, reply: Tree) -> int:
        """Return the bytes that a reply takes."""
        return self.codec.size(reply)

    def add(self, client: int, reply: Tree, seed: Callable[[], int]) -> None:
        """Encode a reply and add it."""
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
        """Add another sum of the same call."""
        if not self.sums:
            self.__dict__.update(other.__dict__)
        elif other.sums:
            self._same(other.shape)
            for (_, total), (_, words) in zip(self.sums, other.sums, strict=True):
                np.add(total, words, out=total)
            self.clients += other.clients

    def _same(self, shape: dict[str, Any]) -> None:
        if shape != self.shape:
            raise AggregationError("clients returned replies of different shapes")

    def partial(self) -> ModularSum:
        """Return this sum."""
        return self


def enough(fed: Federation, request: SumRequest) -> None:
    """Refuse a cohort that has become too small to hide its members: fewer may be there than are wanted."""
    there = len(request.cohort)
    if there < 3:
        raise QuorumError(
            f"round {fed.round}: {there} clients are there; a secure sum needs 3, as one of 2 shows each to the other"
        )


def misfits(config: SecureConfig, fed: Federation) -> list[str]:
    """Return why a cohort of this size cannot be summed securely."""
    if fed.cohort_size < 3:
        return [
            f"secure aggregation needs a cohort of at least 3 clients, not {fed.cohort_size}; a sum of 2 shows each to the other"
        ]
    try:
        new_session(range(fed.cohort_size), config)
    except (ConfigError, QuorumError) as error:
        return [str(error)]
    return []
