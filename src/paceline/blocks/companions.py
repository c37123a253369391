"""Further networks beside the task's model: in one vector with it, so that the local loop trains all of them.

A method's `fit_task` adds them. Its objective calls them by name (``module.generator``), and gradients reach what the objective does
not detach. The outputs are those of the task's model, ``module.model``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.task import Task
from paceline.models.split import features, head, head_name

__all__ = ["Accompanied", "accompanied", "held_scores"]

Networks = Callable[[nn.Module], Mapping[str, nn.Module]]
"""Further networks of a model, by name."""


class Accompanied(nn.Module):
    """A model with further networks; called as the model is.

    Args:
        model: the task's model, with a head.
        others: the further networks, by name.
    """

    def __init__(self, model: nn.Module, others: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.head_name = f"model.{head_name(model)}"
        for name, other in others.items():
            self.add_module(name, other)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the model's outputs."""
        return self.model(*inputs, **named)

    def features(self, *inputs: Any, **named: Any) -> Tensor:
        """Return the input of the model's head, shape [N, d]."""
        return features(self.model, named or (inputs[0] if len(inputs) == 1 else inputs))


def accompanied(task: Task, networks: Networks) -> Task:
    """Return the task with further networks beside its model, whose initial values stay.

    Args:
        task: the task.
        networks: makes the networks from the model; a function at the top of a module, or a `partial` of one.

    Raises:
        ConfigError: the model has no head.
    """
    made = dataclasses.replace(task, model=partial(_beside, task.model, networks))
    module = made.build(0)
    if task.trainable is None:
        return made
    others = [f"{name}.*" for name, _ in module.named_children() if name != "model"]
    return dataclasses.replace(made, trainable=[*(f"model.{pattern}" for pattern in task.trainable), *others])


def _beside(model: Callable[[], nn.Module], networks: Networks) -> nn.Module:
    made = model()
    return Accompanied(made, networks(made))


def held_scores(module: nn.Module, features: Tensor) -> Tensor:
    """Return the head's scores of features, float32, through which no gradient reaches the head itself."""
    layer = head(module)
    bias = None if layer.bias is None else layer.bias.detach()
    return F.linear(features.to(layer.weight.dtype), layer.weight.detach(), bias).float()
