"""SHA-256 of a task's samples, to detect a run that is resumed with different ones."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paceline.core.columns import Column

__all__ = ["digest"]

_BYTES = 1 << 24
"""Bytes of a tensor hashed in one piece; non-contiguous tensors are copied piece by piece."""


def digest(*values: Any) -> str:
    """Return the SHA-256 of values: tensors, arrays, modules, plain values, and containers of them.

    Type, shape and content are hashed. Functions are hashed by name.
    """
    found = hashlib.sha256()
    for value in values:
        _add(found, value, ())
    return found.hexdigest()


def _add(into: Any, value: Any, inside: tuple[int, ...]) -> None:
    """Add a value to the hash; `inside` holds the ids of enclosing objects, which are not hashed again."""
    if id(value) in inside:
        return
    inside = (*inside, id(value))
    if isinstance(value, Tensor):
        into.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        _add_tensor(into, value.detach())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        into.update(f"array {value.dtype.str} {value.shape};".encode())
        into.update(np.ascontiguousarray(value).data)
    elif isinstance(value, bool | int | float | complex | str | bytes | np.generic) or value is None:
        text = repr(value)
        into.update(f"{type(value).__name__} {len(text)} {text};".encode(errors="surrogatepass"))
    elif isinstance(value, Column) and hasattr(value, "content"):
        _add(into, [type(value).__qualname__, value.content()], inside)
    elif isinstance(value, nn.Module):
        _add(into, [type(value).__qualname__, value.state_dict()], inside)
    elif isinstance(value, Mapping):
        into.update(f"mapping {len(value)};".encode())
        for key, item in value.items():
            _add(into, key, inside)
            _add(into, item, inside)
    elif isinstance(value, set | frozenset):
        _add(into, sorted(digest(item) for item in value), inside)
    elif isinstance(value, Sequence):
        into.update(f"sequence {len(value)};".encode())
        for item in value:
            _add(into, item, inside)
    elif isinstance(value, functools.partial):
        _add(into, [value.func, value.args, value.keywords], inside)
    elif callable(value) and hasattr(value, "__qualname__"):
        _add(into, f"{value.__module__}.{value.__qualname__}", inside)
    else:
        named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else None
        _add(into, [type(value).__qualname__, named if named is not None else getattr(value, "__dict__", {})], inside)


def _add_tensor(into: Any, tensor: Tensor) -> None:
    if tensor.dim() > 1 and tensor.shape[0] > 1 and tensor.numel() * tensor.element_size() > _BYTES:
        rows = max(_BYTES * tensor.shape[0] // (tensor.numel() * tensor.element_size()), 1)
        for part in torch.split(tensor, rows):
            _add_tensor(into, part)
        return
    if tensor.numel():
        into.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
