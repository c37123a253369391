"""Conversion between replies and the integer segments that are masked and summed.

Float tensors go into ``main`` (clipped, stochastically rounded, b bits); weights, one per field or one per
coordinate, into ``counts`` (with a separate modulus); numbers and integer tensors into ``exact`` (64 bits, lossless).

The opened sum is checked against the range that the survivors can have sent: no weight above W per client, and no
|sum of w x| above C times the sum of w. Whatever a single client sends, a mean therefore stays within the clip C of
its field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import Words, quantise, scale_of, signed, to_words
from paceline.core.engine import Summed
from paceline.core.errors import NonFiniteError, SumOverflowError
from paceline.core.random import numpy_rng
from paceline.core.tree import Tree
from paceline.core.update import Terms, structure_from_plain, structure_to_plain

__all__ = ["Codec", "Encoded"]

_UNIT = 2**20
"""Resolution of a number in ``exact``: sums up to 2^43 in magnitude, in steps of 2^-20 (about a millionth)."""


@dataclass
class Encoded:
    """A reply encoded as segments, and the public description of its shape."""

    shape: dict[str, Any]
    segments: list[tuple[Segment, Words]]

    @property
    def size(self) -> int:
        """Size on the wire in bytes."""
        return sum(segment.size for segment, _ in self.segments)


@dataclass(frozen=True)
class Codec:
    """Encoder and decoder of the replies to one call.

    Args:
        config: options of secure aggregation.
        clients: n, number of clients that the modulus is sized for.
        bounds: clips of fields that do not use the default one.
    """

    config: SecureConfig
    clients: int
    bounds: Mapping[str, float] = field(default_factory=dict)

    def encode(self, reply: Tree, seed: int) -> Encoded:
        """Encode a reply.

        Args:
            reply: tree of tensors and numbers.
            seed: seed of the stochastic rounding.

        Raises:
            NonFiniteError: the reply contains NaN or infinity.
            SumOverflowError: a number is too large for ``exact``.
        """
        config, terms = self.config, Terms.of(reply, cap=self.config.max_weight)
        rng, shrink = numpy_rng(seed, "rounding"), self._shrink(terms)
        main, exact, clipped = [], [], 0
        for name, tensor, weight in zip(terms.names, terms.tensors, terms.weights, strict=True):
            if not tensor.is_floating_point():
                exact.append(tensor.cpu().numpy().astype(np.int64) * np.int64(_number(weight)))
                continue
            values = tensor.cpu().numpy() * shrink if shrink < 1 else tensor.cpu().numpy()
            whole = _number(weight) if not isinstance(weight, Tensor) else weight.cpu().numpy().astype(np.int64)
            words, over = quantise(values, self.clip(name), config.bits, rng, whole)
            main.append(words)
            clipped += over
        of_numbers = len(terms.scalars) - _weights(terms.structure)
        scalars, totals = terms.scalars[:of_numbers], terms.scalars[of_numbers:]
        numbers = np.array([self._exact(v) for v in (*scalars, clipped)], dtype=np.int64)
        counts = [np.array(totals, dtype=np.int64), *(d.cpu().numpy().astype(np.int64) for d in terms.denominators)]
        shape = _shape(terms)
        parts = {"main": main, "counts": counts, "exact": [*exact, numbers]}
        segments = []
        for segment in self.segments(shape):
            segments.append((segment, to_words(np.concatenate(parts[segment.name]), segment)))
        return Encoded(shape, segments)

    def nothing(self, reply: Tree) -> Encoded:
        """Return zeros with zero weight in the shape of a reply, counted as one client that could not do the work."""
        shape = self.shape(reply)
        segments = [(segment, np.zeros(segment.length, dtype=segment.dtype)) for segment in self.segments(shape)]
        segments[-1][1][-1] = 1  # the last number of ``exact``: whole units count clipped coordinates, single steps failed clients
        return Encoded(shape, segments)

    def size(self, reply: Tree) -> int:
        """Return the encoded size of a reply in bytes, without encoding it."""
        return sum(s.size for s in self.segments(self.shape(reply)))

    def shape(self, reply: Tree) -> dict[str, Any]:
        """Return the public description of a reply's shape, without encoding it."""
        return _shape(Terms.of(reply, cap=self.config.max_weight))

    def segments(self, shape: Mapping[str, Any]) -> list[Segment]:
        """Return the segments of replies of a given shape."""
        lengths = {
            "main": sum(n for _, kind, n in shape["plan"] if kind == "float"),
            "counts": shape["weights"] + sum(shape["counts"]),
            "exact": sum(n for _, kind, n in shape["plan"] if kind == "int") + shape["scalars"] + 1,
        }
        top = max(self.clients * self.config.max_weight, 1)
        bits = {"main": self.config.modulus_bits(self.clients), "counts": math.ceil(math.log2(top + 1)) + 1, "exact": 64}
        return [Segment(name, length, bits[name]) for name, length in lengths.items() if length]

    def decode(self, shape: Mapping[str, Any], opened: list[tuple[Segment, Words]], survivors: list[int]) -> Summed:
        """Decode opened segments into sums.

        Args:
            shape: shape of the replies, see `shape`.
            opened: unmasked sums.
            survivors: ids of the summed clients.

        Raises:
            SumOverflowError: no valid replies of these survivors add up to the sums: an overflow, or a cheating client.
        """
        sums = {segment.name: signed(words, segment) for segment, words in opened}
        cursor = dict.fromkeys(("main", "exact", "counts"), 0)

        def take(name: str, length: int) -> NDArray[np.int64]:
            start = cursor[name]
            cursor[name] = start + length
            return sums[name][start : start + length]

        structure = structure_from_plain(shape["structure"])
        weights, counts = take("counts", shape["weights"]) if shape["weights"] else (), [take("counts", n) for n in shape["counts"]]
        for total in (*weights, *counts):
            self._within(total, 0, len(survivors) * self.config.max_weight, "weights")
        shared = _by_field(structure, list(weights), counts)
        tensors: list[Tensor] = []
        for name, kind, length in shape["plan"]:
            of = shared.get(name, shared.get("", len(survivors)))
            if kind == "int":
                whole = take("exact", length)
                if name in self.bounds:
                    self._within(whole, -(top := math.ceil(self.bounds[name]) * of), top, name)
                tensors.append(torch.from_numpy(whole.astype(np.float64)))
            else:
                steps = of * np.int64((1 << (self.config.bits - 1)) - 1)
                total = take("main", length)
                self._within(total, -steps, steps, name)
                tensors.append(torch.from_numpy(total / scale_of(self.clip(name), self.config.bits)))
        numbers = take("exact", shape["scalars"] + 1)
        clipped, failed = divmod(int(numbers[-1]), _UNIT)
        scalars = (numbers[:-1] / _UNIT).tolist()
        scalars += [float(w) for w in weights]
        denominators = [torch.from_numpy(c.astype(np.float64)) for c in counts]
        notes = {"clipped": float(clipped)} | ({"failed": float(failed)} if failed else {})
        return Summed(structure, tensors, scalars, denominators, tuple(survivors), notes)

    @staticmethod
    def _within(values: Any, low: Any, high: Any, name: str) -> None:
        if not bool(np.all((values >= low) & (values <= high))):
            raise SumOverflowError(
                f"the opened sum of {name!r} exceeds the range of its clients' values; overflow, or a client cheated"
            )

    def clip(self, name: str) -> float:
        """Return the clip C of a field."""
        return float(self.bounds.get(name, self.config.clip))

    def _shrink(self, terms: Terms) -> float:
        if self.config.clip_norm is None:
            return 1.0
        floats = [t for t in terms.tensors if t.is_floating_point()]
        norm = math.sqrt(sum(float(t.double().square().sum()) for t in floats))
        return min(1.0, self.config.clip_norm / norm) if norm else 1.0

    def _exact(self, value: float) -> int:
        if not math.isfinite(value):
            raise NonFiniteError(f"the reply contains the non-finite number {value}")
        whole = round(value * _UNIT)
        if abs(whole) * self.clients >= 2**63:
            raise SumOverflowError(f"the number {value} is too large for an exact secure sum of {self.clients} clients")
        return whole


