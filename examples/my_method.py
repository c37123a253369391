"""A method of one's own: FedAvg whose server moves a coordinate only where the clients' updates agree in sign.

Run it from this folder with ``paceline run my_method:SignVote --task digits --rounds 5``.
"""

from dataclasses import dataclass

from paceline.core.method import State, on_client
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg


@dataclass(frozen=True)
class SignVote(FedAvg):
    least: float = 0.2  # how far the votes for one sign must outnumber the other's, as a share of the cohort

    def round(self, fed, state):
        mean = fed.mean(self.train, state.params, over=fed.sample())
        agreed = mean.sign.map(lambda votes: votes.abs() >= self.least)
        return State(params=state.params + self.server_lr * (mean.delta * agreed))

    @on_client
    def train(self, client, message):
        delta = client.sgd(message, **self.local(client)).params - message
        return Update(delta=delta, sign=delta.map(lambda d: d.sign()), weight=1)
