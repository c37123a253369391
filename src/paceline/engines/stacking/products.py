"""Stacked convolutions and linear layers through the Triton kernels of `paceline.engines.stacking.tiles`.

They are operators of torch, so that ``torch.compile`` and CUDA graphs treat them like its own.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paceline.core.precision import is_float32

__all__ = ["available", "cast", "convolved", "slope_of_images", "slope_of_kernels", "stepped"]

_BLOCK = 1024
"""Values that a program of `stepped` computes."""

_PROGRAMS = 1024
"""Programs that a launch should have, so that every multiprocessor has several: sums with fewer tiles are split into parts."""


@functools.cache
def available(kind: str) -> bool:
    """Return whether the kernels run on devices of a type: where Triton is installed, as it is with torch for GPUs on Linux."""
    return kind == "cuda" and importlib.util.find_spec("triton") is not None


def cast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return tensors in the dtype of mixed precision, if it is on."""
    kind = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def convolved(
    x: Tensor, kernels: Tensor, bias: Tensor | None, across: int, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return K convolutions.

    Args:
        x: images, any strides, shape [K, B, H, W, C].
        kernels: any strides, shape [K, taps, C, O].
        bias: shape [K, O].
        across: width of a kernel.
        size: (H', W') of the outputs.
        stride, padding: of the convolution.

    Returns:
        contiguous, shape [K, B, H', W', O].
    """
    out: Tensor = _gathered(x, kernels, bias, across, size, stride, padding, False)
    return out


def slope_of_images(
    slope: Tensor, kernels: Tensor, across: int, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the gradient of a convolution's images, contiguous, shape [K, B, H, W, C].

    Args:
        slope: gradient of the outputs, any strides, shape [K, B, H', W', O].
        kernels: any strides, shape [K, taps, O, C].
        across: width of a kernel.
        size: (H, W) of the images.
        stride, padding: of the convolution.
    """
    out: Tensor = _gathered(slope, kernels, None, across, size, stride, padding, True)
    return out


def slope_of_kernels(
    x: Tensor, slope: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], outs_first: bool
) -> Tensor:
    """Return the gradient of a convolution's kernels, contiguous: [K, taps, C, O], or [K, O, taps, C] as weights of linear layers.

    Args:
        x: images, any strides, shape [K, B, H, W, C].
        slope: gradient of the outputs, contiguous, shape [K, B, H', W', O].
        kernel: height and width of a kernel.
        stride, padding: of the convolution.
        outs_first: whether the outputs come first.
    """
    out: Tensor = _weighed(x, slope, kernel, stride, padding, outs_first)
    return out


