"""Methods that average one part of the model; the rest is each client's own and never leaves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from paceline.blocks.architectures import architectures
from paceline.blocks.local_training import LocalTraining
from paceline.core.client import Client, Trained
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.layout import Layout
from paceline.core.method import State, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.models.split import join, take

__all__ = ["SharedPart"]


@dataclass(frozen=True)
class SharedPart(LocalTraining):
    """Base of methods that average all tensors but those that `own` selects.

    A client's own tensors begin with the run's initial values. A client without samples uses the shared part with its own.
    """

    family: ClassVar[str] = "personalisation"
    client_state: ClassVar[str] = "its own part of the model"
    reveals: ClassVar[str] = "sums of updates of the shared part"
    has_model: ClassVar[bool] = False
    sends_model: ClassVar[bool] = False

    def own(self, module: nn.Module) -> Callable[[str], bool]:
        """Return the predicate on the names of a client's own tensors.

        Raises:
            ConfigError: the module has no such part.
        """
        raise NotImplementedError

    def check(self, fed: Federation) -> list[str]:
        """Require a model that has both parts."""
        try:
            module = architectures(fed).resident().module
            layout = fed.init_params().layout
            sizes = [self.part(layout, module, own).size for own in (True, False)]
        except ConfigError as error:
            return [str(error)]
        return [] if all(sizes) else [f"{self.slug()} needs a model with a part of each client's own and one to share"]

    def init(self, fed: Federation) -> State:
        """Start with the shared part of the initial model."""
        params = fed.init_params()
        return State(params=take(params, self.part(params.layout, architectures(fed).resident().module, own=False)))

    def part(self, layout: Layout, module: nn.Module, own: bool) -> Layout:
        """Return the layout of the client's own tensors, or of the shared ones."""
        chosen = self.own(module)
        return layout.part(lambda e: chosen(e.name) == own)

    def round(self, fed: Federation, state: State) -> State:
        """Average the shared part over the cohort."""
        mean = fed.mean(self.train, state.params, over=fed.sample())
        return State(params=state.params + mean.delta)

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train both parts; store the own one and return the change of the shared one."""
        start = self.personal_model(client, message)
        local = self.fit(client, start)
        client.memory["own"] = take(local.params, self.part(start.layout, client.model.module, own=True))
        delta = take(local.params, message.layout) - message
        return Update(delta=delta, loss=local.loss, weight=self.weight(client))

    def fit(self, client: Client, start: Params) -> Trained:
        """Train from `start`, shape [d]."""
        return client.sgd(start, **self.local(client), hooks=self.hooks(client, start))

    def weight(self, client: Client) -> float:
        """Return the client's weight in the mean."""
        return client.num_samples

    def personal_model(self, client: Client, message: Params) -> Params:
        """Join the shared part and the client's own."""
        first = take(architectures(client).initial(), client.model.layout).to(client.device)
        return join(join(first, client.memory.get("own", {})), message)
