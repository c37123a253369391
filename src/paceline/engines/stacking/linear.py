"""Linear layers with one weight per client, with the faster order of operands in the backward pass.

``torch.func.vmap`` turns them into batched matrix products, whose weight gradients autograd computes as ``x^T g``, with
the few outputs as columns: four times slower on a CPU than ``g^T x``, which gives the same values.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from paceline.engines.stacking.convolution import convolve, fits
from paceline.engines.stacking.kernels import current

__all__ = ["StackedLinears"]


class StackedLinears(TorchFunctionMode):
    """Context in which ``F.linear`` under ``vmap`` uses the faster order, and ``F.conv2d`` the chosen one."""

    def __init__(self) -> None:
        super().__init__()
        self._kernels = current()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace calls of ``F.linear`` and ``F.conv2d`` on batched weights; forward all other calls."""
        if func in (F.linear, F.conv2d) and args and torch._C._functorch.is_gradtrackingtensor(args[0]):
            return func(*args, **(kwargs or {}))  # an inner gradient, as of an attack on the inputs
        if func is F.conv2d and len(args) > 1 and _batched(args[1]) and self._kernels.from_views(tuple(args[1].shape)):
            return (convolve if fits(*args, **(kwargs or {})) else func)(*args, **(kwargs or {}))
        if func is F.linear and not kwargs and _batched(args[1]):
            return _Linear.apply(  # type: ignore[no-untyped-call]
                args[0], args[1], args[2] if len(args) > 2 else None
            )
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """One client's layer, as called under ``vmap``."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        raise NotImplementedError("only the stacked form of the linear layer supports gradients")

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
        size = info.batch_size
        x = _first(x, dims[0], size)
        weight = _first(weight, dims[1], size)
        bias = None if bias is None else _first(bias, dims[2], size)
        flat = x.reshape(size, -1, x.shape[-1])
        out = _Stacked.apply(flat, weight, bias)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], weight.shape[1]), 0


class _Stacked(torch.autograd.Function):
    """K linear layers. Shapes: x [K, B, I], weight [K, O, I], bias [K, O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if bias is None:
            return torch.bmm(x, weight.transpose(1, 2))
        return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wants = ctx.needs_input_grad
        return (
            torch.bmm(slope, weight) if wants[0] else None,
            torch.bmm(slope.transpose(1, 2), x) if wants[1] else None,
            slope.sum(1) if wants[2] else None,
        )


def _batched(tensor: Tensor) -> bool:
    batched: bool = torch._C._functorch.is_batchedtensor(tensor)
    return batched


def _first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
