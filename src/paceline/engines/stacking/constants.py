"""The values that a hook captured beside tensors, as a key: what is computed once for it holds only while they stay the same."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any

from torch import Tensor, nn

from paceline.core.params import Params
from paceline.engines.stacking.hooks import Unstackable

__all__ = ["constants"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_NAMED = (types.ModuleType, types.CodeType, type, types.BuiltinFunctionType)


def constants(value: Any, name: str = "hook") -> Any:
    """Return a key of everything in a hook except the contents of its tensors.

    Args:
        value: a hook, or a value that one captured.
        name: what it is, for messages.

    Raises:
        Unstackable: a captured object may change without a trace, such as a client or a list of objects.
    """
    if isinstance(value, Params):
        return "params", value.layout.digest
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape), value.dtype
    if isinstance(value, _PLAIN):
        return type(value), repr(value)
    if isinstance(value, _NAMED):
        return value
    if isinstance(value, tuple | list):
        return type(value), tuple(constants(part, f"{name}[{k}]") for k, part in enumerate(value))
    if isinstance(value, dict):
        return dict, tuple((repr(key), constants(part, f"{name}[{key!r}]")) for key, part in value.items())
    if isinstance(value, functools.partial):
        return functools.partial, constants((value.func, value.args, value.keywords), name)
    if isinstance(value, types.MethodType):
        return value.__func__, constants(value.__self__, f"the object of {value.__qualname__}")
    if isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        held = tuple(constants(cell.cell_contents, f"{free!r} of {value.__qualname__}") for free, cell in cells)
        return value.__code__, held, constants((value.__defaults__, value.__kwdefaults__), f"defaults of {value.__qualname__}")
    if isinstance(value, nn.Module) and not [*value.parameters(), *value.buffers()]:
        return value, value.training  # a loss such as nn.CrossEntropyLoss
    if dataclasses.is_dataclass(value) and getattr(type(value), "__dataclass_params__").frozen:  # noqa: B009
        fields = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.compare]
        return type(value), tuple(constants(part, f"{name}.{key}") for key, part in fields)
    raise Unstackable(f"{name} is a {type(value).__name__}, which may change from one round to the next")
