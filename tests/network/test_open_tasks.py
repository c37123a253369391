"""A task without classes, whose model takes several inputs, over the network: the bits of a simulation, secure too."""

import pytest
import torch
from torch import nn

import paceline as pl

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 1), nn.Linear(2, 1)

    def forward(self, left, right):
        return {"logits": self.a(left) + self.b(right)}


@pytest.fixture
def task():
    return pl.Task.from_tensors({"right": X[:, 4:], "left": X[:, :4]}, X.sum(1), Two, loss="mse", lr=0.01)


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_a_quantity_is_learned_over_the_network_with_the_bits_of_a_simulation(networked, federate, aggregation):
    run = {"aggregation": aggregation, "clients": 4, "cohort": 4, "rounds": 2}
    there, here = networked(run), federate(vectorize="off", **run)
    assert there.model_sha256 == here.model_sha256
    assert there.loss == here.loss < 10
