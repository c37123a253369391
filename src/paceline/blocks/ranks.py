"""Rankings of edges: positions, and a packed form with the minimal number of bits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from paceline.core.errors import WireError

__all__ = ["PackedRanks", "bits_of", "is_permutation", "pack", "positions", "unpack"]

PackedRanks = dict[str, bytes]


def positions(ranks: Tensor) -> Tensor:
    """Return the inverse permutation: the position of each edge in the ranking."""
    return torch.empty_like(ranks).scatter_(0, ranks, torch.arange(len(ranks), device=ranks.device))


def is_permutation(ranks: Tensor, n: int) -> bool:
    """Return whether no edge is repeated and all are in 0 .. n - 1."""
    inside = bool(((ranks >= 0) & (ranks < n)).all())
    return inside and int(torch.bincount(ranks, minlength=1).max()) <= 1


def bits_of(n: int) -> int:
    """Return the number of bits of one of `n` numbers: ceil(log2 n)."""
    return max(n - 1, 0).bit_length()


def pack(numbers: Tensor, n: int) -> bytes:
    """Pack numbers below `n` into ceil(log2 n) bits each.

    Example:
        >>> unpack(pack(torch.tensor([2, 0, 1]), 3), 3)
        tensor([2, 0, 1])
    """
    width = bits_of(n)
    shifts = np.arange(width, dtype=np.int64)
    bits = (numbers.cpu().numpy().astype(np.int64)[:, None] >> shifts) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()


def unpack(data: bytes, n: int, count: int | None = None) -> Tensor:
    """Unpack `count` (by default `n`) numbers packed by `pack`.

    Raises:
        WireError: the data have another length.
    """
    width, count = bits_of(n), n if count is None else count
    if len(data) != (width * count + 7) // 8:
        raise WireError(f"a ranking of {count} of {n} edges has {(width * count + 7) // 8} bytes, not {len(data)}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=width * count).reshape(count, width)
    return torch.from_numpy(bits.astype(np.int64) @ (1 << np.arange(width, dtype=np.int64)))
