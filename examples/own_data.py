"""Your own data and model: any map-style data set and any module. The trained model is an ordinary module.

Run it with ``python examples/own_data.py``. It takes a few seconds and downloads nothing.
"""

import math

import torch
from torch import nn
from torch.utils.data import Dataset

import paceline as pl


class Spirals(Dataset):
    """Two spirals in the plane, one class each."""

    def __init__(self, samples, seed):
        rng = torch.Generator().manual_seed(seed)
        self.targets = torch.arange(samples) % 2
        turn = 0.3 + 0.7 * torch.rand(samples, generator=rng)
        angle = 2 * math.pi * turn + math.pi * self.targets
        self.points = turn[:, None] * torch.stack((angle.cos(), angle.sin()), dim=1)
        self.points += 0.02 * torch.randn(samples, 2, generator=rng)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.points[index], self.targets[index]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, points):
        return self.layers(points)


def main():
    test = Spirals(400, seed=1)
    task = pl.Task.from_datasets(Spirals(1600, seed=0), test, model=Net)
    method = pl.methods.FedProx(mu=0.01, lr=0.3, epochs=5)
    result = pl.run(method, task, clients=10, cohort=10, rounds=20, partition="iid")

    # A module in evaluation mode, to be used like any other, without Paceline.
    model = result.model()
    with torch.no_grad():
        right = model(test.points).argmax(1) == test.targets
    torch.save(model.state_dict(), "spirals.pt")
    print(f"by hand {100 * right.float().mean():.1f} %, accuracy {100 * result.accuracy:.1f} %")


if __name__ == "__main__":
    main()
