"""Hooks of the local loop: functions through which a method changes training steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paceline.core.params import Params

__all__ = ["NO_HOOKS", "Augment", "Correct", "Direction", "Gradient", "Hooks", "Loss", "Objective", "Project", "StepStream"]

Correct = Callable[[Params, Params], Params]
"""Gradient hook: (gradient, current parameters) -> gradient."""

Gradient = Callable[[Params], Params]
"""Function that returns the mean gradient of this step's batch at any point."""

Direction = Callable[[Gradient, Params], Params]
"""Hook that replaces the gradient: (gradient function, current parameters) -> step direction."""

Loss = Callable[[Any, Any], Tensor]
"""Mean loss of (outputs, targets), a scalar; outputs are whatever the module returns."""

Objective = Callable[[nn.Module, Any, Any], Tensor]
"""Mean loss of (module, inputs, targets), a scalar: for losses that need more than the module's outputs."""

Project = Callable[[Params], Params]
"""Hook on the parameters after each step."""


class StepStream(torch.Generator):
    """The random stream of one step of a local training, with the number of the step."""

    step: int = 0
    """Number of the step, from 0."""


Augment = Callable[[Any, Any, StepStream], tuple[Any, Any]]
"""Hook on each batch before its step: (inputs, targets, stream) -> (inputs, targets)."""


@dataclass(frozen=True)
class Hooks:
    """A method's changes to the steps of `Client.sgd`; without hooks, a step follows the gradient of the task's loss.

    Hooks must be pure functions of their arguments and captured values: no state between steps, no in-place changes of
    arguments, no data-dependent control flow (``.item()``, ``if tensor``), and no random numbers (those of a step come from
    `augment`). An engine can then run
    them once for many clients (`torch.func.vmap`). Captured values may differ between clients if they consist of numbers,
    tensors and `Params`. Each hook handles one client: `Params` with vectors of shape [d], where d counts the model's
    parameters and running statistics (those of a sub-model, if one is trained).

    Args:
        correct: ``(gradient, at) -> gradient``, both `Params` [d]: modifies the mean gradient of the batch at the current
            parameters `at`. Running statistics have gradient 0; values returned for them are ignored.
        direction: ``(gradient, at) -> direction``, where ``gradient(point)`` returns the mean gradient [d] of this step's
            batch at any `Params` [d]: replaces the gradient. `correct` is applied afterwards.
        objective: ``(module, inputs, targets) -> scalar``, inputs [B, ...] and targets [B, ...]: replaces model
            and loss, for losses that need more than the module's outputs.
        loss: ``(outputs, targets) -> scalar``, outputs [B, C, ...] and targets [B, ...]: replaces the task's mean loss.
        after: ``(at) -> params``, `Params` [d]: modifies the parameters after each step, for projections.
        augment: ``(inputs, targets, stream) -> (inputs, targets)``: replaces the batch of a step, with random numbers from
            `stream` alone (on the CPU), which depends on client, round and step. It runs for each client by itself and may branch;
            ``stream.step`` is the number of the step, for what changes during a training.
            Every tensor of the result has the batch as its first dimension: several views, or noise, may be a tuple of inputs.

    Example:
        FedProx adds a proximal term around the initial parameters::

            client.sgd(start, hooks=Hooks(correct=lambda gradient, at: gradient + mu * (at - start)))
    """

    correct: Correct | None = None
    direction: Direction | None = None
    objective: Objective | None = None
    loss: Loss | None = None
    after: Project | None = None
    augment: Augment | None = None

    def augmented(self, inputs: Any, targets: Any, seed: int, step: int) -> tuple[Any, Any]:
        """Return the batch of a step after the hook `augment`, which must be set.

        Args:
            inputs, targets: the batch.
            seed: of the stream of the step.
            step: number of the step, from 0.
        """
        assert self.augment is not None
        stream = StepStream()
        stream.manual_seed(seed)
        stream.step = step
        return self.augment(inputs, targets, stream)


NO_HOOKS = Hooks()
"""No hooks: plain steps."""
