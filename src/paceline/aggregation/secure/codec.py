"""Conversion between replies and the integer segments that are masked and summed.

Float tensors go into ``main`` (clipped, stochastically rounded, b bits); weights, one per field or one per
coordinate, into ``counts`` (with a separate modulus); numbers, integer tensors, and float tensors whose bound is infinite
into ``exact`` (64 bits). Integers are summed as they are, those floats as multiples of 2^-20, and numbers as two words:
multiples of 2^-20, and what is left in multiples of 2^-60. Of a reply that
`paceline.core.nested.split_reply` made, each segment of the model has a segment of its own, and so has its weight.

The opened sum is checked against the range that the survivors can have sent: no weight above W per client, and no
|sum of w x| above C times the sum of w. Whatever a single client sends, a mean therefore stays within the clip C of
its field. C is `SUM_BOUND`, as in plain sums, for floats whose bound is infinite.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.aggregation.fixed_point import SUM_BOUND
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import Words, quantise, scale_of, signed, to_words
from paceline.core.engine import Summed
from paceline.core.errors import NonFiniteError, SumOverflowError
from paceline.core.nested import segment_of
from paceline.core.params import Params
from paceline.core.random import numpy_rng
from paceline.core.tree import Tree
from paceline.core.update import Terms, Update, structure_from_plain, structure_to_plain

__all__ = ["Codec", "Encoded", "ResolutionWarning"]

_UNIT, _FINE = 2**20, 2**40
"""Steps of a number's first word per unit (sums reach 2^43), and steps of its second word per step of the first."""

RESOLUTION = 1e-3
"""Largest standard error of a masked mean due to rounding that is not worth a warning, relative to a client's largest value."""


