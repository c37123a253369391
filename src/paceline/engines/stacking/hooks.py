"""Merge the hooks of many clients into one hook for their stack.

The hooks of one client function have the same code but captured different values. `share` separates the values that
are equal from those to be stacked, so that ``torch.func.vmap`` runs the code once for all clients.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from paceline.core.params import Params

__all__ = ["Shared", "Unstackable", "share", "signature"]

_PLAIN = (type(None), bool, str, bytes, types.ModuleType, type, types.BuiltinFunctionType)


_HOLDERS = (Tensor, Params, tuple, list, dict, functools.partial, types.FunctionType)
"""What is a tensor or may hold some."""


class Unstackable(Exception):
    """These clients cannot be stacked; the message gives the reason. Handled within the engine, never raised to callers."""


class Shared:
    """One hook for K clients: ``hook.bind(values)`` returns one client's hook, `stacked` holds the values that differ.

    Args:
        make: builds a hook from one client's values.
        stacked: one tensor of shape [K, ...] for each value that differs between clients.
        constants: name and value of what is the same for all clients; only of an explicit hook.
    """

    def __init__(
        self, make: Callable[[Sequence[Tensor]], Any], stacked: list[Tensor], constants: Sequence[tuple[str, Any]] = ()
    ) -> None:
        self.bind, self.stacked, self.constants = make, stacked, constants

    def first(self, count: int) -> list[Tensor]:
        """Return the stacked values of the first `count` clients."""
        return [s[:count] for s in self.stacked]


def signature(hook: Any) -> Any:
    """Return a key of a hook's code; hooks are run as one only if their keys are equal."""
    if isinstance(hook, types.MethodType):
        return (hook.__func__, id(hook.__self__))
    if isinstance(hook, functools.partial):
        return (signature(hook.func), len(hook.args), tuple(hook.keywords))
    return getattr(hook, "__code__", hook)


class _Explicit(list[Tensor]):
    """Stacked values of hooks of which every tensor is one, also where it is the same for all clients."""

    def __init__(self) -> None:
        super().__init__()
        self.constants: list[tuple[str, Any]] = []


def _constant(value: Any, stacked: list[Tensor], name: str) -> Callable[[Sequence[Tensor]], Any]:
    """Return a function that gives a value which is the same for all clients."""
    if isinstance(stacked, _Explicit):
        stacked.constants.append((name, value))
    return lambda _: value


def share(hooks: Sequence[Any], device: torch.device | str = "cpu", explicit: bool = False) -> Shared:
    """Merge hooks of equal `signature` into one.

    Args:
        hooks: the hooks of K clients, in stacking order.
        device: device of the stack, to which numbers that differ between clients are moved.
        explicit: put tensors that are the same for all clients among the stacked values too, as views of one tensor, so that
            the values of other clients can take their place.

    Raises:
        Unstackable: if a captured value differs between clients and is not a number, tensor or `Params`.
    """
    stacked: list[Tensor] = _Explicit() if explicit else []
    make = _unify(list(hooks), stacked, getattr(hooks[0], "__qualname__", "hook"))
    placed = [values.to(device, non_blocking=True) if values.dim() == 1 else values for values in stacked]
    return Shared(make, placed, stacked.constants if isinstance(stacked, _Explicit) else ())


def _unify(values: list[Any], stacked: list[Tensor], name: str) -> Callable[[Sequence[Tensor]], Any]:
    """Return a function that rebuilds one client's value from its rows of `stacked`; new values are appended to it."""
    first = values[0]
    if all(v is first for v in values) and not (isinstance(stacked, _Explicit) and isinstance(first, _HOLDERS)):
        return _constant(first, stacked, name)
    if len({Params if isinstance(v, Params) else float if type(v) is int else type(v) for v in values}) > 1:
        raise Unstackable(f"{name} has different types on different clients")
    if isinstance(first, Params):
        layout = first.layout
        if any(v.layout.digest != layout.digest for v in values):
            raise Unstackable(f"{name} has different layouts on different clients")
        place = _stack([v.vector for v in values], stacked)
        return lambda rows: Params(rows[place], layout)
    if isinstance(first, Tensor):
        if any(v.shape != first.shape or v.dtype != first.dtype for v in values):
            raise Unstackable(f"{name} has different shapes on different clients")
        place = _stack(values, stacked)
        return lambda rows: rows[place]
    if isinstance(first, _PLAIN) or (isinstance(first, int | float) and all(v == first for v in values)):
        if any(v != first for v in values):
            raise Unstackable(f"{name} is a {type(first).__name__} that differs between clients")
        return _constant(first, stacked, name)
    if isinstance(first, int | float):
        place = _stack([torch.tensor(float(v)) for v in values], stacked)
        return lambda rows: rows[place]
    if isinstance(first, tuple | list) and len({len(v) for v in values}) == 1:
        parts = [_unify([v[i] for v in values], stacked, f"{name}[{i}]") for i in range(len(first))]
        return lambda rows: type(first)(part(rows) for part in parts)
    if isinstance(first, dict) and all(v.keys() == first.keys() for v in values):
        items = {k: _unify([v[k] for v in values], stacked, f"{name}[{k!r}]") for k in first}
        return lambda rows: {k: part(rows) for k, part in items.items()}
    if isinstance(first, functools.partial):
        bits = _unify([(v.func, v.args, v.keywords) for v in values], stacked, name)

        def rebuild(rows: Sequence[Tensor]) -> Any:
            func, args, keywords = bits(rows)
            return functools.partial(func, *args, **keywords)

        return rebuild
    if isinstance(first, types.FunctionType) and all(v.__code__ is first.__code__ for v in values):
        return _function(values, stacked)
    if isinstance(first, types.MethodType) and all(v.__func__ is first.__func__ and v.__self__ is first.__self__ for v in values):
        return _constant(first, stacked, name)
    try:
        if all(v == first for v in values):
            return _constant(first, stacked, name)
    except (RuntimeError, TypeError, ValueError):  # the comparison has no truth value: treat as different
        pass
    raise Unstackable(f"{name} captured a {type(first).__name__} that differs between clients")


def _function(values: list[types.FunctionType], stacked: list[Tensor]) -> Callable[[Sequence[Tensor]], Any]:
    first = values[0]
    _constant(first.__code__, stacked, first.__qualname__)
    cells = []
    for place, name in enumerate(first.__code__.co_freevars):
        held = [(v.__closure__ or ())[place].cell_contents for v in values]
        cells.append(_unify(held, stacked, f"{name!r} of {first.__qualname__}"))
    defaults = _unify([v.__defaults__ for v in values], stacked, f"defaults of {first.__qualname__}")

    def rebuild(rows: Sequence[Tensor]) -> Any:
        closure = tuple(types.CellType(cell(rows)) for cell in cells)
        return types.FunctionType(first.__code__, first.__globals__, first.__name__, defaults(rows), closure)

    return rebuild


def _stack(tensors: list[Tensor], stacked: list[Tensor]) -> int:
    same = isinstance(stacked, _Explicit) and all(t is tensors[0] for t in tensors)
    stacked.append(tensors[0].expand(len(tensors), *tensors[0].shape) if same else torch.stack(tensors))
    return len(stacked) - 1
