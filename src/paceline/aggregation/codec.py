"""Between replies and the integer segments that are masked and summed.

Float tensors go into ``main`` (clipped, stochastically rounded, b bits); weights per coordinate into
``counts``; numbers, counts and integer tensors into ``exact`` (64 bits), where nothing is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import Words, dequantise, quantise, signed, to_words
from paceline.errors import NonFiniteError, SumOverflowError
from paceline.federation import Summed
from paceline.rng import numpy_rng
from paceline.tree import Tree
from paceline.update import Terms, structure_from_plain, structure_to_plain

__all__ = ["Codec", "Encoded"]

_UNIT = 2**20
"""Steps of a number in ``exact``: sums up to 2^43 in size, in steps of a millionth."""


@dataclass
class Encoded:
    """A reply as segments, and what is public about it."""

    shape: dict[str, Any]
    segments: list[tuple[Segment, Words]]

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return sum(segment.size for segment, _ in self.segments)


@dataclass(frozen=True)
class Codec:
    """Encodes replies of one call.

    Args:
        config: of secure aggregation.
        clients: n, which sizes the modulus.
        bounds: clips of fields that do not use the default one.
    """

    config: SecureConfig
    clients: int
    bounds: Mapping[str, float] = field(default_factory=dict)

    def encode(self, reply: Tree, seed: int) -> Encoded:
        """Return a reply's segments; `seed` is of the rounding's stream.

        Raises `NonFiniteError` for NaN and `SumOverflowError` for numbers too large for ``exact``.
        """
        config, terms = self.config, Terms.of(reply, cap=self.config.max_weight)
        rng, shrink = numpy_rng(seed, "rounding"), self._shrink(terms)
        main, exact, plan, clipped = [], [], [], 0
        for name, tensor, weight in zip(terms.names, terms.tensors, terms.weights, strict=True):
            kind = "float" if tensor.is_floating_point() else "int"
            plan.append([name, kind, tensor.numel()])
            if kind == "int":
                exact.append(tensor.cpu().numpy().astype(np.int64) * np.int64(_number(weight)))
                continue
            values = tensor.cpu().numpy() * shrink if shrink < 1 else tensor.cpu().numpy()
            whole = _number(weight) if not isinstance(weight, Tensor) else weight.cpu().numpy().astype(np.int64)
            words, over = quantise(values, self.clip(name), config.bits, rng, whole)
            main.append(words)
            clipped += over
        numbers = np.array([self._exact(v) for v in (*terms.scalars, clipped)], dtype=np.int64)
        counts = [d.cpu().numpy().astype(np.int64) for d in terms.denominators]
        shape = {
            "plan": plan,
            "scalars": len(terms.scalars),
            "counts": [len(c) for c in counts],
            "structure": structure_to_plain(terms.structure),
        }
        parts = {"main": main, "counts": counts, "exact": [*exact, numbers]}
        segments = []
        for segment in self.segments(shape):
            segments.append((segment, to_words(np.concatenate(parts[segment.name]), segment)))
        return Encoded(shape, segments)

    def size(self, reply: Tree) -> int:
        """Return the bytes that a reply will take, without encoding it."""
        terms = Terms.of(reply, cap=self.config.max_weight)
        plan = [[n, "float" if t.is_floating_point() else "int", t.numel()] for n, t in zip(terms.names, terms.tensors, strict=True)]
        counts = [d.numel() for d in terms.denominators]
        return sum(s.size for s in self.segments({"plan": plan, "scalars": len(terms.scalars), "counts": counts}))

    def segments(self, shape: Mapping[str, Any]) -> list[Segment]:
        """Return the segments of replies of the given shape."""
        lengths = {
            "main": sum(n for _, kind, n in shape["plan"] if kind == "float"),
            "counts": sum(shape["counts"]),
            "exact": sum(n for _, kind, n in shape["plan"] if kind == "int") + shape["scalars"] + 1,
        }
        top = max(self.clients * self.config.max_weight, 1)
        bits = {"main": self.config.modulus_bits(self.clients), "counts": math.ceil(math.log2(top + 1)) + 1, "exact": 64}
        return [Segment(name, length, bits[name]) for name, length in lengths.items() if length]

    def decode(self, shape: Mapping[str, Any], opened: list[tuple[Segment, Words]], survivors: list[int]) -> Summed:
        """Return the sums that opened segments stand for."""
        config = self.config
        sums = {segment.name: signed(words, segment) for segment, words in opened}
        cursor = dict.fromkeys(("main", "exact", "counts"), 0)

        def take(name: str, length: int) -> Any:
            start = cursor[name]
            cursor[name] = start + length
            return sums[name][start : start + length]

        tensors: list[Tensor] = []
        for name, kind, length in shape["plan"]:
            if kind == "int":
                tensors.append(torch.from_numpy(take("exact", length).astype(np.float64)))
            else:
                values = dequantise(take("main", length), self.clip(name), config.bits, self.clients, config.max_weight)
                tensors.append(torch.from_numpy(values))
        *scalars, clipped = (take("exact", shape["scalars"] + 1) / _UNIT).tolist()
        counts = [torch.from_numpy(take("counts", n).astype(np.float64)) for n in shape["counts"]]
        structure = structure_from_plain(shape["structure"])
        return Summed(structure, tensors, scalars, counts, tuple(survivors), {"clipped": clipped})

    def clip(self, name: str) -> float:
        """Return C of a field."""
        return float(self.bounds.get(name, self.config.clip))

    def _shrink(self, terms: Terms) -> float:
        if self.config.clip_norm is None:
            return 1.0
        floats = [t for t in terms.tensors if t.is_floating_point()]
        norm = math.sqrt(sum(float(t.double().square().sum()) for t in floats))
        return min(1.0, self.config.clip_norm / norm) if norm else 1.0

    def _exact(self, value: float) -> int:
        if not math.isfinite(value):
            raise NonFiniteError(f"the reply holds the number {value}")
        whole = round(value * _UNIT)
        if abs(whole) * self.clients >= 2**63:
            raise SumOverflowError(f"the number {value} is too large for an exact secure sum of {self.clients} clients")
        return whole


def _number(weight: float | Tensor) -> int:
    if isinstance(weight, Tensor):
        raise SumOverflowError("integer tensors cannot have a weight per coordinate under secure aggregation")
    return int(weight)
