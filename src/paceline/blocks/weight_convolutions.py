"""Convolutions over weights: operators that turn the tensors of a large model into those of a smaller one, and back (FedConv).

For one tensor [o, i, ...] with o', i' rows and columns in the smaller model, each position of a convolution's window has a
projection p(X) = a X + c and a kernel K of (o - o' + 1) x (i - i' + 1), weight-normalised, K = g V / |V|:
    compression   Y = act(K * (p(X) + X)) for convolutions, act(K * p(X)) for matrices, act(K * X) for vectors; valid, stride 1
    dilation      the same with transposed convolutions, from the small shape to the large one
    act           0.85 x for x > 0, 0.001 x otherwise, applied `times` times
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.layout import Layout
from paceline.core.params import Params

__all__ = ["KernelStart", "WeightConvolution", "activated", "convolved"]

KernelStart = Literal["mean", "corner"]
"""Initial kernels: ``mean`` averages their window; ``corner`` selects the first rows and columns, as a prefix cut does."""


def activated(x: Tensor, times: int = 1) -> Tensor:
    """Return the activation of weights: 0.85 x for x > 0 and 0.001 x otherwise, `times` times.

    Example:
        >>> activated(torch.tensor([2.0, -2.0])).tolist()
        [1.7000000476837158, -0.0020000000949949026]
    """
    for _ in range(times):
        x = torch.where(x > 0, 0.85 * x, 0.001 * x)
    return x


def convolved(x: Tensor, kernel: Tensor, transposed: bool = False) -> Tensor:
    """Return the valid (or the transposed) convolution of each matrix with its own kernel.

    Args:
        x: shape [P, o, i].
        kernel: shape [P, h, w].
        transposed: return shape [P, o + h - 1, i + w - 1] in place of [P, o - h + 1, i - w + 1].
    """
    convolution: Any = F.conv_transpose2d if transposed else F.conv2d
    out: Tensor = convolution(x.unsqueeze(0), kernel.unsqueeze(1), groups=len(x))
    return out.squeeze(0)


class WeightConvolution(nn.Module):
    """Operators of all parameters of a model; buffers are not mapped.

    Args:
        source, target: layouts of the models before and after, with the same tensor names; the smaller one is no larger in any dimension.
        times: of the activation.
        start: of the kernels.
    """

    def __init__(self, source: Layout, target: Layout, times: int = 2, start: KernelStart = "mean") -> None:
        super().__init__()
        self.transposed, self.times = target.size > source.size, times
        self.entries = [entry for entry in source.entries if entry.kind == "param"]
        self.maps = nn.ModuleList()
        for entry in self.entries:
            rows, columns = _sides(entry.shape)
            others = _sides(target.by_name[entry.name].shape)
            positions = entry.size // (rows * columns)
            self.maps.append(
                _TensorMap(len(entry.shape), positions, (abs(rows - others[0]) + 1, abs(columns - others[1]) + 1), start)
            )

    def forward(self, source: Params) -> dict[str, Tensor]:
        """Return the generated parameters by name; their gradient reaches the operators, not `source`."""
        made = {}
        for entry, operator in zip(self.entries, self.maps, strict=True):
            tensor = source[entry.name].detach()
            rows, columns = _sides(tuple(tensor.shape))
            window = tuple(tensor.shape[2:])
            images = tensor.reshape(rows, columns, -1).permute(2, 0, 1) if len(entry.shape) > 1 else tensor.reshape(1, 1, -1)
            out = activated(operator(images, self.transposed), self.times)
            shape = (*out.shape[1:], *window)
            made[entry.name] = out.permute(1, 2, 0).reshape(shape) if len(entry.shape) > 1 else out.reshape(-1)
        return made

    def fill(self, source: Params, onto: Params) -> Params:
        """Return `onto` with its parameters replaced by those generated from `source`."""
        with torch.no_grad():
            made, out = self(source), onto.clone()
            for name, value in made.items():
                out[name].copy_(value)
        return out


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns that a convolution over a tensor shrinks."""
    return (shape[0], shape[1]) if len(shape) > 1 else (1, shape[0] if shape else 1)


class _TensorMap(nn.Module):
    """The operator of one tensor: a projection and a kernel for each position of its window."""

    def __init__(self, dims: int, positions: int, size: tuple[int, int], start: KernelStart) -> None:
        super().__init__()
        self.residual, self.projected = dims > 2, dims > 1
        first = torch.zeros(positions, *size)
        first[:, 0, 0] = 1.0
        count = size[0] * size[1]
        self.direction = nn.Parameter(torch.ones(positions, *size) if start == "mean" else first)
        self.length = nn.Parameter(torch.full((positions,), count**-0.5 if start == "mean" else 1.0))
        if self.projected:
            self.scale = nn.Parameter(torch.full((positions,), 0.0 if self.residual else 1.0))
            self.shift = nn.Parameter(torch.zeros(positions))

    def forward(self, x: Tensor, transposed: bool) -> Tensor:
        """Return the image of `x`, shape [positions, rows, columns]."""
        if self.projected:
            change = self.scale[:, None, None] * x + self.shift[:, None, None]
            x = change + x if self.residual else change
        norms = self.direction.square().sum((1, 2)).clamp(min=1e-24).sqrt()
        return convolved(x, self.direction * (self.length / norms)[:, None, None], transposed)
