"""Client replies and their decomposition into summable terms.

A client function returns an `Update` (named fields and a weight) for ``fed.mean``, or any tree of numbers
for ``fed.sum``. `Terms` splits a reply into what a channel has to add: tensors, and a few scalars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.core.errors import AggregationError
from paceline.core.layout import Layout
from paceline.core.params import DeferredParams, Params
from paceline.core.tree import Tree, numeric_leaves, register, unflatten_numeric

__all__ = ["Columns", "Terms", "Update", "rebuild", "structure_from_plain", "structure_to_plain"]


class Update:
    """Named fields, and the weight with which they enter a mean.

    ``fed.mean`` also returns an `Update`: each field is sum(w x) / sum(w), or 0 if sum(w) is 0, and `weight` is the sum of
    the weights.

    Args:
        weight: one number; or a tensor / `Params` of a field's shape (a weight per coordinate, 0 for untrained
            coordinates); or a dict with one of these for each field.
        **fields: trees of float tensors, `Params` and numbers.

    Example:
        >>> Update(delta=torch.zeros(3), weight=20).delta
        tensor([0., 0., 0.])
    """

    __slots__ = ("fields", "weight")
    fields: dict[str, Any]
    weight: Any

    def __init__(self, *, weight: Any = 1, **fields: Tree) -> None:
        object.__setattr__(self, "fields", fields)
        object.__setattr__(self, "weight", weight)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(f"update has no field {name!r}; it has {list(self.fields)}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (self.fields, self.weight)  # used to transfer single replies from a worker process

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("an Update is immutable; make a new one")

    def __repr__(self) -> str:
        return f"Update({', '.join(f'{k}={v!r}' for k, v in self.fields.items())}, weight={self.weight!r})"


def _remade(fields: dict[str, Any], weight: Any) -> Update:
    return Update(weight=weight, **fields)


register(Update, lambda u: {**u.fields, "weight": u.weight}, lambda fields: Update(**fields))


@dataclass
class Terms:
    """A reply decomposed for summation.

    Args:
        structure: input of `rebuild`; equal for all replies of one call.
        names: field of each tensor (the key of a channel's bounds), see `ClientFunction`.
        tensors: unweighted flat tensors; see `of` for lazy ones.
        weights: scalar or flat tensor for each of `tensors`.
        scalars: numbers that are added directly: weighted scalars first, then scalar denominators.
        denominators: tensors of per-coordinate weights.
        lazy: whether `tensors` may contain `DeferredParams` vectors.
    """

    structure: Any
    names: list[str]
    tensors: list[Any]
    weights: list[float | Tensor]
    scalars: list[float]
    denominators: list[Tensor]
    lazy: bool = False

    @staticmethod
    def of(reply: Tree, cap: int | None = None, lazy: bool = False, step: float = 1.0) -> Terms:
        """Decompose a reply.

        Args:
            reply: an `Update`, or a tree of numbers.
            cap: round weights up to whole numbers of at most `cap` (0 stays 0), as required by secure aggregation.
            lazy: keep a `DeferredParams` with a scalar weight unmaterialised among the tensors.
            step: with `cap`, the unit of the whole numbers.

        Raises:
            TreeError: a value cannot be summed.
            AggregationError: a weight is missing or has the wrong shape.
        """
        terms = Terms(None, [], [], [], [], [], lazy)
        if not isinstance(reply, Update):
            terms.structure = ("sum", terms._open("", reply, 1.0))
            return terms
        shared = not isinstance(reply.weight, Mapping)
        weights = {name: reply.weight for name in reply.fields} if shared else dict(reply.weight)
        missing = set(reply.fields) - set(weights)
        if missing:
            raise AggregationError(f"the weight of field(s) {sorted(missing)} is missing; give every field a weight")
        parts, totals = [], []
        flat = {name: _flat(w, cap, step) for name, w in weights.items()}
        for name, value in reply.fields.items():
            parts.append((name, terms._open(name, value, flat[name])))
        for name in list(reply.fields)[:1] if shared else reply.fields:
            weight = flat[name]
            if isinstance(weight, Tensor):
                terms.denominators.append(weight)
                totals.append(("tensor", name, weights[name].layout if isinstance(weights[name], Params) else None))
            else:
                terms.scalars.append(weight)
                totals.append(("scalar", name, None))
        terms.structure = ("mean", shared, tuple(parts), tuple(totals))
        return terms

    def _open(self, name: str, value: Tree, weight: float | Tensor) -> Any:
        structure, leaves = numeric_leaves(value, self.lazy and not isinstance(weight, Tensor))
        slots: list[tuple[str, Any]] = []
        labels = [name] * len(leaves) if name else _labels(structure)
        for leaf, name in zip(leaves, labels, strict=True):
            if isinstance(leaf, Tensor):
                if isinstance(weight, Tensor) and weight.numel() != leaf.numel():
                    raise AggregationError(f"the weight of {name!r} has {weight.numel()} values, but its tensor has {leaf.numel()}")
                self.names.append(name)
                self.tensors.append(leaf.detach().reshape(-1))
                self.weights.append(weight)
                slots.append(("whole" if _is_whole(leaf) else "tensor", tuple(leaf.shape)))
            elif isinstance(leaf, DeferredParams):
                self.names.append(name)
                self.tensors.append(leaf)
                self.weights.append(weight)
                slots.append(("tensor", (leaf.layout.size,)))
            elif isinstance(weight, Tensor):
                raise AggregationError(f"{name!r} is a number but has a per-coordinate weight; give it a scalar weight")
            else:
                self.scalars.append(leaf * weight)
                slots.append(("int" if isinstance(leaf, int) else "float", None))
        return (structure, tuple(slots))

    @property
    def sizes(self) -> list[int]:
        """Number of values in each tensor."""
        return [len(t) if isinstance(t, DeferredParams) else t.numel() for t in self.tensors]

    @property
    def same(self) -> str:
        """Key that is equal for replies that can be added."""
        return repr(_plain(self.structure))


@dataclass
class Columns:
    """Updates of identical layout, field by field: lazy vectors and numbers with scalar weights.

    Args:
        fields: values of each field, one per reply.
        weights: weights of the replies.
    """

    fields: list[list[Any]]
    weights: list[float]

    @staticmethod
    def of(replies: Sequence[Tree]) -> Columns | None:
        """Collect replies that have the same fields, all lazy vectors or numbers; None for others."""
        first = replies[0]
        if type(first) is not Update or type(first.weight) not in (int, float):
            return None
        names, kinds = first.fields.keys(), [(n, type(v)) for n, v in first.fields.items()]
        if not all(kind in (float, int) or issubclass(kind, DeferredParams) for _, kind in kinds):
            return None
        layouts = [getattr(v, "layout", None) for v in first.fields.values()]
        for reply in replies:
            if type(reply) is not Update or type(reply.weight) is not type(first.weight) or reply.fields.keys() != names:
                return None
        fields = []
        for (name, kind), layout in zip(kinds, layouts, strict=True):
            column = [reply.fields[name] for reply in replies]
            if any(type(v) is not kind for v in column):
                return None
            if layout is not None and any(v.layout is not layout or v.formed for v in column):
                return None
            fields.append(column)
        return Columns(fields, [reply.weight for reply in replies])


def _labels(structure: Any) -> list[str]:
    """Return the field of each leaf of a reply that is not an `Update`: its key, or ``value`` if the reply has no keys."""
    keyed = structure[-1] if structure[0] in ("dict", "node") else [("value", structure)]
    return [str(key) for key, part in keyed for _ in range(_leaves(part))]


def _leaves(structure: Any) -> int:
    match structure[0]:
        case "dict" | "node":
            return sum(_leaves(part) for _, part in structure[-1])
        case "list" | "tuple":
            return sum(map(_leaves, structure[1]))
    return 1


def _flat(weight: Any, cap: int | None, step: float) -> float | Tensor:
    if isinstance(weight, Params):
        weight = weight.vector
    if isinstance(weight, Tensor):
        flat: Tensor = weight.detach().reshape(-1)
        return flat if cap is None else _steps(flat, step).clamp_(0, cap)
    if cap is None:
        return float(weight)
    return float(_steps(torch.tensor(float(weight), dtype=torch.float64), step).clamp_(0, cap))


def _steps(weight: Tensor, step: float) -> Tensor:
    """Return weights as whole numbers of steps, rounded up, but for the error of a division."""
    if step == 1.0:
        return weight.ceil()
    count = weight.double() / step
    near = count.round()
    return torch.where(((count - near).abs() < 1e-6 * count) & (near > 0), near, count.ceil())


def _plain(item: Any) -> Any:
    if isinstance(item, tuple | list):
        return [_plain(i) for i in item]
    return getattr(item, "digest", item)


def rebuild(structure: Any, tensors: list[Tensor], scalars: list[float], denominators: list[Tensor]) -> Tree:
    """Rebuild the summed reply from sums.

    For an `Update` the weighted sums are divided by the summed weights; if these are 0 the mean is 0.

    Args:
        structure: `Terms.structure`.
        tensors: flat float64 sums, in order.
        scalars: sums of the scalars.
        denominators: sums of the denominators.
    """
    left_t, left_s = iter(tensors), iter(scalars)
    if structure[0] == "sum":
        return _close(structure[1], left_t, left_s, None)
    _, shared, parts, totals = structure
    count = sum(1 for _, (_, slots) in parts for kind, _ in slots if kind not in _TENSORS)
    tail, left_d = iter(scalars[count:]), iter(denominators)
    weights: dict[str, Any] = {}
    for kind, name, layout in totals:
        value = next(tail) if kind == "scalar" else next(left_d)
        weights[name] = (value, layout)
    first = next(iter(weights), "")
    fields = {name: _close(part, left_t, left_s, weights[first if shared else name][0]) for name, part in parts}
    shown = {n: Params(w.float(), lay) if lay is not None else w for n, (w, lay) in weights.items()}
    return Update(weight=next(iter(shown.values()), 0.0) if shared else shown, **fields)


def _close(part: Any, tensors: Any, scalars: Any, weight: Any) -> Tree:
    structure, slots = part
    leaves: list[Any] = []
    for kind, shape in slots:
        value = next(tensors if kind in _TENSORS else scalars)
        if weight is not None:
            value = _divide(value, weight)
        if kind == "whole" and weight is None:  # float32 is not exact above 2^24
            value = value.round().long().reshape(shape)
        elif kind in _TENSORS:
            value = value.float().reshape(shape)
        elif kind == "int" and weight is None:
            value = round(value)
        leaves.append(value)
    return unflatten_numeric(structure, leaves)


_TENSORS = ("tensor", "whole")
"""Slot kinds that are tensors; ``whole`` ones contain integers, whose sum contains integers as well."""


def _is_whole(leaf: Tensor) -> bool:
    return not (leaf.is_floating_point() or leaf.dtype == torch.bool)


def _divide(value: Any, weight: Any) -> Any:
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, torch.zeros_like(value), value / torch.where(weight == 0, 1.0, weight))
    if weight == 0:
        return torch.zeros_like(value) if isinstance(value, Tensor) else 0.0
    return value / weight


def structure_to_plain(item: Any) -> Any:
    """Encode a structure of `Terms` as lists and plain values."""
    if isinstance(item, Layout):
        return ["layout", [[e.name, list(e.shape), e.kind] for e in item.entries]]
    if isinstance(item, list | tuple):
        return [type(item).__name__, [structure_to_plain(i) for i in item]]
    return item


def structure_from_plain(item: Any) -> Any:
    """Decode `structure_to_plain`.

    Raises:
        AggregationError: the structure is malformed.
    """
    match item:
        case ["layout", [*entries]]:
            return Layout.build([(n, tuple(s), k) for n, s, k in entries])
        case ["list", [*items]]:
            return [structure_from_plain(i) for i in items]
        case ["tuple", [*items]]:
            return tuple(structure_from_plain(i) for i in items)
        case None | bool() | int() | float() | str():
            return item
    raise AggregationError(f"malformed reply structure: {str(item)[:60]}")
