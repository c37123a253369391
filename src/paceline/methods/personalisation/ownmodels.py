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
from paceline.tasks.schemas import schema_of

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
    changes_model: ClassVar[bool] = False
    """Whether networks differ from the task's model even without `models`."""

    models: tuple[str, ...] = ()

    def check(self, fed: Federation) -> list[str]:
        """Require features of the same width in all architectures, and a task that sets nothing about its own model alone."""
        zoo = architectures(fed)
        try:
            widths = {text: head(zoo.trained(text)[0].module).in_features for text in self.models or ("",)}
        except ConfigError as error:
            return [str(error)]
        wide = [f"the architectures have features of different widths: {widths}"] if len(set(widths.values())) > 1 else []
        return wide + self.lost(fed)

    def lost(self, fed: Federation) -> list[str]:
        """Return what of the task's own model these networks would lose without a word."""
        task, found = architectures(fed).task, []
        schema = schema_of(task)
        if schema is not None and schema.standardize == "federated":
            found.append(f"{self.slug()} sends no model, which standardize=federated scales inputs with; use standardize=schema")
        if task.trainable is not None and (any(self.models) or self.changes_model):
            found.append(
                f"{self.slug()} trains networks other than the task's model, of which only {task.trainable} is to be trained"
            )
        return found

    def shape(self, fed: Federation) -> tuple[int, int]:
        """Return (number of classes, width of the features)."""
        layer = head(architectures(fed).trained(self.models[0] if self.models else "")[0].module)
        return layer.out_features, layer.in_features

    def own(self, client: Client) -> tuple[Resident, Params]:
        """Return, on a client, the resident module of its architecture, and its parameters."""
        model, initial = architectures(client).trained(client.assigned(self.models or ("",)))
        kept = client.memory.get("network")
        return model, initial.to(model.device) if kept is None else kept

    def keep(self, client: Client, params: Params) -> None:
        """Store the client's network."""
        client.memory["network"] = params

    def class_sums(self, client: Client, model: Resident, params: Params, by_batch: int | None = None) -> ClassSums:
        """Return the sums of a network's features over the client's training samples."""
        client.flops += model.flops * client.num_samples
        return class_sums(model, params, client.train, client.problem, by_batch)

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
