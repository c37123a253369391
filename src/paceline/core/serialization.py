"""Binary encoding of trees: a msgpack header for the structure, then raw little-endian tensors. Never a pickle.

Untrusted input is validated before anything is allocated: sizes, nesting, counts, dtypes and shapes are compared with
the available bytes. The only exception raised for invalid input is `WireError`.

Layout of a message (all integers little-endian)::

    "PLWR" | version u16 | zero u16 | header length u64 | header | zeros to a multiple of 64
    then each tensor's bytes, with zeros to a multiple of 8

The header is the msgpack list ``[structure, [[dtype, shape, bytes], ...]]``, where the structure is that of
`paceline.core.tree.flatten`.
"""

from __future__ import annotations

import hashlib
import math
import struct
import sys
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

from paceline.core.errors import TreeError, WireError
from paceline.core.tree import Tree, flatten, unflatten

__all__ = ["DTYPES", "NETWORK", "Limits", "digest", "dumps", "loads"]

MAGIC = b"PLWR"
VERSION = 1
_PREFIX = struct.Struct("<4sHHQ")

DTYPES: dict[str, torch.dtype] = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "bf2": torch.bfloat16,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "b1": torch.bool,
}
"""Supported dtypes by their code in the header; the last digit is the item size in bytes."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Limits:
    """Limits of `loads`.

    Args:
        size: bytes of the whole message.
        header: bytes of the header.
        depth: nesting of the header; each dict or node of a tree takes three levels, a list two.
        items: number of values of all kinds in the header.
        tensors: number of tensors.
        dtypes: accepted codes of `DTYPES`.
    """

    size: int = 4 << 30
    header: int = 64 << 20
    depth: int = 192
    items: int = 1_000_000
    tensors: int = 100_000
    dtypes: frozenset[str] = field(default_factory=lambda: frozenset(DTYPES))


NETWORK = Limits(size=1 << 30, header=1 << 30, items=200_000, tensors=20_000)
"""Limits for untrusted messages: the cost of a message in memory and time stays proportional to its size in bytes.

