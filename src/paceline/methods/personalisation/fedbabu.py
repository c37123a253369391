"""FedBABU (Oh, Kim and Yun, "FedBABU: Toward Enhanced Representation for Federated Image Classification", ICLR 2022).

    a client trains the body; the head keeps its initial values, which are the same for all
    body <- sum_u n_u body_u / sum_u n_u;   for personal use, a client fine-tunes body and initial head

The server sees the weighted sum of updates of the body. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from paceline.blocks.architectures import architectures
from paceline.core.client import Client, Hooks
from paceline.core.federation import Federation
from paceline.core.hooks import NO_HOOKS
from paceline.core.method import NonNegative, State, on_client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.methods.personalisation.fedper import FedPer
from paceline.models.split import join, take


@dataclass(frozen=True)
class FedBABU(FedPer):
    """FedAvg of everything but the head, which nobody trains before personal use.

    Args:
        finetune: what a client trains for personal use: ``all``, or only the ``head`` or the ``body``.
        tune_epochs: passes over the client's data; 0 uses the global model.
    """

    paper: ClassVar[str] = "Oh, Kim and Yun, ICLR 2022"
    headline: ClassVar[str] = "consistent performance improvements and an efficient personalisation, from training only the body"
    reveals: ClassVar[str] = "sums of updates of the body"
    client_state: ClassVar[str] = "nothing"
    has_model: ClassVar[bool] = True

    finetune: Literal["all", "head", "body"] = "all"
    tune_epochs: NonNegative[int] = 5

    def init(self, fed: Federation) -> State:
        """Start with the initial model, whose head remains."""
        return State(params=fed.init_params())

    def round(self, fed: Federation, state: State) -> State:
        """Average the cohort's bodies."""
        layout = self.part(state.params.layout, architectures(fed).resident().module, own=False)
        body = take(state.params, layout)
        mean = fed.mean(self.train, body, over=fed.sample())
        return State(params=join(state.params, body + mean.delta))

    @on_client
    def train(self, client: Client, message: Params) -> Update:
        """Train the body on the initial head; return its change."""
        start = super().personal_model(client, message)
        local = client.sgd(start, **self.local(client), hooks=self.only("body", client, start))
        return Update(delta=take(local.params, message.layout) - message, loss=local.loss, weight=self.weight(client))

    def personal_model(self, client: Client, message: Params) -> Params:
        """Fine-tune the global model on the client's data."""
        options = self.local(client) | {"epochs": self.tune_epochs}
        return client.sgd(message, **options, hooks=self.only(self.finetune, client, message)).params

    def only(self, part: str, client: Client, start: Params) -> Hooks:
        """Return the hooks by which only a part of the model leaves `start`."""
        if part == "all":
            return NO_HOOKS
        trained = start.zeros()
        for name in self.part(start.layout, client.model.module, own=part == "head").by_name:
            trained[name].fill_(1.0)
        fixed = start - trained * start
        return Hooks(after=lambda at: trained * at + fixed)
