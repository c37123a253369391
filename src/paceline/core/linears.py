"""Linear layers on CPUs through oneDNN, as convolutions: on many processors twice as fast as the BLAS library of torch.

PyTorch computes convolutions with oneDNN but float32 matrix products with MKL, which is slow on processors of other makers.
Within `linears`, the large linear layers of a module use oneDNN in both passes. Which do depends on their sizes alone, so
that results are the same in every process.
"""

from __future__ import annotations

import functools
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = ["linears", "uses_onednn"]

_LEAST = 1 << 20
"""Least number of multiplications in a layer: below it, the call costs more than the faster product saves."""


class linears:
    """Context in which a module's large linear layers use oneDNN; it changes nothing if there are none.

    Args:
        module: the module that will be called.
        rows: largest number of rows of its inputs, such as the batch size.
        device: device of the module.
        mixed: whether the module runs in mixed precision, where autocast must handle the original calls.
    """

    def __init__(self, module: nn.Module, rows: int, device: torch.device, mixed: bool = False) -> None:
        self._parts: list[nn.Linear] = []
        if mixed or device.type != "cpu":
            return
        parts = [part for part in module.modules() if type(part) is nn.Linear and "forward" not in part.__dict__]
        large = [part for part in parts if rows * part.in_features * part.out_features >= _LEAST]
        self._parts = large if large and uses_onednn() else []

    def __enter__(self) -> None:
        for part in self._parts:
            part.__dict__["forward"] = functools.partial(_forward, part)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for part in self._parts:
            del part.__dict__["forward"]


@functools.cache
def uses_onednn() -> bool:
    """Return whether this build of torch has oneDNN's linear layer and it gives the values of ``F.linear``, tested once."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x, weight, bias = (torch.linspace(-1, 1, n).sin().view(shape) for n, shape in ((96, (6, 16)), (48, (3, 16)), (3, (3,))))
    try:
        same = torch.allclose(_product(x, weight, bias), F.linear(x, weight, bias), atol=1e-5)
        return same and torch.allclose(_product(x.t(), x.t()), x.t() @ x, atol=1e-5)
    except (RuntimeError, AttributeError, TypeError):
        return False


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias``, shape [rows, out]."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _forward(layer: nn.Linear, input: Tensor) -> Tensor:
    """Return ``layer(input)``."""
    weight, bias = layer.weight, layer.bias
    if not _fits(input, weight, bias):
        return F.linear(input, weight, bias)
    out: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return out


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether a layer is large, in float32, and called on ordinary tensors rather than those of a transformation."""
    if weight.dim() != 2 or x.numel() * weight.shape[0] < _LEAST or not torch.backends.mkldnn.enabled:
        return False
    tensors = (x, weight) if bias is None else (x, weight, bias)
    plain = all(type(t) in _PLAIN and t.dtype is torch.float32 and t.device.type == "cpu" for t in tensors)
    wrapped = torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    return plain and not wrapped and not torch.is_autocast_enabled("cpu")


_PLAIN = (Tensor, nn.Parameter)


class _Linear(torch.autograd.Function):
    """Shapes: x [..., I], weight [O, I], bias [O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = _product(x.reshape(-1, x.shape[-1]), weight, bias)
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        slope, flat = slopes[0].reshape(-1, weight.shape[0]), x.reshape(-1, x.shape[-1])
        twice = torch.is_grad_enabled()  # a gradient of the gradient is asked for, which oneDNN's product has not
        product = F.linear if twice else _product
        wants = ctx.needs_input_grad
        return (
            product(slope, weight.t()).view(x.shape) if wants[0] else None,
            product(slope.t(), flat.t()) if wants[1] else None,
            slope.sum(0) if wants[2] else None,
        )
