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

from paceline.engines.stacking import products
from paceline.engines.stacking.convolution import convolve, first, fits
from paceline.engines.stacking.kernels import current

__all__ = ["StackedLinears"]


class StackedLinears(TorchFunctionMode):
    """Context in which ``F.linear`` under ``vmap`` uses the faster order or own kernels, and ``F.conv2d`` the chosen form.

    Args:
        mixed: whether autocast is on; it must see the calls that own kernels do not compute.
    """

    def __init__(self, mixed: bool = False) -> None:
        super().__init__()
        self._kernels, self._mixed = current(), mixed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace calls of ``F.linear`` and ``F.conv2d`` on batched weights; forward all other calls."""
        kwargs = kwargs or {}
        if func not in (F.linear, F.conv2d) or len(args) < 2 or not _batched(args[1]):
            return func(*args, **kwargs)
        if torch._C._functorch.is_gradtrackingtensor(args[0]):
            return func(*args, **kwargs)  # an inner gradient, as of an attack on the inputs
        form = self._kernels.form(tuple(args[1].shape))
        if func is F.conv2d:
            own = form != "plain" and fits(*args, **kwargs)
            return convolve(*args, triton=form == "triton", **kwargs) if own else func(*args, **kwargs)
        if kwargs or (self._mixed and form == "plain"):
            return func(*args, **kwargs)
        return _Linear.apply(  # type: ignore[no-untyped-call]
            args[0], args[1], args[2] if len(args) > 2 else None, form == "triton"
        )


class _Linear(torch.autograd.Function):
    """One client's layer, as called under ``vmap``."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, triton: bool) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        raise NotImplementedError("only the stacked form of the linear layer supports gradients")

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None, triton: bool) -> tuple[Tensor, int]:
        size = info.batch_size
        x, weight = first(x, dims[0], size), first(weight, dims[1], size)
        bias = None if bias is None else first(bias, dims[2], size)
        flat = x.reshape(size, -1, x.shape[-1])
        out = (_Tiled if triton else _Stacked).apply(flat, weight, bias)  # type: ignore[no-untyped-call]
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


class _Tiled(torch.autograd.Function):
    """The same by kernels of Triton: convolutions of images of one position."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight, bias = products.cast(x, weight, bias)
        ctx.save_for_backward(x, weight)
        kernels = weight.transpose(1, 2).unsqueeze(1)
        return products.convolved(_image(x), kernels, bias, 1, (1, 1), (1, 1), (0, 0)).view(*x.shape[:2], -1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        slope, wants = slope.to(x.dtype).contiguous(), ctx.needs_input_grad
        of_x = of_weight = None
        if wants[0]:
            of_x = products.slope_of_images(_image(slope), weight.unsqueeze(1), 1, (1, 1), (1, 1), (0, 0)).view_as(x)
        if wants[1]:
            of_weight = products.slope_of_kernels(_image(x), _image(slope), (1, 1), (1, 1), (0, 0), True).view_as(weight)
        return of_x, of_weight, slope.sum(1) if wants[2] else None


def _image(rows: Tensor) -> Tensor:
    return rows[:, :, None, None]


def _batched(tensor: Tensor) -> bool:
    batched: bool = torch._C._functorch.is_batchedtensor(tensor)
    return batched
