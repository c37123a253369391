"""Randomness as an argument: one independent stream for each path such as (seed, client, round).

A stream's seed is a hash of its path, so it depends neither on the order in which clients run nor on
the process that runs them.
"""

from __future__ import annotations

import hashlib
import operator

import numpy as np
import torch

__all__ = ["derive", "numpy_rng", "torch_rng"]


def derive(seed: int, *path: int | str) -> int:
    """Return the 63-bit seed of the stream that `path` names under `seed`."""
    text = "/".join([str(seed), *(_part(part) for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _part(part: int | str) -> str:
    """Return text that differs for different parts: names are escaped, numpy's integers count as integers."""
    if isinstance(part, str):
        return "s" + part.replace("%", "%25").replace("/", "%2F")
    return f"i{operator.index(part)}"


def torch_rng(seed: int, *path: int | str) -> torch.Generator:
    """Return a CPU `torch.Generator` for the stream `path`."""
    return torch.Generator().manual_seed(derive(seed, *path))


def numpy_rng(seed: int, *path: int | str) -> np.random.Generator:
    """Return a numpy `Generator` for the stream `path`."""
    return np.random.default_rng(derive(seed, *path))
