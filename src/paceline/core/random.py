"""Explicit randomness: an independent stream for each path such as (seed, client, round).

The seed of a stream is a hash of its path, so it depends neither on the order in which clients run nor on the process
that runs them.
"""

from __future__ import annotations

import hashlib
import operator

import numpy as np
import torch

__all__ = ["derive", "numpy_rng", "torch_rng"]


def derive(seed: int, *path: int | str) -> int:
    """Return the 63-bit seed of the stream named by `path` under `seed`.

    Example:
        >>> derive(0, "client", 3) == derive(0, "client", 3), derive(0, "client", 3) == derive(0, "client", 4)
        (True, False)
    """
    text = "/".join([str(seed), *(_part(part) for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _part(part: int | str) -> str:
    """Return an unambiguous text for a path component: strings are escaped, NumPy integers equal Python integers."""
    if isinstance(part, str):
        return "s" + part.replace("%", "%25").replace("/", "%2F")
    return f"i{operator.index(part)}"


def torch_rng(seed: int, *path: int | str) -> torch.Generator:
    """Return a CPU `torch.Generator` for the stream `path`."""
    return torch.Generator().manual_seed(derive(seed, *path))


def numpy_rng(seed: int, *path: int | str) -> np.random.Generator:
    """Return a NumPy `Generator` for the stream `path`."""
    return np.random.default_rng(derive(seed, *path))
