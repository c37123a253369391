"""A method of one's own: FedAvg whose clients clip long updates, compared with FedAvg.

Run it with ``python examples/own_method.py``. It takes some seconds and needs no data set.
"""

from dataclasses import dataclass

import paceline as pl
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.tasks import blobs


# Fields are hyperparameters. `round` is FedAvg's; what differs is the client's function.
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
    # The method asks for means only, so it runs under secure aggregation as it stands.
    methods = {"FedAvg": FedAvg(), "clipped to 1": Clipped(most=1.0), "clipped to 0.01": Clipped(most=0.01)}
    for label, method in methods.items():
        result = pl.run(method, task, clients=8, cohort=8, rounds=10, partition="dirichlet:0.3", aggregation="secure")
        print(f"{label}: accuracy {100 * result.accuracy:.1f} %")


if __name__ == "__main__":  # worker processes import this file
    main()
