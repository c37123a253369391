"""Convolutions with one kernel per client, as shifted channels-last views of the images and one batched matrix product.

``torch.func.vmap`` turns K convolutions into one with K groups, for which cuDNN has only slow algorithms. Here the columns of
each position are gathered from views of the padded images, and K clients multiply them with their kernels in one ``baddbmm``.
The output lies channels-last in memory, so that the next convolution reads it without a copy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.engines.stacking import products

__all__ = ["convolve", "first", "fits"]

Pair = tuple[int, int]


def _pair(value: Any) -> Pair | None:
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) and len(value) == 2 else None


def _settings(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[Pair, Pair, Pair, int]:
    height, width = weight.shape[-2:]
    steps, holes = _pair(stride) or (0, 0), _pair(dilation) or (0, 0)
    if padding == "same":  # torch pads one more at the end if the kernel is even
        around = (holes[0] * (height - 1), holes[1] * (width - 1))
        edges = (around[0] // 2, around[1] // 2) if not (around[0] % 2 or around[1] % 2) else (-1, -1)
    else:
        edges = (0, 0) if padding == "valid" else (_pair(padding) or (-1, -1))
    return steps, edges, holes, groups


def fits(*args: Any, **kwargs: Any) -> bool:
    """Return whether ``F.conv2d`` with these arguments, for one client, can be computed by `convolve`."""
    (rows, columns), edges, (down, right), groups = _settings(*args, **kwargs)
    return groups == 1 and args[0].dim() == 4 and down == right == 1 and min(rows, columns) >= 1 and min(edges) >= 0


def convolve(*args: Any, triton: bool = False, **kwargs: Any) -> Tensor:
    """Return ``F.conv2d(...)`` of one client, as called under ``vmap``.

    Args:
        *args: of ``F.conv2d``.
        triton: whether own kernels of Triton form the columns, instead of views of the images.
        **kwargs: of ``F.conv2d``.
    """
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias")
    stride, padding, _, _ = _settings(*args, **kwargs)
    out: Tensor = _Convolution.apply(x, weight, bias, stride, padding, triton)  # type: ignore[no-untyped-call]
    return out


class _Convolution(torch.autograd.Function):
    """One client's convolution: x [B, C, H, W], weight [O, C, h, w], bias [O]."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, triton: bool) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        raise NotImplementedError("only the stacked form of the convolution supports gradients")

    @staticmethod
    def vmap(
        info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, triton: bool
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        x, weight = first(x, dims[0], size), first(weight, dims[1], size)
        bias = None if bias is None else first(bias, dims[2], size)
        stacked = _Tiled if triton else _Stacked
        out = stacked.apply(x.permute(0, 1, 3, 4, 2), weight, bias, stride, padding)  # type: ignore[no-untyped-call]
        return out.permute(0, 1, 4, 2, 3), 0


class _Stacked(torch.autograd.Function):
    """K convolutions: x [K, B, H, W, C], weight [K, O, C, h, w], bias [K, O], output [K, B, H', W', O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        x, weight, bias = products.cast(x, weight, bias)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        columns, shape = _columns(x, weight.shape[-2:], stride, padding)
        kernels = weight.permute(0, 3, 4, 2, 1).reshape(weight.shape[0], -1, weight.shape[1])  # [K, h w C, O]
        out = torch.bmm(columns, kernels) if bias is None else torch.baddbmm(bias[:, None], columns, kernels)
        return out.view(*shape, weight.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        clients, outs, ins, height, width = weight.shape
        slope, wants = slopes[0].to(x.dtype).contiguous(), ctx.needs_input_grad
        flat = slope.view(clients, -1, outs)
        of_x = of_weight = None
        if wants[1]:  # the columns are formed again: they take as much memory as h w copies of the images
            columns, _ = _columns(x, (height, width), ctx.stride, ctx.padding)
            of_weight = torch.bmm(flat.transpose(1, 2), columns).view(clients, outs, height, width, ins).permute(0, 1, 4, 2, 3)
        if wants[0]:
            of_x = _slope_of_images(slope, weight, x.shape, ctx.stride, ctx.padding)
        return of_x, of_weight, flat.sum(1) if wants[2] else None, None, None


class _Tiled(torch.autograd.Function):
    """The same by kernels of Triton, which form no columns in memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        x, weight, bias = products.cast(x, weight, bias)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        width = weight.shape[-1]
        size = [(x.shape[2 + d] + 2 * padding[d] - weight.shape[3 + d]) // stride[d] + 1 for d in (0, 1)]
        return products.convolved(x, _kernels(weight), bias, width, size, stride, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        clients, outs, ins, height, width = weight.shape
        slope, wants = slopes[0].to(x.dtype).contiguous(), ctx.needs_input_grad
        of_x = of_weight = None
        if wants[1]:
            found = products.slope_of_kernels(x, slope, (height, width), ctx.stride, ctx.padding, False)
            of_weight = found.view(clients, height, width, ins, outs).permute(0, 4, 3, 1, 2)
        if wants[0]:
            kernels = _kernels(weight.transpose(1, 2))
            of_x = products.slope_of_images(slope, kernels, width, x.shape[2:4], ctx.stride, ctx.padding)
        return of_x, of_weight, slope.sum((1, 2, 3)) if wants[2] else None, None, None


def _kernels(weight: Tensor) -> Tensor:
    """Return weights [K, O, C, h, w] as kernels [K, h w, C, O], whose values of one position and output lie next to each other."""
    return weight.permute(0, 1, 3, 4, 2).flatten(2, 3).contiguous().permute(0, 2, 3, 1)


def _columns(x: Tensor, kernel: Pair | torch.Size, stride: Pair, padding: Pair) -> tuple[Tensor, tuple[int, ...]]:
    """Return what each output position sees, shape [K, B H' W', h w C], and (K, B, H', W')."""
    padded = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    shape = (*x.shape[:2], *((padded.shape[2 + d] - kernel[d]) // stride[d] + 1 for d in (0, 1)))
    views = [_shifted(padded, at, shape, stride) for at in _places(kernel)]
    columns = views[0] if len(views) == 1 else torch.stack(views, 4)
    return columns.reshape(x.shape[0], shape[1] * shape[2] * shape[3], -1), shape


def _places(kernel: Pair | torch.Size) -> list[Pair]:
    return [(i, j) for i in range(kernel[0]) for j in range(kernel[1])]


def _shifted(padded: Tensor, at: Pair, shape: tuple[int, ...], stride: Pair) -> Tensor:
    """Return what one tap of the kernel sees: a view of the padded images, shape [K, B, H', W', C]."""
    (i, j), (down, right) = at, stride
    return padded[:, :, i : i + down * (shape[2] - 1) + 1 : down, j : j + right * (shape[3] - 1) + 1 : right]


def _slope_of_images(slope: Tensor, weight: Tensor, size: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """Return the gradient of the images, shape [K, B, H, W, C]."""
    clients, outs, ins, height, width = weight.shape
    edges = (height - 1 - padding[0], width - 1 - padding[1])
    if stride == (1, 1) and min(edges) >= 0:  # again a convolution, with the kernels turned around
        columns, shape = _columns(slope, (height, width), stride, edges)
        kernels = weight.flip(3, 4).permute(0, 3, 4, 1, 2).reshape(clients, height * width * outs, ins)
        return torch.bmm(columns, kernels).view(*shape, ins)
    flat, shape = slope.view(clients, -1, outs), tuple(slope.shape[:4])
    padded = slope.new_zeros(clients, size[1], size[2] + 2 * padding[0], size[3] + 2 * padding[1], ins)
    for i, j in _places((height, width)):
        _shifted(padded, (i, j), shape, stride).add_(torch.bmm(flat, weight[..., i, j]).view(*shape, ins))
    return padded[:, :, padding[0] : padding[0] + size[2], padding[1] : padding[1] + size[3]]


def first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Return the tensor behind a value of ``vmap``, with the clients first; one without clients is repeated."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
