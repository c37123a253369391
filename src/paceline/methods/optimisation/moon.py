"""MOON (Li, He and Song, "Model-Contrastive Federated Learning", CVPR 2021).

With z, z_g and z_p the features of a sample by the local network, by the global one and by the client's last local one:

    L = CE(h(z), y) - mu * log( exp(sim(z, z_g) / tau) / (exp(sim(z, z_g) / tau) + exp(sim(z, z_p) / tau)) ),   sim the cosine

The global and the last local network are constants in evaluation mode. In a client's first training z_p = z_g, so that the contrast
has no gradient. The server sees the same as in FedAvg. A client stores its last local network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.func import functional_call

from paceline.blocks.adversarial import evaluating
from paceline.blocks.architectures import architectures
from paceline.blocks.contrastive import model_contrast
from paceline.core.client import Client, Hooks
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.hooks import NO_HOOKS
from paceline.core.method import NonNegative, Positive, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.models.split import features, head_name, scored


class _Features(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> Tensor:
        return features(self.module, x)


def features_at(module: nn.Module, params: Params, x: Any) -> Tensor:
    """Return the features of inputs by the module with other parameters, shape [B, d]."""
    here = dict(module.named_parameters()) | dict(module.named_buffers())
    weights = {f"module.{name}": value.to(here[name].dtype) for name, value in params.items()}
    found: Tensor = functional_call(_Features(module), weights, (x,))
    return found


@dataclass(frozen=True)
class Moon(FedAvg):
    """FedAvg in which features are drawn to the global model's and away from the last local model's.

    Args:
        mu: weight of the contrast; the paper tunes it in 0.1, 1, 5, 10.
        temperature: tau.
    """

    paper: ClassVar[str] = "Li, He and Song, CVPR 2021"
    headline: ClassVar[str] = "significantly outperforms other federated algorithms on various image classification tasks"
    differs: ClassVar[str] = "features are the inputs of the last layer; a task's model does not get the paper's projection head"
    client_state: ClassVar[str] = "its last local model"

    mu: NonNegative[float] = 1.0
    temperature: Positive[float] = 0.5

    def check(self, fed: Federation) -> list[str]:
        """Require a model with a head."""
        try:
            head_name(architectures(fed).resident().module)
        except ConfigError as error:
            return [str(error)]
        return []

    def hooks(self, client: Client, start: Params) -> Hooks:
        """Add the contrast with the global and the last local network."""
        if not self.mu:
            return NO_HOOKS
        last, loss, mu, temperature = client.memory.get("model", start), client.problem.loss, self.mu, self.temperature

        def objective(module: nn.Module, x: Any, y: Any) -> Tensor:
            z = features(module, x)
            with evaluating(module):
                near, far = features_at(module, start, x), features_at(module, last, x)
            return loss(scored(module, z), y) + mu * model_contrast(z, near, far, temperature)

        return Hooks(objective=objective)

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train locally; store the local network, and return the change."""
        local = client.sgd(message, **self.local(client), hooks=self.hooks(client, message))
        client.memory["model"] = local.params
        return Update(delta=local.params - message, loss=local.loss, weight=client.num_samples)
