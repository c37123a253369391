"""Hooks of the local loop: the places where a method changes what a step does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from paceline.core.params import Params

__all__ = ["NO_HOOKS", "Correct", "Direction", "Gradient", "Hooks", "Loss", "Objective", "Project"]

Correct = Callable[[Params, Params], Params]
"""A gradient hook: (gradient, current parameters) -> gradient."""

Gradient = Callable[[Params], Params]
"""Mean gradient of this step's batch at any point."""

Direction = Callable[[Gradient, Params], Params]
"""A hook that takes the gradient's place: (gradient function, current parameters) -> what a step descends along."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of (outputs, targets), a scalar."""

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Mean loss of (module, inputs, targets), a scalar: for losses that need more than the module's outputs."""

Project = Callable[[Params], Params]
"""A hook on the parameters after a step."""


@dataclass(frozen=True)
class Hooks:
    """What a method changes of the steps of `Client.sgd`; without any, a step follows the gradient of the task's loss.

    Hooks must be pure functions of their arguments and of what they captured: they store nothing between steps, change
    no argument, ask no tensor for its value (``.item()``, ``if tensor``), and draw nothing at random. An engine can then
    run them once for many clients (`torch.func.vmap`). What they captured may differ from client to client, as long as it
    is made of numbers, tensors and `Params`. Each hook sees one client: `Params` with vectors of shape [d], where d counts
    the model's parameters and running statistics (those of a sub-model, where one is trained).

    Args:
        correct: ``(gradient, at) -> gradient``, both `Params` [d]: changes the mean gradient of the batch, at the current
            parameters `at`. Running statistics have gradient 0, and what is returned for them is ignored.
        direction: ``(gradient, at) -> direction``, where ``gradient(point)`` returns the mean gradient [d] of this step's
            batch at any `Params` [d]: takes the gradient's place. `correct` comes after it.
        objective: ``(module, inputs, targets) -> scalar``, inputs [B, ...] and targets [B, ...]: takes the place of model
            and loss, for losses that need more than the module's outputs.
        loss: ``(outputs, targets) -> scalar``, outputs [B, C, ...] and targets [B, ...]: takes the place of the task's mean
            loss.
        after: ``(at) -> params``, `Params` [d]: changes the parameters after each step, for projections.

    Example:
        FedProx pulls towards the point where training began::

            client.sgd(start, hooks=Hooks(correct=lambda gradient, at: gradient + mu * (at - start)))
    """

    correct: Correct | None = None
    direction: Direction | None = None
    objective: Objective | None = None
    loss: Loss | None = None
    after: Project | None = None


NO_HOOKS = Hooks()
"""Steps as they are without a method."""
