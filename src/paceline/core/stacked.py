"""Whether a computation runs for many clients at once, for models that otherwise adapt to the values of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["is_stacked"]


def is_stacked(value: Any) -> bool:
    """Return whether a value is a tensor that stands for those of many clients, so that its values must not be read.

    A model that reads values of a batch, for example to crop it, can compute the batch as it is in this case.

    Example:
        >>> is_stacked(torch.zeros(2))
        False
        >>> torch.func.vmap(lambda x: x + is_stacked(x))(torch.zeros(2))
        tensor([1., 1.])
    """
    return isinstance(value, Tensor) and torch._C._functorch.is_batchedtensor(value)
