"""Pruned models: dead units are those of a smaller model, messages hold what survives, and nothing foreign is removed."""

import pytest
import torch
from torch import nn

from paceline.blocks.pruning import PrunedModel, prunable, without_dead_units
from paceline.blocks.saliency import quantile_mask
from paceline.core.errors import WireError
from paceline.core.layout import Layout
from paceline.core.params import Params, Resident
from paceline.submodels.graph import UnitGraph
from tests.blocks.test_saliency import params


def pruned(module, example, share=0.0, **zeros):
    """Return the mask without dead units, where given rows of tensors are masked before."""
    layout = Layout.of(module)
    mask = Params.of(module, layout).zeros() + 1.0
    for name, rows in zeros.items():
        mask[name.replace("_", ".", 1)][rows] = 0
    return without_dead_units(mask, module, UnitGraph.trace(module, example), share)


def test_a_row_without_weights_is_a_unit_less():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    mask = pruned(module, torch.randn(2, 3), **{"0_weight": 1})
    assert mask["0.weight"].tolist() == [[1] * 3, [0] * 3]
    assert mask["0.bias"].tolist() == [1, 0]
    assert mask["2.weight"].tolist() == [[1, 0], [1, 0]]
    assert mask["2.bias"].tolist() == [1, 1]
    x, small = torch.randn(5, 3), nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        small[0].weight.copy_(module[0].weight[:1])
        small[0].bias.copy_(module[0].bias[:1])
        small[2].weight.copy_(module[2].weight[:, :1])
        small[2].bias.copy_(module[2].bias)
        wanted = small(x)
        Resident(module, mask.layout).load(Params.of(module, mask.layout) * mask)
        torch.testing.assert_close(module(x), wanted, atol=1e-6, rtol=0)


def test_a_share_of_survivors_can_be_too_few():
    module = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))
    layout = Layout.of(module)
    mask = Params.of(module, layout).zeros() + 1.0
    mask["0.weight"][0, :3] = 0
    graph = UnitGraph.trace(module, torch.randn(2, 4))
    assert without_dead_units(mask, module, graph, 0.2).vector.equal(mask.vector)
    assert without_dead_units(mask, module, graph, 0.25)["2.weight"].tolist() == [[0, 1], [0, 1]]
    assert mask["0.bias"].tolist() == [1, 1], "the argument is left as it is"


def test_removal_goes_on_behind_a_removed_unit():
    module = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    mask = pruned(module, torch.randn(2, 2), **{"0_weight": 0})
    assert [float(mask[n].sum()) for n in mask] == [0, 0, 0, 0, 0, 2]


def test_filters_of_convolutions_and_their_norm():
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    mask = pruned(module, torch.randn(2, 1, 4, 4), **{"0_weight": 2})
    assert mask["0.bias"].tolist() == [1, 1, 0]
    assert mask["1.weight"].tolist() == mask["1.running_var"].tolist() == [1, 1, 1]
    assert mask["4.weight"][0].tolist() == [1] * 8 + [0] * 4


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.end = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.end(torch.relu(self.a(x) + self.b(x)))


def test_a_unit_of_two_layers_lives_while_one_feeds_it():
    mask = pruned(Added(), torch.randn(2, 3), a_weight=0, b_weight=1)
    assert mask["end.weight"].bool().all()
    assert pruned(Added(), torch.randn(2, 3), a_weight=0, b_weight=0)["end.weight"].tolist() == [[0, 1], [0, 1]]


def test_embeddings_are_no_rows_of_weights():
    module = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    mask = pruned(module, torch.zeros(2, 2, dtype=torch.int64), **{"0_weight": slice(0, 5)})
    assert mask["2.weight"].bool().all()


def test_which_tensors_may_be_masked():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.LSTM(2, 2), nn.Linear(2, 2))
    layout = Layout.of(module)
    everything = prunable(module, layout, "nothing")
    assert not [name for name in everything if name.startswith("1.")]
    assert set(everything) - set(prunable(module, layout, "last-bias")) == {"3.bias"}
    weights = {"0.weight", "2.weight_ih_l0", "2.weight_hh_l0", "3.weight"}
    assert set(prunable(module, layout, "biases")) == weights
    assert set(prunable(module, layout, "head")) == weights - {"3.weight"}


def test_a_message_holds_what_survives():
    model, mask = params([1.0, 2.0, 3.0], [4.0], buffers=([5.0],)), params([1.0, 0.0, 1.0], [0.0], buffers=([1.0],))
    message = PrunedModel.of(model, mask)
    assert message.values.tolist() == [1, 3, 5]
    assert len(message.bits) == 1
    opened, kept = message.opened(model.layout)
    assert opened.vector.tolist() == [1, 0, 3, 0, 5]
    assert kept.vector.equal(mask.vector)
    with pytest.raises(WireError, match="2 values, but its bits stand for 3"):
        PrunedModel(message.values[:2], message.bits).opened(model.layout)


def test_a_floor_of_survivors_and_the_tensors_that_count():
    guide = params([0.01 * i for i in range(20)], [0.5, 0.6, 0.7], [0.0, 0.0])
    assert quantile_mask(guide, 0.9)["t0"].sum() == 0
    assert quantile_mask(guide, 0.9, floor=0.05)["t0"].tolist() == [0] * 19 + [1]
    assert quantile_mask(guide, 0.9)["t2"].tolist() == [1, 1]
    assert quantile_mask(guide, 0.5, names=["t0"])["t0"].sum() == 10
    assert quantile_mask(guide, 0.5, names=["t0"])["t1"].tolist() == [1, 1, 1]
