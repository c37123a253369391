"""Shared parts of methods with private networks: each client trains and is evaluated with its own model.

The network, of any architecture, is stored in the client's memory. Only what a method sends leaves the client, so
clients need to agree only on the width of their features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from paceline.blocks.architectures import architectures
from paceline.blocks.local_training import LocalTraining
from paceline.blocks.prototypes import ClassSums, class_sums
from paceline.core.client import Client, ClientData
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.hooks import Correct
from paceline.core.layout import Layout
from paceline.core.method import S
from paceline.core.params import Params, Resident
from paceline.core.tree import Tree
from paceline.models.split import head

__all__ = ["OwnModels", "clipped", "named"]


@dataclass(frozen=True)
class OwnModels(LocalTraining[S]):
    """Base of methods whose clients store their own networks.

    Args:
        models: architectures, assigned to clients in turn, such as ``mlp:hidden=64-32``; empty means the task's.
    """

    family: ClassVar[str] = "personalisation"
    client_state: ClassVar[str] = "its own network"
    has_model: ClassVar[bool] = False
    sends_model: ClassVar[bool] = False

    models: tuple[str, ...] = ()

    def check(self, fed: Federation) -> list[str]:
        """Require features of the same width in all architectures."""
        try:
            widths = {text: head(architectures(fed).resident(text).module).in_features for text in self.models or ("",)}
        except ConfigError as error:
            return [str(error)]
        return [f"the architectures have features of different widths: {widths}"] if len(set(widths.values())) > 1 else []

    def shape(self, fed: Federation) -> tuple[int, int]:
        """Return (number of classes, width of the features)."""
        layer = head(architectures(fed).resident(self.models[0] if self.models else "").module)
        return layer.out_features, layer.in_features

    def own(self, client: Client) -> tuple[Resident, Params]:
        """Return, on a client, the resident module of its architecture, and its parameters."""
        text, zoo = client.assigned(self.models or ("",)), architectures(client)
        model, kept = zoo.resident(text), client.memory.get("network")
        return model, zoo.initial(text).to(model.device) if kept is None else kept

    def keep(self, client: Client, params: Params) -> None:
        """Store the client's network."""
        client.memory["network"] = params

    def class_sums(self, client: Client, model: Resident, params: Params, by_batch: int | None = None) -> ClassSums:
        """Return the sums of a network's features over the client's training samples."""
        client.flops += model.flops * client.num_samples
        return class_sums(model, params, client.train, client.problem.num_classes, by_batch)

    def assess(self, client: Client, message: Tree, data: ClientData) -> dict[str, Any]:
        """Evaluate the client's own network."""
        model, params = self.own(client)
        return client.evaluate(params, data, model=model)


def named(**tensors: Tensor) -> Params:
    """Return tensors as one vector with named entries, for example what a method without a global model shares."""
    layout = Layout.build([(name, tuple(t.shape), "param") for name, t in tensors.items()])
    out = Params(next(iter(tensors.values())).new_zeros(layout.size), layout)
    for name, tensor in tensors.items():
        out[name].copy_(tensor)
    return out


def clipped(norm: float) -> Correct | None:
    """Return a gradient hook that scales gradients longer than `norm` down to it; None for a norm of 0."""
    return None if not norm else lambda grad, _: grad * (norm / grad.norm().clamp(min=norm))
