"""Optimizers of the local loop: they map gradients to step directions.

One object serves a single model and a stack: all arithmetic is element-wise on flat vectors, shape [d], or [K, d] for K
stacked clients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["PLAIN_SGD", "SGD", "AdamW", "Optimizer", "PartSGD", "Parts", "Schedule"]

Schedule = Callable[[int, int], float]
"""Factor on the learning rate at (step from 0, this client's number of steps): a function of these two numbers only."""


@dataclass(frozen=True)
class Optimizer(ABC):
    """Base of optimizers: a frozen dataclass of settings. State is reset for every local training.

    Args:
        lr: learning rate; None uses the task's.
        weight_decay: strength of the decay; each optimizer documents how it is applied.
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
        """The class and its settings except `lr` and `schedule`; stacked clients must agree in it."""
        return (type(self), *(value for name, value in vars(self).items() if name not in ("lr", "schedule")))

    def state(self, weights: Tensor) -> list[Tensor]:
        """Return the initial state of one local training; empty for a stateless optimizer.

        Args:
            weights: parameters, shape [d], or [K, d] for K stacked clients.

        Returns:
            tensors of the shape of `weights`, which `direction` updates in place.
        """
        return []

    @abstractmethod
    def direction(self, step: int, gradient: Tensor, weights: Tensor, state: list[Tensor]) -> Tensor:
        """Return the step direction.

        Args:
            step: step number, from 0.
            gradient: shape [d], or [K, d] for K stacked clients.
            weights: parameters, of the same shape; not modified.
            state: the tensors returned by `state`, for these clients; modified in place.

        Returns:
            The direction, of the same shape: the loop applies ``weights -= lr * schedule * direction``.
        """


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent: ``v <- momentum v + (gradient + weight_decay w);  w <- w - lr v``.

    Args:
        lr: learning rate; None uses the task's.
        momentum: share of the previous direction that is added to the next.
        weight_decay: factor of the weights that is added to the gradient.
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
        """Return the velocity if there is momentum, otherwise nothing."""
        return [torch.zeros_like(weights)] if self.momentum else []

    def direction(self, step: int, gradient: Tensor, weights: Tensor, state: list[Tensor]) -> Tensor:
        """Return the velocity; without momentum, the gradient with weight decay."""
        along = gradient + self.weight_decay * weights if self.weight_decay else gradient
        return state[0].mul_(self.momentum).add_(along) if state else along


@dataclass(frozen=True)
class PartSGD(SGD):
    """SGD with a learning rate and a momentum for each part of the vector, like the parameter groups of ``torch.optim``.

    Args:
        lr, momentum, weight_decay, schedule: see `SGD`.
        parts: (number of values, factor on `lr`, momentum) of consecutive parts of the parameters; all of them together.

    Example:
        >>> rule, w = PartSGD(0.1, parts=((1, 1.0, 0.0), (2, 0.5, 0.9))), torch.zeros(3)
        >>> state = rule.state(w)
        >>> [rule.direction(step, torch.ones(3), w, state).tolist() for step in range(2)]
        [[1.0, 0.5, 0.5], [1.0, 0.949999988079071, 0.949999988079071]]
    """

    parts: tuple[tuple[int, float, float], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether every step is ``-lr * gradient``: no."""
        return False

    def state(self, weights: Tensor) -> list[Tensor]:
        """Return the velocity, and the factor and the momentum of each value."""
        counts = torch.tensor([count for count, _, _ in self.parts])
        given = [torch.tensor([part[place] for part in self.parts]).repeat_interleave(counts) for place in (1, 2)]
        return [torch.zeros_like(weights), *(values.to(weights).expand_as(weights) for values in given)]

    def direction(self, step: int, gradient: Tensor, weights: Tensor, state: list[Tensor]) -> Tensor:
        """Return the velocity times the factors."""
        velocity, factor, momentum = state
        along = gradient + self.weight_decay * weights if self.weight_decay else gradient
        return velocity.mul_(momentum).add_(along) * factor


PLAIN_SGD = SGD()
"""Plain SGD at the task's learning rate."""


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), with bias correction of both moments.

    Args:
        lr: learning rate; None uses the task's.
        betas: decay rates of the first and second moments.
        eps: added to the square root of the second moment.
        weight_decay: factor of the weights that is added to the direction; 0 by default.
        schedule: ``(step, steps) -> factor`` on the learning rate.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def state(self, weights: Tensor) -> list[Tensor]:
        """Return zero first and second moments."""
        return [torch.zeros_like(weights), torch.zeros_like(weights)]

    def direction(self, step: int, gradient: Tensor, weights: Tensor, state: list[Tensor]) -> Tensor:
        """Return the bias-corrected first moment over the root of the second, plus weight decay."""
        (first, second), (beta1, beta2) = state, self.betas
        first.mul_(beta1).add_(gradient, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (second / (1 - beta2 ** (step + 1))).sqrt_().add_(self.eps)
        along = first / (1 - beta1 ** (step + 1)) / root
        return along + self.weight_decay * weights if self.weight_decay else along


@dataclass(frozen=True)
class Parts(Optimizer):
    """Two optimizers, one for the first coordinates and one for the rest, which may move in a part of the steps only.

    Args:
        lr: learning rate of `head`; at 0 nothing moves.
        head: optimizer of the first `count` coordinates; its own `lr` and `schedule` do not count.
        tail: optimizer of the rest, with a learning rate of its own.
        count: number of coordinates of `head`.
        every: the rest moves in each such step, from step 0 on.
    """

    head: Optimizer = PLAIN_SGD
    tail: Optimizer = PLAIN_SGD
    count: int = 0
    every: int = 1

    def state(self, weights: Tensor) -> list[Tensor]:
        """Return the states of both, one after another."""
        return self.head.state(weights[..., : self.count]) + self.tail.state(weights[..., self.count :])

    def direction(self, step: int, gradient: Tensor, weights: Tensor, state: list[Tensor]) -> Tensor:
        """Return the directions of both; that of the rest is multiplied by the ratio of the learning rates."""
        first, rest, own = slice(0, self.count), slice(self.count, None), len(self.head.state(weights[..., :0]))
        along = torch.zeros_like(gradient)
        along[..., first] = self.head.direction(step, gradient[..., first], weights[..., first], state[:own])
        if self.lr and self.tail.lr and step % self.every == 0:
            moved = self.tail.direction(step // self.every, gradient[..., rest], weights[..., rest], state[own:])
            along[..., rest] = moved * (self.tail.lr / self.lr)
        return along
