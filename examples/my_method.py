"""Your own method: FedAvg in which the server updates a coordinate only if the clients' updates agree in sign.

Run it from this folder with ``paceline run my_method:SignVote --task digits --rounds 5``.
"""

from dataclasses import dataclass

import paceline as pl


@dataclass(frozen=True)
class SignVote(pl.methods.FedAvg):
    least: float = 0.2  # minimum margin of the votes for one sign, as a share of the cohort

    def round(self, fed, state):
        mean = fed.mean(self.train, state.params, over=fed.sample())
        agreed = mean.sign.map(lambda votes: votes.abs() >= self.least)
        return pl.State(params=state.params + self.server_lr * (mean.delta * agreed))

    @pl.on_client
    def train(self, client, message):
        delta = client.sgd(message, **self.local(client)).params - message
        return pl.Update(delta=delta, sign=delta.map(lambda d: d.sign()), weight=1)
