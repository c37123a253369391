"""Precision of float32 matrix products and convolutions: read, set and put back, through torch's older and newer settings.

torch's own default differs by operation: matrix products are float32, but convolutions on a GPU round their factors to TF32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["is_float32", "kept_precision", "set_precision"]


def set_precision(precision: str) -> None:
    """Set what float32 matrix products, convolutions and recurrent layers may round their factors to: TF32, or nothing.

    Args:
        precision: ``tf32``; or ``float32`` or ``bf16``, where what autocast leaves in float32 is not rounded.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def is_float32() -> bool:
    """Return whether float32 matrix products round nothing to TF32."""
    return torch.get_float32_matmul_precision() == "highest"


@contextmanager
def kept_precision() -> Iterator[None]:
    """Context manager: restore the precision at the end of the block, also where the block raises."""
    products, cudnn = _products(), _cudnn()
    parts = [(part, part.fp32_precision) for part in _parts()]
    try:
        yield
    finally:
        if products is not None and _products() != products:
            torch.set_float32_matmul_precision(products)
        if cudnn is not None and _cudnn() != cudnn:
            torch.backends.cudnn.allow_tf32 = cudnn
        for part, value in parts:  # from the general settings to those of an operation
            if part.fp32_precision != value:
                part.fp32_precision = value


def _products() -> str | None:
    """Return the older setting of matrix products; None where torch has only the newer ones, which differ from it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _cudnn() -> bool | None:
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return None


def _parts() -> list[Any]:
    """Return the objects with a setting ``fp32_precision``; none before torch 2.9."""
    backends, found = torch.backends, []
    for path in ("", "cudnn", "cudnn.conv", "cudnn.rnn", "cuda.matmul", "mkldnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"):
        part: Any = backends
        for name in filter(None, path.split(".")):
            part = getattr(part, name, None)
        if hasattr(part, "fp32_precision"):
            found.append(part)
    return found