def _shape(terms: Terms) -> dict[str, Any]:
    weighted = _weights(terms.structure)
    kinds = ["float" if t.is_floating_point() else "int" for t in terms.tensors]
    return {
        "plan": [[n, kind, t.numel()] for n, kind, t in zip(terms.names, kinds, terms.tensors, strict=True)],
        "scalars": len(terms.scalars) - weighted,
        "weights": weighted,
        "counts": [d.numel() for d in terms.denominators],
        "structure": structure_to_plain(terms.structure),
    }


def _weights(structure: Any) -> int:
    """Return how many of a reply's trailing scalars are weights of whole fields."""
    return sum(1 for kind, *_ in structure[3] if kind == "scalar") if structure[0] == "mean" else 0


def _by_field(structure: Any, weights: list[Any], counts: list[NDArray[np.int64]]) -> dict[str, Any]:
    """Return the summed weights by field name; under the empty name if all fields share one weight."""
    if structure[0] != "mean":
        return {}
    left_w, left_c = iter(weights), iter(counts)
    totals = {name: next(left_w if kind == "scalar" else left_c) for kind, name, _ in structure[3]}
    return {"": next(iter(totals.values()))} if structure[1] and totals else totals


def _number(weight: float | Tensor) -> int:
    if isinstance(weight, Tensor):
        raise SumOverflowError(
            "integer tensors cannot have per-coordinate weights under secure aggregation; give them a scalar weight"
        )
    return int(weight)
