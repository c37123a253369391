"""What layers read: a weight as a matrix times the collected rows gives the layer's outputs."""

import pytest
import torch
from torch import nn

from paceline.models.inputs import layer_inputs, reading_layers


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 3, bias=False),
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.Conv2d(2, 4, (3, 2), stride=2, dilation=(1, 2), bias=False),
        nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular", bias=False),
        nn.Conv2d(2, 4, 1, stride=2, bias=False),
    ],
)
def test_rows_times_the_flat_weight_are_the_outputs(layer):
    x = torch.randn(5, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 2, 7, 8)
    module = nn.Sequential(layer)
    with layer_inputs(module) as seen:
        out = module(x)
    (rows,) = seen["0.weight"]
    flat = rows @ layer.weight.detach().flatten(1).T
    expected = out.detach() if out.dim() == 2 else out.detach().flatten(2).transpose(1, 2).reshape(-1, 4)
    torch.testing.assert_close(flat, expected)


def test_hooks_are_gone_afterwards_and_other_layers_are_left_out():
    module = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 2))
    with layer_inputs(module) as seen:
        module(torch.randn(2, 4, 4, 4))
    module(torch.randn(2, 4, 4, 4))
    assert list(seen) == ["2.weight"] == list(reading_layers(module))
    assert len(seen["2.weight"]) == 1
