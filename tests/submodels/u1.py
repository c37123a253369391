"""The sheet's hand-computed example: dense 2 -> 4 -> 2."""

import torch
from torch import nn

from paceline.core.layout import Layout
from paceline.core.params import Params


def dense() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1, -2, 0.5, 4], [2, 1, -1, 0.5]]).T)
        net[0].bias.copy_(torch.tensor([0.1, 0.2, -0.4, 1]))
        net[2].weight.copy_(torch.tensor([[1, 2], [-1, 0.5], [0.5, 0.5], [2, -4]]).T)
    return net


def changes() -> Params:
    net = dense()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.01, 0.2, 0.005, 0.04], [0.04, 0.02, 0.02, 0.05]]).T)
        net[0].bias.copy_(torch.tensor([0.002, 0.001, 0.004, 0.3]))
        net[2].weight.copy_(torch.tensor([[0.03, 0.02], [0, 0.05], [0.01, 0.005], [0.02, 0.08]]).T)
        net[2].bias.fill_(9.0)  # the last layer's bias is in no bundle
    return params_of(net)


def params_of(net: nn.Module) -> Params:
    return Params.of(net, Layout.of(net))