def stepped(at: Tensor, start: Tensor, slope: Tensor, lr: float) -> None:
    """Write ``at = start - lr slope``, in one pass.

    Args:
        at: parts of rows, shape [K, ...]; a client's values lie next to each other.
        start: the same, or one row for all clients, expanded.
        slope: contiguous, of the same shape.
        lr: step.
    """
    from paceline.engines.stacking import tiles

    clients, size = len(at), at[0].numel()
    grid = (-(-size // _BLOCK), clients, 1)
    tiles.launch(tiles.step, grid, at, start, slope, size, at.stride(0), start.stride(0), lr, B=_BLOCK, num_warps=4)


def _precision(kind: torch.dtype) -> str:
    """Return how Triton multiplies: what `set_precision` chose."""
    if kind != torch.float32:
        return "ieee"
    return "tf32x3" if is_float32() else "tf32"


def _parts(tiles: int, steps: int) -> tuple[int, int]:
    """Return into how many parts a sum of `steps` blocks is split, and the blocks of each."""
    parts = max(1, min(_PROGRAMS // max(tiles, 1), steps // 4))
    share = -(-steps // parts)
    return -(-steps // share), share


def _tile(size: int, most: int) -> int:
    """Return the power of two that covers `size`, from 16 to `most`."""
    return max(16, min(most, 1 << (size - 1).bit_length()))


def _high(values: Tensor) -> Tensor:
    """Return float32 values without the bits that a TF32 product ignores."""
    return (values.view(torch.int32) & -8192).view(torch.float32)


@torch.library.custom_op("paceline::gathered", mutates_args=())
def _gathered(
    x: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    across: int,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    transposed: bool,
) -> Tensor:
    from paceline.engines.stacking import tiles

    clients, images, height, width, channels = x.shape
    taps, outs = kernels.shape[1], kernels.shape[3]
    positions, total = images * size[0] * size[1], taps * channels
    flat = taps == size[0] * size[1] == height * width == 1
    m, n, r = _tile(positions, 128), _tile(outs, 64), _tile(total, 64)
    blocks = (-(-positions // m), -(-outs // n))
    parts, share = _parts(blocks[0] * blocks[1] * clients, -(-total // r))
    out = x.new_empty(parts, clients, positions, outs, dtype=x.dtype if parts == 1 else torch.float32)
    split = x.dtype == torch.float32 and is_float32() and not flat
    top = _high(kernels) if split else kernels
    tiles.launch(
        tiles.gather, (*blocks, clients * parts),
        x, top, kernels - top if split else kernels, x if bias is None else bias.contiguous(), out,
        positions, outs, channels, taps, across, size[1], size[0] * size[1], height, width,
        *x.stride(), *kernels.stride(), *out.stride()[:3], share * r,
        *padding, *stride, FLAT=flat, TRANSPOSED=transposed, BIAS=bias is not None and parts == 1, PARTS=parts,
        SPLIT=split, M=m, N=n, R=r, PRECISION=_precision(x.dtype), num_warps=2 if m == 16 else 8 if n <= 32 else 4, num_stages=2,
    )  # fmt: skip
    whole = out[0]
    if parts > 1:
        whole = out.sum(0) if bias is None else out.sum(0).add_(bias[:, None])
    return whole.to(x.dtype).view(clients, images, *size, outs)


@_gathered.register_fake
def _(
    x: Tensor, kernels: Tensor, bias: Any, across: int, size: Sequence[int], stride: Any, padding: Any, transposed: bool
) -> Tensor:
    return x.new_empty(*x.shape[:2], *size, kernels.shape[3])


@torch.library.custom_op("paceline::weighed", mutates_args=())
def _weighed(
    x: Tensor, slope: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], outs_first: bool
) -> Tensor:
    from paceline.engines.stacking import tiles

    clients, images, height, width, channels = x.shape
    taps, (high, wide, outs) = kernel[0] * kernel[1], slope.shape[2:]
    positions, total = images * high * wide, taps * channels
    flat = taps == high * wide == height * width == 1
    r, n, p = _tile(total, 128 if flat else 64), _tile(outs, 32 if flat else 64), 16
    blocks = (-(-total // r), -(-outs // n))
    parts, share = _parts(blocks[0] * blocks[1] * clients, -(-positions // p))
    shape = (parts, clients, outs, taps, channels) if outs_first else (parts, clients, taps, channels, outs)
    out = x.new_empty(shape, dtype=slope.dtype if parts == 1 else torch.float32)
    tiles.launch(
        tiles.weigh, (*blocks, clients * parts),
        x, slope, out,
        positions, outs, channels, taps, kernel[1], wide, high * wide, height, width,
        *x.stride(), slope.stride(0), outs, *(out.permute(0, 1, 3, 4, 2) if outs_first else out).stride(), share * p,
        *padding, *stride, FLAT=flat, PARTS=parts, R=r, N=n, P=p, PRECISION=_precision(x.dtype), num_warps=4 if flat else 2, num_stages=3,
    )  # fmt: skip
    return (out[0] if parts == 1 else out.sum(0)).to(slope.dtype)


@_weighed.register_fake
def _(x: Tensor, slope: Tensor, kernel: Sequence[int], stride: Any, padding: Any, outs_first: bool) -> Tensor:
    taps, channels, outs = kernel[0] * kernel[1], x.shape[4], slope.shape[4]
    shape = (outs, taps, channels) if outs_first else (taps, channels, outs)
    return slope.new_empty(x.shape[0], *shape)
