"""Augmentation that is learnt: its curriculum, draws of operations, the mixed picture that a policy is trained by, and its loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from paceline.core.hooks import Loss

__all__ = ["curriculum", "explored", "mixed", "remapped", "without_replacement"]


def curriculum(epoch: float, scale: float) -> float:
    """Return rho, the share of a batch that is augmented after some epochs."""
    return min(math.tanh(epoch / scale) + 0.01, 1.0)


def mixed(x: Tensor, versions: Tensor, levels: Tensor, logs: Tensor) -> Tensor:
    """Return sum_j p_j A_j, whose derivative with respect to a level m_j is p_j in each pixel, shape [B, C, H, W].

    Args:
        x: pictures, shape [B, C, H, W].
        versions: A_j, constants, shape [B, J, C, H, W].
        levels, logs: m, and logarithms of p, shape [B, J].
    """
    through = (levels - levels.detach())[..., None, None, None]
    return ((versions + through) * logs.exp()[..., None, None, None]).sum(1).to(x)


def without_replacement(logs: Tensor, noise: Tensor, count: int) -> Tensor:
    """Return `count` numbers drawn one after another without replacement, int64 [B, count] (Gumbel).

    Args:
        logs: logarithms of the probabilities, shape [B, J].
        noise: drawn uniformly from 0..1, shape [B, J].
        count: at most J.
    """
    keys: Tensor = logs - (-noise.clamp(1e-9, 1 - 1e-7).log()).log()
    return keys.topk(count, 1).indices


def remapped(x: Tensor, source: Tensor) -> Tensor:
    """Return pictures with the pixels at `source`, numbers of pixels or -1 for 0, shape [B, C, H, W] and [B, 1, H, W]."""
    kept = source.flatten(1).clamp(min=0).long()[:, None].expand(-1, x.shape[1], -1)
    return torch.where(source >= 0, x.flatten(2).gather(2, kept).view(x.shape), 0.0)


def explored(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    held: tuple[Tensor, Tensor],
    lr: float,
    first: bool = False,
    loss: Loss = F.cross_entropy,
) -> Tensor:
    """Return the loss on held-out samples after one step on (x, y), as a function of x; the model is a constant.

    Args:
        model: f_w, whose running statistics stay as they are.
        x, y: the batch of the step.
        held: inputs and targets of the loss.
        lr: eta.
        first: return a value whose gradient in x differs by the error of a finite difference, without second derivatives.
        loss: mean loss of (outputs, targets).
    """
    w = {name: value.detach() for name, value in model.named_parameters()}

    def value_at(at: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        statistics = {name: value.detach().clone() for name, value in model.named_buffers()}
        return loss(functional_call(model, at | statistics, (inputs,)), targets)

    inner = _slope(value_at, w, x.detach() if first else x, y)
    moved = {name: value - lr * inner[name] for name, value in w.items()}
    if not first:
        return value_at(moved, *held)
    outer = _slope(value_at, moved, *held)
    small = 0.01 / torch.cat([value.flatten() for value in outer.values()]).norm().clamp(min=1e-12)
    above, below = ({n: (value + sign * small * outer[n]).detach() for n, value in w.items()} for sign in (1.0, -1.0))
    surrogate: Tensor = -lr * (value_at(above, x, y) - value_at(below, x, y)) / (2 * small)
    return surrogate


def _slope(value: Callable[..., Tensor], at: dict[str, Tensor], *inputs: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a value in named tensors, with its graph."""
    if torch._C._are_functorch_transforms_active():
        found: dict[str, Tensor] = grad(value)(at, *inputs)
        return found
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in at.items()}  # the same, without torch.func's overhead
    slopes = torch.autograd.grad(
        value(leaves, *inputs), list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, slopes, strict=True))
