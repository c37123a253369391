"""Optimizers of the local loop: what a step descends along, given the gradient.

One object serves a single model and a stack of them: all arithmetic is element-wise on flat vectors, shape [d], or
[K, d] where K clients are stacked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["PLAIN_SGD", "SGD", "AdamW", "Optimizer", "Schedule"]

Schedule = Callable[[int, int], float]
"""Factor on the learning rate at (step from 0, this client's number of steps): a function of these two numbers alone."""


@dataclass(frozen=True)
class Optimizer(ABC):
    """Base of optimizers: a frozen dataclass of settings. State begins anew in every local training.

    Args:
        lr: learning rate; None takes the task's.
        weight_decay: strength of the decay; each optimizer says where it enters.
        schedule: ``(step, steps) -> factor`` on the learning rate.
    """

    lr: float | None = None
    weight_decay: float = field(default=0.0, kw_only=True)
    schedule: Schedule | None = field(default=None, kw_only=True)

    @property
    def plain(self) -> bool:
        """Whether every step is ``-lr * gradient``, which needs no state and no copy of the gradient."""
        return False

    @property
    def rule(self) -> tuple[Any, ...]:
        """The class and its settings without `lr` and `schedule`: what clients that are stacked must agree in."""
        return (type(self), *(value for name, value in vars(self).items() if name not in ("lr", "schedule")))

    def state(self, weights: Tensor) -> list[Tensor]:
        """Return the state before the first step: tensors of the shape of `weights`."""
        return []

    @abstractmethod
    def direction(self, step: int, gradient: Tensor, weights: Tensor, state: list[Tensor]) -> Tensor:
        """Return what a step descends along.

        Args:
            step: number of the step, from 0.
            gradient: shape [d], or [K, d] for K stacked clients.
            weights: the parameters, of the same shape; not changed.
            state: what `state` returned, for these clients; changed in place.

        Returns:
            The direction, of the same shape: the loop takes ``weights -= lr * schedule * direction``.
        """


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent: ``v <- momentum v + (gradient + weight_decay w);  w <- w - lr v``.

    Args:
        lr: learning rate; None takes the task's.
        momentum: share of the last direction that is added to the next.
        weight_decay: added to the gradient, times the weights.
        schedule: ``(step, steps) -> factor`` on the learning rate.

    >>> SGD(0.1, momentum=0.9).lr
    0.1
    """

    momentum: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether every step is ``-lr * gradient``."""
        return not (self.momentum or self.weight_decay or self.schedule)

    def state(self, weights: Tensor) -> list[Tensor]:
        """Return the velocity, where there is momentum."""
        return [torch.zeros_like(weights)] if self.momentum else []

    def direction(self, step: int, gradient: Tensor, weights: Tensor, state: list[Tensor]) -> Tensor:
        """Return the velocity, or without momentum the gradient with its decay."""
        along = gradient + self.weight_decay * weights if self.weight_decay else gradient
        return state[0].mul_(self.momentum).add_(along) if state else along


PLAIN_SGD = SGD()
"""SGD at the task's learning rate, and nothing else."""


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), with bias correction of both moments.

    Args:
        lr: learning rate; None takes the task's.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: added to the direction, times the weights; 0 by default.
        schedule: ``(step, steps) -> factor`` on the learning rate.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def state(self, weights: Tensor) -> list[Tensor]:
        """Return the first and the second moment."""
        return [torch.zeros_like(weights), torch.zeros_like(weights)]

    def direction(self, step: int, gradient: Tensor, weights: Tensor, state: list[Tensor]) -> Tensor:
        """Return the first moment over the root of the second, both corrected, and the decay."""
        (first, second), (beta1, beta2) = state, self.betas
        first.mul_(beta1).add_(gradient, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (second / (1 - beta2 ** (step + 1))).sqrt_().add_(self.eps)
        along = first / (1 - beta1 ** (step + 1)) / root
        return along + self.weight_decay * weights if self.weight_decay else along
