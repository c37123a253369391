import copy
import warnings
from inspect import signature

import pytest
import torch
from torch import Tensor, nn

from paceline.core.errors import SubmodelError, ZeroCostError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.submodels.build import num_groups, shrink
from paceline.submodels.cut import TIERS, Cutter, keep_count
from paceline.submodels.flops import _CELL, counted, flops
from paceline.submodels.service import train_submodel
from tests.submodels.nets import EXAMPLES, CharLSTM
from tests.submodels.u1 import dense, params_of

TABLE = {  # fraction of units: VGG-9 params, share, FLOP share; FEMNIST CNN params, share; LSTM params, share
    1.00: (1469994, 1.0, 1.0, 410022, 1.0, 248912, 1.0),
    0.95: (1317204, 0.896, 0.885, 365354, 0.891, 225140, 0.904),
    0.85: (1053405, 0.717, 0.715, 294322, 0.718, 184112, 0.740),
    0.75: (827746, 0.563, 0.567, 232172, 0.566, 149840, 0.602),
    0.65: (617741, 0.420, 0.413, 172229, 0.420, 116612, 0.468),
    0.50: (368666, 0.251, 0.256, 104562, 0.255, 75344, 0.303),
}


@pytest.fixture(scope="module")
def cutters() -> dict[str, Cutter]:
    out = {}
    for name, (make, x) in EXAMPLES.items():
        net = make()
        out[name] = Cutter(net, Layout.of(net), x)
    return out


@pytest.mark.parametrize("p", TIERS)
def test_parameter_table(cutters: dict[str, Cutter], p: float) -> None:
    vgg, vgg_share, vgg_flops, cnn, cnn_share, lstm, lstm_share = TABLE[p]
    assert cutters["vgg9"].first(p).layout.size == vgg
    assert cutters["vgg9"].share(p) == pytest.approx(vgg_share, abs=5e-4)
    assert cutters["vgg9"].cost(p) == pytest.approx(vgg_flops, rel=0.01)
    assert cutters["femnist"].first(p).layout.size == cnn
    assert cutters["femnist"].share(p) == pytest.approx(cnn_share, abs=5e-4)
    hidden = keep_count(128, p)
    one_bias = cutters["lstm"].first(p).layout.size - 2 * 4 * hidden  # torch keeps two biases for each gate
    assert one_bias == lstm
    assert one_bias / 248912 == pytest.approx(lstm_share, abs=5e-4)
    for cutter in cutters.values():
        module = cutter.first(p).module()
        assert sum(q.numel() for q in module.parameters()) == cutter.first(p).layout.size


def test_u2_extract_and_scatter() -> None:
    net = dense()
    cutter = Cutter(net, Layout.of(net), torch.zeros(1, 2))
    sub = cutter.cut({"0": torch.tensor([3, 1])})
    full = params_of(net)
    small = sub.extract(full)
    assert small["0.weight"].T.tolist() == [[-2.0, 4.0], [1.0, 0.5]]
    torch.testing.assert_close(small["0.bias"], torch.tensor([0.2, 1.0]))
    assert small["2.weight"].T.tolist() == [[-1.0, 0.5], [2.0, -4.0]]
    ones = sub.scatter(Params(torch.ones(sub.layout.size), sub.layout))
    assert ones["0.weight"].T.tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]
    assert ones["0.bias"].tolist() == [0, 1, 0, 1]
    assert ones["2.weight"].T.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]
    assert ones["2.bias"].tolist() == [1, 1]
    assert torch.equal(sub.mask().vector, ones.vector)
    assert torch.equal(sub.extract(sub.scatter(small)).vector, small.vector)
    zeroed = copy.deepcopy(net)
    with torch.no_grad():
        zeroed[0].weight[[0, 2]] = 0
        zeroed[0].bias[[0, 2]] = 0
        zeroed[2].weight[:, [0, 2]] = 0
    sub.resident().load(small)
    x = torch.randn(7, 2)
    torch.testing.assert_close(sub.module()(x), zeroed(x))


def test_u6_lstm() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            states, _ = self.lstm(x)
            return self.out(states)

    model = Last()
    layout = Layout.of(model)
    sub = Cutter(model, layout, torch.zeros(4, 1, 2)).cut({"lstm": torch.tensor([0, 2])})
    rows = [0, 2, 3, 5, 6, 8, 9, 11]
    small, full = sub.extract(Params.of(model, layout)), Params.of(model, layout)
    assert small["lstm.weight_hh_l0"].shape == (8, 2)
    assert torch.equal(small["lstm.weight_hh_l0"], full["lstm.weight_hh_l0"][rows][:, [0, 2]])
    assert torch.equal(small["lstm.weight_ih_l0"], full["lstm.weight_ih_l0"][rows])
    assert torch.equal(small["lstm.bias_hh_l0"], full["lstm.bias_hh_l0"][rows])
    assert torch.equal(small["out.weight"], full["out.weight"][:, [0, 2]])
    assert sub.module().lstm.hidden_size == 2


