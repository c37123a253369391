"""A classifier with a policy head on its own features, which says how to augment each picture."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from paceline.core.columns import Samples
from paceline.models.split import features, head, head_name

__all__ = ["WithPolicy", "with_policy"]


class WithPolicy(nn.Module):
    """A classifier, called as before, and a policy head that it does not call.

    Args:
        model: the classifier, which can be split into features and head.
        operations: number of operations J.
        hidden: number of hidden layers of 128 units of the policy head.
    """

    def __init__(self, model: nn.Module, operations: int, hidden: int = 0) -> None:
        super().__init__()
        sizes = [head(model).in_features, *[128] * hidden, 2 * operations]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        self.model, self.policy = model, nn.Sequential(*layers[:-1])

    @property
    def head_name(self) -> str:
        """Name of the classifier's head."""
        return f"model.{head_name(self.model)}"

    def features(self, x: Samples) -> Tensor:
        """Return the input of the head, shape [B, d]."""
        return features(self.model, x)

    def forward(self, *inputs: Tensor, **named: Tensor) -> object:
        """Return the classifier's outputs."""
        return self.model(*inputs, **named)

    def levels(self, features: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return levels in (0, 1) and logarithms of the probabilities of the operations for features [B, d], both [B, J]."""
        level, score = self.policy(features).chunk(2, 1)
        return torch.sigmoid(level), torch.log_softmax(score / temperature, 1)


def with_policy(model: Callable[[], nn.Module], operations: int, hidden: int = 0) -> WithPolicy:
    """Build a model with a policy head, with torch's global random state."""
    return WithPolicy(model(), operations, hidden)
