"""Your own method: FedAvg with clipped client updates, compared with FedAvg.

Run it with ``python examples/own_method.py``. It takes a few seconds and downloads nothing.
"""

from dataclasses import dataclass

import paceline as pl
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.tasks import blobs


# Fields are hyperparameters. `round` is inherited from FedAvg; only the client function differs.
@dataclass(frozen=True)
class Clipped(FedAvg):
    most: float = 0.5  # largest Euclidean norm of an update

    @pl.on_client
    def train(self, client, message):
        local = client.sgd(message, **self.local(client))
        delta = local.params - message
        return pl.Update(delta=delta * (self.most / delta.norm()).clamp(max=1.0), loss=local.loss, weight=client.num_samples)


def main():
    task = blobs(samples=400)
    # The method requests only means, so it runs under secure aggregation without changes.
    methods = {"FedAvg": FedAvg(), "clipped to 1": Clipped(most=1.0), "clipped to 0.01": Clipped(most=0.01)}
    for label, method in methods.items():
        result = pl.run(method, task, clients=8, cohort=8, rounds=10, partition="dirichlet:0.3", aggregation="secure")
        print(f"{label}: accuracy {100 * result.accuracy:.1f} %")


if __name__ == "__main__":  # worker processes import this file
    main()