class ResolutionWarning(UserWarning):
    """The step of a secure sum is coarse against the values that are summed."""


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
        round: round of the run, which names the mask streams of the model's segments.
    """

    config: SecureConfig
    clients: int
    bounds: Mapping[str, float] = field(default_factory=dict)
    round: int = 0

    def encode(self, reply: Tree, seed: int) -> Encoded:
        """Encode a reply.

        Args:
            reply: tree of tensors and numbers.
            seed: seed of the stochastic rounding.

        Raises:
            NonFiniteError: the reply contains NaN or infinity.
            SumOverflowError: a number is too large for ``exact``.
        """
        config, terms = self.config, self._terms(reply)
        self._weighed(reply)
        rng, shrink = numpy_rng(seed, "rounding"), self._shrink(terms)
        parts: dict[str, list[NDArray[np.int64]]] = {"main": [], "counts": [], "exact": []}
        clipped, largest = 0, dict[str, float]()
        for name, tensor, weight in zip(terms.names, terms.tensors, terms.weights, strict=True):
            if not tensor.is_floating_point():
                parts["exact"].append(self._whole(name, tensor, _number(weight)))
                continue
            values = tensor.cpu().numpy() * shrink if shrink < 1 else tensor.cpu().numpy()
            whole = _number(weight) if not isinstance(weight, Tensor) else weight.cpu().numpy().astype(np.int64)
            field = segment_of(name)[0]
            if self.clip(name) == math.inf:
                parts["exact"].append(self._multiples(name, values, whole))
                continue
            top = max(float(values.max()), -float(values.min())) if len(values) else 0.0
            largest[field] = max(top, largest.get(field, 0.0))
            words, over = quantise(values, self.clip(name), config.bits, rng, whole)
            parts.setdefault(self._name("main", segment_of(name)[1]), []).append(words)
            clipped += over
        for field, top in largest.items():
            self._resolved(field, top)
        of_numbers = len(terms.scalars) - _weights(terms.structure)
        scalars, totals = terms.scalars[:of_numbers], terms.scalars[of_numbers:]
        first, second = [self._exact(v) for v in scalars], [round((v * _UNIT - round(v * _UNIT)) * _FINE) for v in scalars]
        numbers = np.array([*second, *first, clipped * _UNIT], dtype=np.int64)
        for segment_number, total in zip(_weight_parts(terms.structure), totals, strict=True):
            parts.setdefault(self._name("counts", segment_number), []).append(np.array([total], dtype=np.int64))
        parts["counts"] += [d.cpu().numpy().astype(np.int64) for d in terms.denominators]
        parts["exact"].append(numbers)
        shape = self._shape(terms)
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
        return self._shape(self._terms(reply))

    def _shape(self, terms: Terms) -> dict[str, Any]:
        weighted = _weights(terms.structure)
        kinds = [
            "int" if not t.is_floating_point() else "exact" if self.clip(n) == math.inf else "float"
            for n, t in zip(terms.names, terms.tensors, strict=True)
        ]
        return {
            "plan": [[n, kind, t.numel()] for n, kind, t in zip(terms.names, kinds, terms.tensors, strict=True)],
            "scalars": len(terms.scalars) - weighted,
            "weights": weighted,
            "counts": [d.numel() for d in terms.denominators],
            "structure": structure_to_plain(terms.structure),
        }

    def segments(self, shape: Mapping[str, Any]) -> list[Segment]:
        """Return the segments of replies of a given shape."""
        floats, weights = dict[int | None, int](), dict[int | None, int]()
        for name, kind, n in shape["plan"]:
            part = segment_of(name)[1]
            if kind == "float":
                floats[part] = floats.get(part, 0) + n
            if part is not None:  # each segment of a field has one weight
                weights[part] = weights.get(part, 0) + 1
        rest = shape["weights"] - sum(weights.values()) + sum(shape["counts"])
        exact = sum(n for _, kind, n in shape["plan"] if kind != "float") + 2 * shape["scalars"] + 1
        top = max(self.clients * self.config.max_weight, 1)
        main, counts = self.config.modulus_bits(self.clients), math.ceil(math.log2(top + 1)) + 1
        numbered = sorted(p for p in weights if p is not None)
        rows: list[tuple[str, int, int, int | None]] = [("main", floats.get(None, 0), main, None)]
        rows += [(self._name("main", p), floats.get(p, 0), main, p) for p in numbered]
        rows += [(self._name("counts", p), weights[p], counts, p) for p in numbered]
        rows += [("counts", rest, counts, None), ("exact", exact, 64, None)]
        return [Segment(*row) for row in rows if row[1]]

    def _name(self, kind: str, part: int | None) -> str:
        """Return the name of a mask stream: of values or weights, of one segment of the model or of none."""
        if part is None:
            return kind
        return f"{'seg' if kind == 'main' else 'weight'}|{self.round}|{part}"

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
        cursor = dict.fromkeys(sums, 0)

        def take(name: str, length: int) -> NDArray[np.int64]:
            if not length:
                return np.empty(0, dtype=np.int64)
            start = cursor[name]
            cursor[name] = start + length
            return sums[name][start : start + length]

        structure = structure_from_plain(shape["structure"])
        weights = [take(self._name("counts", part), 1)[0] for part in _weight_parts(structure)]
        counts = [take("counts", n) for n in shape["counts"]]
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
            elif kind == "exact":
                whole = take("exact", length)
                total = whole.astype(np.float64) / _UNIT
                self._within(total, -(top := SUM_BOUND * np.asarray(of, dtype=np.float64)), top, name)
                tensors.append(torch.from_numpy(total))
            else:
                steps = of * np.int64((1 << (self.config.bits - 1)) - 1)
                total = take(self._name("main", segment_of(name)[1]), length)
                self._within(total, -steps, steps, name)
                tensors.append(torch.from_numpy(total / scale_of(self.clip(name), self.config.bits)))
        second, first = take("exact", shape["scalars"]), take("exact", shape["scalars"])
        clipped, failed = divmod(int(take("exact", 1)[0]), _UNIT)
        scalars = [(a * _FINE + b) / (_UNIT * _FINE) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
        scalars += [float(w) for w in weights]
        denominators = [torch.from_numpy(c.astype(np.float64)) for c in counts]
        if structure[0] == "mean" and (step := self._weight_step) != 1.0:
            tensors, denominators = [t * step for t in tensors], [d * step for d in denominators]
            scalars = [s * step for s in scalars]
        notes = {"clipped": float(clipped)} | ({"failed": float(failed)} if failed else {})
        return Summed(structure, tensors, scalars, denominators, tuple(survivors), notes)

    @staticmethod
    def _within(values: Any, low: Any, high: Any, name: str) -> None:
        if not bool(np.all((values >= low) & (values <= high))):
            raise SumOverflowError(
                f"the opened sum of {name!r} exceeds the range of its clients' values; overflow, or a client cheated"
            )

    def clip(self, name: str) -> float:
        """Return the clip C of a field, or of the field that a segment belongs to."""
        return float(self.bounds.get(segment_of(name)[0], self.config.clip))

    @property
    def _weight_step(self) -> float:
        """Unit of the weights."""
        return self.bounds["weight"] / self.config.max_weight if "weight" in self.bounds else 1.0

    def _terms(self, reply: Tree) -> Terms:
        return Terms.of(reply, cap=self.config.max_weight, step=self._weight_step)

    def _whole(self, name: str, tensor: Tensor, weight: int) -> NDArray[np.int64]:
        """Return weighted integers, after a check against their bound and the range of an exact sum."""
        values: NDArray[np.int64] = tensor.cpu().numpy().astype(np.int64)
        top = max(int(values.max()), -int(values.min())) if len(values) else 0
        if top > self.bounds.get(name, math.inf) or top * weight * self.clients > 2**53:
            bound = (
                f"the bound {self.bounds[name]:.6g} that the method declares" if name in self.bounds else "2^53 / n in magnitude"
            )
            raise SumOverflowError(f"an integer of {name!r} exceeds {bound}")
        return values * np.int64(weight)

    def _multiples(self, name: str, values: NDArray[Any], weight: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return weighted floats in multiples of 2^-20, after a check against the bound of plain sums and the range of an exact sum."""
        top = float(np.abs(values).max()) if len(values) else 0.0
        if not math.isfinite(top):
            raise NonFiniteError(f"the reply contains NaN or infinity in {name!r}; lower the learning rate")
        if top > (limit := min(SUM_BOUND, 2**53 / _UNIT / (int(np.max(weight, initial=1)) * self.clients))):
            raise SumOverflowError(
                f"a number of {name!r} exceeds the bound {limit:.6g} of an exact secure sum of {self.clients} clients"
            )
        return np.rint(values.astype(np.float64) * _UNIT).astype(np.int64) * np.asarray(weight, dtype=np.int64)

    def _weighed(self, reply: Tree) -> None:
        """Warn if weights between whole numbers are rounded up."""
        if self._weight_step != 1.0 or not isinstance(reply, Update):
            return
        weights = reply.weight.values() if isinstance(reply.weight, Mapping) else [reply.weight]
        if any(bool((w.vector if isinstance(w, Params) else torch.as_tensor(w)).remainder(1).any()) for w in weights):
            warnings.warn(
                "secure sum: weights that are fractions are rounded up to whole numbers; declare their largest value with "
                '@on_client(bounds={"weight": ...}), which makes them multiples of bound / max_weight',
                ResolutionWarning,
                stacklevel=4,
            )

    def _resolved(self, name: str, top: float) -> None:
        """Warn if a field, with the largest value `top`, is so small against its clip that rounding shows in the mean of n clients."""
        error = 0.5 / (scale_of(self.clip(name), self.config.bits) * math.sqrt(self.clients))
        if 0.0 < top < error / RESOLUTION:
            warnings.warn(
                f"secure sum of {name!r}: its values are small against the clip {self.clip(name):g}, so that rounding to "
                f"{self.config.bits} bits changes a mean of {self.clients} clients by more than {RESOLUTION:g} of them; set the secure "
                "option clip nearer to the largest value, raise bits, or declare @on_client(bounds={...})",
                ResolutionWarning,
                stacklevel=4,
            )

    def _shrink(self, terms: Terms) -> float:
        if self.config.clip_norm is None:
            return 1.0
        floats = [t for t in terms.tensors if t.is_floating_point()]
        norm = math.sqrt(sum(float(t.double().square().sum()) for t in floats))
        return min(1.0, self.config.clip_norm / norm) if norm else 1.0

    def _exact(self, value: float) -> int:
        if not math.isfinite(value):
            raise NonFiniteError("the reply contains a number that is NaN or infinite")
        whole = round(value * _UNIT)
        if abs(whole) * self.clients >= 2**63:
            raise SumOverflowError(f"a number is too large for an exact secure sum of {self.clients} clients")
        return whole


def _weights(structure: Any) -> int:
    """Return how many of a reply's trailing scalars are weights of whole fields."""
    return sum(1 for kind, *_ in structure[3] if kind == "scalar") if structure[0] == "mean" else 0


def _weight_parts(structure: Any) -> list[int | None]:
    """Return the segment of the model of each trailing scalar weight, None for a weight of a whole field."""
    return [segment_of(name)[1] for kind, name, _ in structure[3] if kind == "scalar"] if structure[0] == "mean" else []


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
