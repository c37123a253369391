"""Optimizers of the local loop: they map gradients to step directions.

One object serves a single model and a stack: all arithmetic is element-wise on flat vectors, shape [d], or [K, d] for K
stacked clients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paceline.core.errors import ConfigError

__all__ = ["PLAIN_SGD", "SGD", "AdamW", "Optimizer", "OptimizerPart", "Parts", "Schedule"]

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


class OptimizerPart(NamedTuple):
    """Consecutive coordinates with an optimizer of their own.

    Args:
        size: number of coordinates.
        optimizer: for them; a learning rate of None is that of the whole vector, and its schedule does not count.
        every: they move in each such step, from step 0 on.
    """

    size: int
    optimizer: Optimizer
    every: int = 1


@dataclass(frozen=True)
class Parts(Optimizer):
    """An optimizer for each part of the vector, like the parameter groups of ``torch.optim``.

    Args:
        lr: learning rate of the parts without one of their own; at 0 nothing moves. None only if no part has one.
        weight_decay: does not count; each part has its own.
        schedule: ``(step, steps) -> factor`` on all learning rates.
        parts: consecutive parts of the parameters; all of them together.

    Raises:
        ConfigError: parts have learning rates and `lr` is None.

    Example:
        >>> rule = Parts(0.1, parts=(OptimizerPart(1, SGD()), OptimizerPart(2, SGD(0.05, momentum=0.9))))
        >>> state = rule.state(torch.zeros(3))
        >>> [rule.direction(step, torch.ones(3), torch.zeros(3), state).tolist() for step in range(2)]
        [[1.0, 0.5, 0.5], [1.0, 0.949999988079071, 0.949999988079071]]
    """

    parts: tuple[OptimizerPart, ...] = ()

    def __post_init__(self) -> None:
        """Check the learning rates."""
        if self.lr is None and any(part.optimizer.lr is not None for part in self.parts):
            raise ConfigError("Parts with learning rates of their own need lr, to which they are compared; pass the task's lr")

    def state(self, weights: Tensor) -> list[Tensor]:
        """Return the states of all parts, one after another."""
        return [value for part, own in zip(self.parts, self._split(weights), strict=True) for value in part.optimizer.state(own)]

    def direction(self, step: int, gradient: Tensor, weights: Tensor, state: list[Tensor]) -> Tensor:
        """Return the directions of all parts, each multiplied by the ratio of its learning rate to `lr`."""
        found, states = [], iter(state)
        for part, slope, own in zip(self.parts, self._split(gradient), self._split(weights), strict=True):
            rule = part.optimizer
            stored = list(islice(states, len(rule.state(own[..., :0]))))
            ratio = 1.0 if rule.lr is None else rule.lr / self.lr if self.lr else 0.0
            if ratio and step % part.every == 0:
                along = rule.direction(step // part.every, slope, own, stored)
                found.append(along if ratio == 1.0 else along * ratio)
            else:
                found.append(torch.zeros_like(slope))
        return torch.cat(found, -1)

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        return torch.split(values, [part.size for part in self.parts], -1)
