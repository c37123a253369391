"""The three reference nets of the sheet, as plain modules."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def vgg9() -> nn.Module:
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise([3, 32, 32, 64, 64, 128, 128])):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
        if k % 2:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(2048, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


class FemnistCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 64, 5, padding=2)
        self.fc1 = nn.Linear(64 * 7 * 7, 120)
        self.fc2 = nn.Linear(120, 62)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class CharLSTM(nn.Module):
    def __init__(self, symbols: int = 80, hidden: int = 128) -> None:
        super().__init__()
        self.symbols = symbols
        self.lstm = nn.LSTM(symbols, hidden, num_layers=2, batch_first=True)
        self.out = nn.Linear(hidden, symbols)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(F.one_hot(x, self.symbols).float())
        return self.out(states[:, -1])


EXAMPLES = {
    "vgg9": (vgg9, torch.zeros(2, 3, 32, 32)),
    "femnist": (FemnistCNN, torch.zeros(2, 1, 28, 28)),
    "lstm": (CharLSTM, torch.zeros(2, 80, dtype=torch.int64)),
}