Byte strings are part of the header, so it may be as large as the message; the values and tensors, which cost more than
their bytes, are limited in number.
"""


def dumps(tree: Tree, limits: Limits | None = None) -> bytes:
    """Encode a tree.

    Args:
        tree: the tree.
        limits: limits of the receiver.

    Raises:
        TreeError: the value is not a tree.
        WireError: an integer exceeds 64 bits, a tensor cannot be encoded (sparse, complex, quantised), or `loads` would
            refuse the message under the same limits.

    Example:
        >>> loads(dumps({"x": torch.arange(3)}))
        {'x': tensor([0, 1, 2])}
    """
    limits = limits or Limits()
    try:
        structure, leaves = flatten(tree)
    except RecursionError:
        raise TreeError("the tree is nested too deeply or contains itself") from None
    arrays = [_to_bytes(leaf, i, limits) for i, leaf in enumerate(leaves)]
    header = _header(structure, leaves, arrays)
    _check_header(header, len(arrays), limits)
    parts: list[bytes | memoryview] = [
        _PREFIX.pack(MAGIC, VERSION, 0, len(header)),
        header,
        bytes(-(_PREFIX.size + len(header)) % 64),
    ]
    for raw in arrays:
        parts += [raw.data, bytes(-len(raw) % 8)]
    size = sum(len(part) for part in parts)
    if size > limits.size:
        raise WireError(f"the encoded tree has {size} bytes, above the limit of {limits.size}")
    return b"".join(parts)


def digest(tree: Tree) -> tuple[bytes, bytes]:
    """Return (SHA-256 of a tree, SHA-256 of its tensors' bytes alone); sender and receiver compute the same digests.

    Raises what `dumps` raises.
    """
    structure, leaves = flatten(tree)
    tensors, arrays = hashlib.sha256(), [_to_bytes(leaf, i, Limits()) for i, leaf in enumerate(leaves)]
    for raw in arrays:
        tensors.update(raw.data)
    content = tensors.digest()
    return hashlib.sha256(content + _header(structure, leaves, arrays)).digest(), content


def _header(structure: Any, leaves: list[Tensor], arrays: list[np.ndarray[Any, np.dtype[np.uint8]]]) -> bytes:
    table = [[_CODES[leaf.dtype], list(leaf.shape), len(raw)] for leaf, raw in zip(leaves, arrays, strict=True)]
    try:
        packed: bytes = msgpack.packb([structure, table], use_bin_type=True)
    except OverflowError:
        raise WireError("the tree contains an integer of more than 64 bits; send it as bytes or text") from None
    except (ValueError, UnicodeEncodeError) as error:
        raise WireError(f"the tree cannot be encoded: {error}") from None
    return packed


def loads(data: bytes | bytearray | memoryview, limits: Limits | None = None, copy: bool = True) -> Tree:
    """Decode a tree encoded by `dumps`.

    Args:
        data: the message.
        limits: accepted sizes.
        copy: with False, tensors are views into `data` if that is a writable buffer, which then must not be used for
            anything else. Tensors of a read-only buffer are copied in any case.

    Raises:
        WireError: the message is malformed, exceeds a limit, or contains a class that is not registered here. No other
            exception is raised.
    """
    limits = limits or Limits()
    try:
        return _loads(memoryview(data).cast("B"), limits, copy)
    except WireError:
        raise
    except Exception as error:  # untrusted data: a node's constructor may raise anything
        raise WireError(f"malformed message: {str(error)[:400]}") from error


def _loads(data: memoryview, limits: Limits, copy: bool) -> Tree:
    if len(data) > limits.size:
        raise WireError(f"a message of {len(data)} bytes exceeds the limit of {limits.size}")
    if len(data) < _PREFIX.size:
        raise WireError(f"truncated message of {len(data)} bytes")
    magic, version, zero, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise WireError("not a Paceline message (wrong magic bytes)")
    if version != VERSION or zero:
        raise WireError(f"unsupported message format {version} (this version reads {VERSION}); upgrade paceline")
    end = _PREFIX.size + length
    start = end + -end % 64
    if start > len(data):
        raise WireError(f"a header of {length} bytes exceeds the message of {len(data)} bytes")
    if length > limits.header:
        raise WireError(f"a header of {length} bytes exceeds the limit of {limits.header}")
    header = bytes(data[_PREFIX.size : end])
    if any(data[end:start]):
        raise WireError("padding is not zero")
    _check_header(header, None, limits)
    decoded = msgpack.unpackb(header, raw=False, strict_map_key=True)
    match decoded:
        case [structure, [*table]]:
            leaves = _Leaves(_tensors(data, start, table, limits, copy))
            tree = unflatten(structure, leaves)
            if leaves.used != len(leaves):
                raise WireError(f"{len(leaves) - leaves.used} tensors are not referenced by the tree")
            return tree
    raise WireError("malformed header: expected a pair of structure and tensors")


class _Leaves(list[Tensor]):
    """Tensors of a message, each to be used once and in order, as written by `dumps`.

    No two places of a tree therefore share memory, and a small message cannot expand into a huge tree.
    """

    used = 0

    def __getitem__(self, index: Any) -> Any:
        if index != self.used:
            raise WireError(f"tensor {index} is out of order; expected tensor {self.used}")
        self.used += 1
        return super().__getitem__(index)


def _check_header(header: bytes, tensors: int | None, limits: Limits) -> None:
    if len(header) > limits.header:
        raise WireError(f"a header of {len(header)} bytes exceeds the limit of {limits.header}")
    if tensors is not None and tensors > limits.tensors:
        raise WireError(f"{tensors} tensors exceed the limit of {limits.tensors}")
    _scan(header, limits)


def _tensors(data: memoryview, at: int, table: list[Any], limits: Limits, copy: bool) -> list[Tensor]:
    """Validate the whole table against the available bytes before creating any tensor."""
    if len(table) > limits.tensors:
        raise WireError(f"{len(table)} tensors exceed the limit of {limits.tensors}")
    places: list[tuple[str, list[int], int, int]] = []
    for number, row in enumerate(table):
        match row:
            case [str(code), [*shape], int(size)] if code in DTYPES and type(size) is int:
                if code not in limits.dtypes:
                    raise WireError(f"tensor {number} has dtype {DTYPES[code]}, not accepted by the receiver")
                if len(shape) > 64 or any(type(n) is not int or not 0 <= n < 1 << 62 for n in shape):
                    raise WireError(f"tensor {number} has a malformed shape; expected a list of sizes")
                if math.prod(shape) * int(code[-1]) != size:
                    raise WireError(f"tensor {number}: shape {shape} does not match the announced {size} bytes")
                places.append((code, shape, at, at + size))
                at += size + -size % 8
            case _:
                raise WireError(f"tensor {number} is malformed; expected dtype, shape and length")
    if at != len(data):
        raise WireError(f"the message has {len(data)} bytes, but its header announces {at}")
    made = []
    for number, (code, shape, low, high) in enumerate(places):
        if any(data[high : high + -(high - low) % 8]):
            raise WireError("padding is not zero")
        made.append(_from_bytes(data[low:high], code, shape, number, copy))
    return made


def _to_bytes(leaf: Tensor, number: int, limits: Limits) -> np.ndarray[Any, np.dtype[np.uint8]]:
    code = _CODES.get(leaf.dtype)
    if code is None or leaf.layout != torch.strided:
        raise WireError(
            f"tensor {number} is {leaf.dtype} ({leaf.layout}), which cannot be sent; use a dense tensor of {', '.join(DTYPES)}"
        )
    if code not in limits.dtypes:
        raise WireError(
            f"tensor {number} has dtype {leaf.dtype}, which is not accepted; convert it to {', '.join(sorted(limits.dtypes))}"
        )
    flat = leaf.detach().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return _little(flat, int(code[-1]))


def _from_bytes(raw: memoryview, code: str, shape: list[int], number: int, copy: bool) -> Tensor:
    if not len(raw):
        return torch.empty(shape, dtype=DTYPES[code])
    flat = _little(np.frombuffer(raw, dtype=np.uint8), int(code[-1]))
    if code == "b1" and flat.max() > 1:
        raise WireError(f"tensor {number} has a boolean value other than 0 and 1")
    if copy or raw.readonly or flat.ctypes.data % int(code[-1]):
        flat = flat.copy()
    return torch.from_numpy(flat).view(DTYPES[code]).reshape(shape)


def _little(flat: np.ndarray[Any, Any], item: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Convert between native and little-endian byte order."""
    if sys.byteorder == "little" or item == 1:
        return flat
    return np.ascontiguousarray(flat.reshape(-1, item)[:, ::-1]).reshape(-1)


_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_FIXED |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}


