"""SCAFFOLD (Karimireddy et al., "Stochastic Controlled Averaging for Federated Learning", ICML 2020).

    y <- y - lr (g(y) - c_u + c);   c_u+ = c_u - c + (x - y) / (K lr)
    x <- x + eta * mean(y - x);     c <- c + |S|/N * mean(c_u+ - c_u)

The server sees sums of updates and of control changes. A client stores its control variate c_u, which changes
only if its reply is counted. A client without samples takes c as its c_u, so that c is the mean over those with samples,
as is mean(y - x): otherwise such clients would shorten the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.blocks.local_training import LocalTraining
from paceline.core.client import Client, Hooks
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, State, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update


@node
class ScaffoldState(State):
    """The model and the server's control variate."""

    control: Params


@dataclass(frozen=True)
class Scaffold(LocalTraining[ScaffoldState]):
    """Control variates against client drift (option II of the paper), with server step `server_lr`; equal client weights."""

    paper: ClassVar[str] = "Karimireddy et al., ICML 2020"
    headline: ClassVar[str] = "needs far fewer rounds than FedAvg; its rate depends on neither heterogeneity nor client sampling"
    reveals: ClassVar[str] = "sums of updates and of control changes"
    client_state: ClassVar[str] = "control variate (model size)"
    lr: Positive[float] | None = None
    server_lr: NonNegative[float] = 1.0

    def init(self, fed: Federation) -> ScaffoldState:
        """Start with zero controls."""
        return ScaffoldState(params=fed.init_params(), control=fed.init_params().zeros())

    def round(self, fed: Federation, state: ScaffoldState) -> ScaffoldState:
        """Average the updates over the cohort and the control changes over the population."""
        mean = fed.mean(self.train, (state.params, state.control), over=fed.sample())
        share = mean.weight["control"] / fed.num_clients
        return ScaffoldState(params=state.params + self.server_lr * mean.delta, control=state.control + share * mean.control)

    @on_client(bounds={"control": 4.0})
    def train(self, client: Client, message: tuple[Params, Params]) -> Update:
        """Train with corrected gradients; return the changes of model and control."""
        params, control = message
        own, lr = client.memory.get("control", params.zeros()), client.problem.lr if self.lr is None else self.lr
        local = client.sgd(params, **self.local(client), hooks=Hooks(correct=lambda grad, _: grad + (control - own)))
        new = own - control + (params - local.params) / (local.steps * lr) if local.steps else control
        client.memory.stage("control", new)
        return Update(delta=local.params - params, control=new - own, weight={"delta": min(local.steps, 1), "control": 1})