def test_the_resident_is_built_once_per_widths_and_is_dense(cutters: dict[str, Cutter]) -> None:
    cutter = cutters["femnist"]
    a = cutter.first(0.5)
    b = cutter.cut({g: torch.arange(n - n // 2, n) for g, n in cutter.groups.items()})
    assert a.resident() is b.resident()
    assert a.resident() is not cutter.first(0.75).resident()
    assert a.layout.digest == b.layout.digest
    assert list(a.layout.by_name) == list(cutter.layout.by_name)
    assert a.module().conv2.weight.shape == (32, 8, 5, 5)
    assert a.module().conv2.in_channels == 8
    assert a.resident().flops == flops(a.module(), cutter.example)
    assert a.resident().params.vector.numel() == a.layout.size


def test_training_a_sub_model_changes_only_what_it_kept(cutters: dict[str, Cutter]) -> None:
    cutter = cutters["femnist"]
    sub, full = cutter.first(0.65), Params.of(cutter.full, cutter.layout)
    start = sub.extract(full)
    resident = sub.resident()
    resident.load(start)
    resident.grads.vector.zero_()
    resident.module(torch.randn(4, 1, 28, 28)).square().mean().backward()
    resident.params.vector.sub_(resident.grads.vector)
    new = full + sub.scatter(resident.snapshot() - start)
    changed = new.vector != full.vector
    assert changed.any()
    assert not (changed & (sub.mask().vector == 0)).any()


def test_keep_counts() -> None:
    assert keep_count(16, 0.95) == 15
    assert keep_count(128, 0.95) == 121
    assert keep_count(100, 0.29) == 29
    assert keep_count(3, 0.1) == 1
    net = nn.Sequential(nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, 2))
    cutter = Cutter(net, Layout.of(net), torch.zeros(1, 2))
    assert cutter.keep(0.65) == {"0": 13}
    for bad in (0.0, 1.5, float("nan")):
        with pytest.raises(SubmodelError, match="fraction of units"):
            cutter.keep(bad)


@pytest.mark.parametrize(("groups", "channels", "kept", "left"), [
    (8, 32, 16, 4), (8, 32, 30, 6), (8, 32, 31, 1), (1, 9, 4, 1), (12, 12, 5, 5), (2, 6, 1, 1), (4, 8, 6, 3),
])  # fmt: skip
def test_group_norm_groups(groups: int, channels: int, kept: int, left: int) -> None:
    assert num_groups(groups, channels, kept) == left


def test_dropping_whole_groups_leaves_group_norm_as_it_was() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    layout = Layout.of(net)
    sub = Cutter(net, layout, torch.zeros(1, 2, 2, 2)).cut({"0": torch.tensor([2, 3, 6, 7])})
    sub.resident().load(sub.extract(Params.of(net, layout)))
    x = torch.randn(3, 2, 2, 2)
    inner = net[:3](x)
    torch.testing.assert_close(sub.module()[:3](x), inner[:, [2, 3, 6, 7]])


def test_frozen_weights_and_local_buffers_are_filled_in() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    net[1].running_mean.normal_()
    layout = Layout.of(net, trainable=["3.*"], buffers="local")
    cutter = Cutter(net, layout, torch.zeros(2, 3))
    for units in ([0, 2, 5], [1, 3, 4]):
        sub = cutter.cut({"0": torch.tensor(units)})
        small = sub.resident().module
        assert torch.equal(small[0].weight, net[0].weight[units])
        assert torch.equal(small[1].running_mean, net[1].running_mean[units])
        assert sub.layout.size == 2 * 3 + 2
        assert not small[0].weight.requires_grad
    own = {"1.running_mean": torch.arange(6.0)}
    cut = sub.cut_tensors(own)
    assert cut["1.running_mean"].tolist() == [1, 3, 4]
    merged = sub.merge_tensors(own, {"1.running_mean": torch.zeros(3)})
    assert merged["1.running_mean"].tolist() == [0, 0, 2, 0, 0, 5]
    assert own["1.running_mean"].tolist() == [0, 1, 2, 3, 4, 5]


def test_wrong_kept_sets_are_refused(cutters: dict[str, Cutter]) -> None:
    cutter = cutters["femnist"]
    good = {g: torch.arange(4) for g in cutter.groups}
    for name, units, message in [
        ("conv1", torch.tensor([16]), "0 to 15"),
        ("conv1", torch.tensor([1, 1]), "each listed once"),
        ("conv1", torch.tensor([3, -1]), "0 to 15"),
        ("conv1", torch.tensor([], dtype=torch.int64), "at least one"),
        ("conv3", torch.tensor([1]), "did you mean"),
    ]:
        with pytest.raises(SubmodelError, match=message):
            cutter.cut({**good, name: units})
    with pytest.raises(SubmodelError, match="are missing; list the retained units"):
        cutter.cut({"conv1": torch.arange(3)})
    with pytest.raises(SubmodelError, match="equally many cells"):
        cutters["lstm"].cut({"lstm.l0": torch.arange(3), "lstm.l1": torch.arange(4)})
    with pytest.raises(SubmodelError, match="got Params"):
        cutter.cut(good).extract(Params.of(CharLSTM(), Layout.of(CharLSTM())))


def test_a_model_without_units_or_with_another_layout_is_refused() -> None:
    with pytest.raises(SubmodelError, match="Sequential has no units"):
        Cutter(nn.Sequential(nn.Linear(3, 2)), Layout.of(nn.Linear(3, 2)), torch.zeros(1, 3))
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.raises(SubmodelError, match="missing from the module"):
        Cutter(net, Layout.of(nn.Linear(3, 2)), torch.zeros(1, 3))


def test_flops_count_products_and_elementwise_work() -> None:
    """Two per multiply-add, one per element of an activation or pool, five per element of a norm, three of a softmax."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    )
    conv, norm, relu, pool, linear = 2 * 9 * 4 * 36, 5 * 4 * 36, 4 * 36, 4 * 36, 2 * 36 * 5
    assert flops(net, torch.zeros(3, 1, 6, 6)) == conv + norm + relu + pool + linear
    assert flops(nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.Softmax(-1)), torch.zeros(2, 4)) == (5 + 5 + 3) * 4
    assert flops(nn.Linear(3, 4), torch.zeros(5, 3)) == 2 * 3 * 4


def test_flops_of_fused_kernels_are_those_of_their_products() -> None:
    lstm = nn.LSTM(3, 8, num_layers=2, batch_first=True)
    products, cells = 4 * 8 * (3 + 8 + 8 + 8), 2 * 8 * _CELL["LSTM"]
    assert flops(lstm, torch.zeros(2, 5, 3)) == 5 * (2 * products + cells)
    products, cells = 3 * 8 * (3 + 8), 8 * _CELL["GRU"]
    assert flops(nn.GRU(3, 8, batch_first=True), torch.zeros(2, 5, 3)) == 5 * (2 * products + cells)
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    products, scores = 4 * (4 * 8 * 8 + 2 * 8 * 16), 2 * 4 * 4 * 8
    rest = flops(attention, torch.zeros(3, 4, 8)) - 2 * (products + scores)
    assert 2 * 5 * 4 * 8 < rest < 2000  # two norms, and residual adds, softmax, activations


class _Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, target = x.chunk(2, dim=-1)
        return scale * self.w - target


def test_an_elementwise_parameter_is_work_and_no_work_is_refused() -> None:
    assert flops(_Point(), torch.zeros(3, 10)) == 2 * 5
    assert counted(lambda: torch.ones(3).reshape(3, 1) + 1)[1] == 3
    with pytest.raises(ZeroCostError, match="Flatten executes no arithmetic"):
        flops(nn.Flatten(), torch.zeros(2, 3, 4))


@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, False), (1, True), (2, True)])
def test_flops_of_lstms_in_both_directions(layers: int, both: bool) -> None:
    lstm = nn.LSTM(3, 8, layers, bidirectional=both, batch_first=True)
    ways = 2 if both else 1
    inputs = 3 + (layers - 1) * 8 * ways
    products = ways * 4 * 8 * (inputs + layers * 8)
    assert flops(lstm, torch.zeros(2, 5, 3)) == 5 * (2 * products + ways * layers * 8 * _CELL["LSTM"])


def test_flops_behind_an_lstm_count() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lstm(x)[0])

    head = Head()
    behind = flops(head, torch.zeros(2, 5, 3)) - flops(head.lstm, torch.zeros(2, 5, 3))
    assert 5 * 2 * 8 * 2 <= behind <= 5 * 2 * (8 * 2 + 1)  # products, and perhaps the addition of the bias


def test_layers_of_an_lstm_that_were_cut_apart_are_refused() -> None:
    net = CharLSTM(5, 4)
    graph = Cutter(net, Layout.of(net), torch.zeros(1, 3, dtype=torch.int64)).graph
    masks = {"lstm.l0": torch.tensor([True, True, False, False]), "lstm.l1": torch.tensor([True, True, True, False])}
    with pytest.raises(SubmodelError, match="layers of LSTM 'lstm' must retain equally many cells"):
        shrink(net, graph, masks)


def test_sub_models_are_trained_without_a_scale_unless_one_is_given() -> None:
    assert signature(train_submodel).parameters["rescale"].default == 1.0


@pytest.mark.parametrize("fast", [True, False])
def test_counting_leaves_no_trace(fast: bool) -> None:
    """Fused attention stays as it was, and torch's warnings about flags that are read are not passed on."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert flops(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), torch.zeros(3, 4, 8)) > 0
        assert torch.backends.mha.get_fastpath_enabled() is fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