def _scan(data: bytes, limits: Limits) -> None:
    """Scan msgpack without decoding it: check lengths, nesting and counts; reject maps and extensions."""
    left, at, count, end = [1], 0, 0, len(data)  # values still to come at each level of nesting
    while left:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        count += 1
        if count > limits.items:
            raise WireError(f"the header exceeds the limit of {limits.items} values")
        if at >= end:
            raise WireError("truncated header")
        kind = data[at]
        at += 1
        size = None
        if kind < 0x80 or kind >= 0xE0:
            continue
        if kind in _FIXED:
            at += _FIXED[kind]
        elif 0xA0 <= kind < 0xC0:
            at += kind & 31
        elif kind in _SIZED:
            width = _SIZED[kind]
            at += width + int.from_bytes(data[at : at + width], "big")
        elif 0x90 <= kind < 0xA0:
            size = kind & 15
        elif kind in (0xDC, 0xDD):
            width = 2 if kind == 0xDC else 4
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        else:
            raise WireError(f"the header has a value of the unsupported msgpack type {kind:#x}")
        if at + (size or 0) > end:
            raise WireError("truncated header")
        if size is not None:
            left.append(size)
            if len(left) - 1 > limits.depth:
                raise WireError(f"the header exceeds the nesting limit of {limits.depth} levels")
    if at != end:
        raise WireError("the header has trailing bytes")
