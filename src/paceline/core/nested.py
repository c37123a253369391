"""Models that a client receives, trains and sends in part.

The units of each layer have a public order, from which every party derives a partition of the model's coordinates into
segments. With tiers p_0 = 1 > p_1 > ... > p_{L-1}, the sub-model of tier m has the first p_m n_l units of each layer,
and segment s the coordinates of sub-model s that are not in sub-model s + 1. A client of tier m receives and sends the
segments m to L - 1. The mean of a coordinate is over the clients whose tier has it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from paceline.core.declarations import Nesting
from paceline.core.engine import Summed
from paceline.core.errors import PlanError, ProtocolError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.core.tree import Tree, node
from paceline.core.update import Update

__all__ = [
    "PartialModel",
    "Places",
    "SegmentedModel",
    "Segmenter",
    "joined",
    "received",
    "same_order",
    "segment_name",
    "segment_of",
    "settled",
    "split_reply",
]


@node
class PartialModel:
    """Message of a nested client function.

    Args:
        params: the model. A client receives the segments of its tier; other coordinates are 0 there.
        order: public scores by group of units; a sub-model has the units with the highest scores. Empty for the order of
            the units in their layers.
        fraction: fraction of the units that the client trains.
        share: fraction of the coordinates that the client receives and sends.
    """

    params: Params
    order: Tree
    fraction: float = 1.0
    share: float = 1.0


Places = Sequence[Tensor]
"""Coordinates of each segment, ascending, int64. Every coordinate is in exactly one of them."""


class Segmenter:
    """Service that derives the segments of a model from the public order of its units."""

    def places(self, order: Tree, nesting: Nesting) -> Places:
        """Return the coordinates of each segment.

        Raises:
            ProtocolError: the order does not fit the model.
        """
        raise NotImplementedError


def settled(memory: MutableMapping[str, Any], wanted: int, round: int, nesting: Nesting) -> int:
    """Return a client's tier in a round: `wanted`, unless its tier changed in the last `Nesting.settle` rounds.

    The server sees tiers. If a client could change its tier in every round, two rounds over nearly the same model would
    differ in one client on some coordinates.

    Args:
        memory: the client's; the tier and the round of its last change are stored there.
        wanted: index of the tier that the client would choose.
        round: the round, from 1.
        nesting: declaration of the function.
    """
    last = memory.get("_tier")
    if last is None or (last[0] != wanted and round - last[1] >= nesting.settle):
        memory["_tier"] = last = [wanted, round]
    return int(last[0])


@dataclass(frozen=True)
class SegmentedModel:
    """A model cut into segments.

    Args:
        parts: values of each segment, in the order of the coordinates.
        places: coordinates of each segment.
        order: public scores of the units.
        layout: layout of the model.
    """

    parts: tuple[Tensor, ...]
    places: Places
    order: Tree
    layout: Layout

    @staticmethod
    def of(model: PartialModel, segmenter: Segmenter, nesting: Nesting) -> SegmentedModel:
        """Cut a complete model."""
        vector = model.params.vector.cpu()
        places = [place.cpu() for place in segmenter.places(model.order, nesting)]
        return SegmentedModel(tuple(vector[place] for place in places), places, model.order, model.params.layout)

    @cached_property
    def head(self) -> dict[str, Tree]:
        """The part that all clients receive: the order, a hash of each segment, and one of the whole model.

        It determines the whole model, although a client receives a part of it.
        """
        vector = torch.empty(self.layout.size)
        for part, place in zip(self.parts, self.places, strict=True):
            vector[place] = part.float()
        hashes = torch.stack([_hash(part) for part in self.parts])
        return {"order": self.order, "hashes": hashes, "model": _hash(vector)}

    def share(self, tier: int) -> list[Tensor]:
        """Return the segments of a tier."""
        return list(self.parts[tier:])


def received(head: Any, parts: Any, tier: int, fraction: float, places: Places, layout: Layout) -> PartialModel:
    """Return the model that a client received in part.

    Args:
        head: see `SegmentedModel.head`.
        parts: segments of the client's tier.
        tier: index of the tier.
        fraction: fraction of the units that the client trains.
        places: coordinates of each segment, as this client derives them from the order.
        layout: layout of this client's own model.

    Raises:
        ProtocolError: a segment is missing, has another length, or does not match its hash.
    """
    hashes, count = head["hashes"], len(places)
    if not _is_hash(hashes, (count, 32)) or not _is_hash(head["model"], (32,)):
        raise ProtocolError("the server sent no hash for each segment of the model")
    if not isinstance(parts, list) or len(parts) != count - tier or not all(isinstance(p, Tensor) for p in parts):
        raise ProtocolError(
            f"the server sent {len(parts) if isinstance(parts, list) else 'no'} segments; tier {tier} needs {count - tier}"
        )
    vector = torch.zeros(layout.size, device=parts[0].device)
    for segment, part in enumerate(parts, tier):
        if part.shape != places[segment].shape or part.dtype != torch.float32:
            raise ProtocolError(f"segment {segment} of the model has another size than follows from the order of the units")
        if not torch.equal(_hash(part), hashes[segment].cpu()):
            raise ProtocolError(f"segment {segment} of the model does not match the hash that all clients received")
        vector[places[segment].to(vector.device)] = part
    if tier == 0 and not torch.equal(_hash(vector), head["model"].cpu()):
        raise ProtocolError("the model does not match the hash that all clients received")
    share = sum(map(len, parts)) / layout.size
    return PartialModel(params=Params(vector, layout), order=head["order"], fraction=fraction, share=share)


def _is_hash(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and tuple(value.shape) == shape


def _hash(part: Tensor) -> Tensor:
    data = part.detach().cpu().contiguous().numpy()
    return torch.frombuffer(bytearray(hashlib.sha256(data.astype("<f4", copy=False).data).digest()), dtype=torch.uint8)


def same_order(received: Tree, expected: Tree, tolerance: float = 1e-3) -> bool:
    """Return whether two orders have the same groups and, up to rounding on another device, the same scores."""
    if not isinstance(received, dict) or not isinstance(expected, dict) or received.keys() != expected.keys():
        return False
    pairs = [(received[name], expected[name]) for name in expected]
    return all(
        isinstance(a, Tensor)
        and a.shape == b.shape
        and torch.allclose(a.cpu().double(), b.cpu().double(), rtol=tolerance, atol=tolerance * 1e-3)
        for a, b in pairs
    )


# -- replies ---------------------------------------------------------------------------------------
def segment_name(field: str, segment: int) -> str:
    """Return the name of the field that holds one segment of a field."""
    return f"{field}#{segment}"


def segment_of(name: str) -> tuple[str, int | None]:
    """Return the field and the segment of a name made by `segment_name`; None for the segment of any other name."""
    field, _, number = name.rpartition("#")
    return (field, int(number)) if field and len(number) <= 3 and number.isascii() and number.isdigit() else (name, None)


def split_reply(reply: Tree, places: Places, tier: int) -> Update:
    """Split a reply into segments: one field, and one weight, for each segment of the client's tier.

    Args:
        reply: an `Update` whose `Params` are those of the model, with one number as the weight of each field.
        places: coordinates of each segment.
        tier: the client's tier; 0 for all segments.

    Raises:
        PlanError: the reply has another form.
    """
    if not isinstance(reply, Update):
        raise PlanError([f"a nested client function must return an Update, not {type(reply).__name__}"])
    weights = reply.weight if isinstance(reply.weight, Mapping) else dict.fromkeys(reply.fields, reply.weight)
    fields: dict[str, Tree] = {}
    shares: dict[str, Any] = {}
    for name, value in reply.fields.items():
        if not isinstance(weights.get(name), int | float):
            raise PlanError([f"the weight of {name!r} must be one number: a segment has one weight, not one per coordinate"])
        if isinstance(value, Params):
            vector = value.vector
            for segment in range(tier, len(places)):
                fields[segment_name(name, segment)] = vector[places[segment].to(vector.device)]
                shares[segment_name(name, segment)] = weights[name]
        else:
            fields[name], shares[name] = value, weights[name]
    return Update(weight=shares, **fields)


def joined(summed: Summed, places: Places, layout: Layout) -> Summed:
    """Return the sum of replies split into segments as a sum over whole vectors, with a weight for each coordinate.

    Args:
        summed: sum of replies that `split_reply` made. Segments that nobody sent may be missing: their weight is 0.
        places: coordinates of each segment.
        layout: layout of the model.
    """
    _, _, parts, totals = summed.structure
    tensors, scalars = iter(summed.tensors), iter(summed.scalars)

    def whole(into: dict[str, Any], field: str, segment: int, value: Any) -> None:
        vector = into.setdefault(field, torch.zeros(layout.size, dtype=torch.float64))
        vector[places[segment]] = torch.as_tensor(value, dtype=torch.float64).cpu()

    forms: dict[str, Any] = {}
    vectors: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    others: dict[str, tuple[list[Any], list[float]]] = {}
    for name, form in parts:
        field, segment = segment_of(name)
        if segment is not None:
            whole(vectors, field, segment, next(tensors))
            forms[field] = (["params", layout], (("tensor", (layout.size,)),))
            continue
        forms[field], others[field] = form, ([], [])
        for kind, _ in form[1]:
            if kind in ("tensor", "whole"):
                others[field][0].append(next(tensors))
            else:
                others[field][1].append(next(scalars))
    for _, name, _ in totals:
        field, segment = segment_of(name)
        if segment is None:
            weights[field] = next(scalars)
        else:
            whole(weights, field, segment, next(scalars))
    kinds = tuple(("tensor", n, layout) if isinstance(w, Tensor) else ("scalar", n, None) for n, w in weights.items())
    numbers = [x for name in others for x in others[name][1]] + [w for w in weights.values() if not isinstance(w, Tensor)]
    return dataclasses.replace(
        summed,
        structure=("mean", False, tuple(forms.items()), kinds),
        tensors=[t for name in forms for t in ([vectors[name]] if name in vectors else others[name][0])],
        scalars=numbers,
        denominators=[w for w in weights.values() if isinstance(w, Tensor)],
    )
