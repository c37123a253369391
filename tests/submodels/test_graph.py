import random
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.errors import SubmodelError
from paceline.submodels.axes import Spaces
from paceline.submodels.build import output_shapes
from paceline.submodels.graph import UnitGraph
from tests.submodels.nets import EXAMPLES
from tests.submodels.oracle import check


def trace(net: nn.Module, *shape: int) -> UnitGraph:
    return UnitGraph.trace(net, torch.randn(*shape))


def test_vgg9_groups_are_its_layers_but_the_last() -> None:
    make, x = EXAMPLES["vgg9"]
    graph = UnitGraph.trace(make(), x)
    assert list(graph.groups.values()) == [32, 32, 64, 64, 128, 128, 512, 256]
    assert list(graph.whole) == ["20"]
    first = graph.axes["0.weight"]
    assert [a.group for a in first] == ["0", None, None, None]
    assert graph.axes["20.weight"][0].group is None
    assert graph.axes["20.weight"][1].group == "18"
    columns = graph.axes["16.weight"][1]
    assert columns.group == "12"
    assert torch.equal(columns.units, torch.arange(128).repeat_interleave(16))  # j*16 ... j*16+15


def test_lstm_unit_owns_four_rows_and_a_column() -> None:
    make, x = EXAMPLES["lstm"]
    graph = UnitGraph.trace(make(), x)
    assert graph.groups == {"lstm.l0": 128, "lstm.l1": 128}
    assert graph.equal == (("lstm.l0", "lstm.l1"),)
    rows, columns = graph.axes["lstm.weight_hh_l0"]
    assert rows.group == columns.group == "lstm.l0"
    assert rows.units[[5, 133, 261, 389]].tolist() == [5, 5, 5, 5]
    assert graph.axes["lstm.weight_ih_l0"][1].group is None
    assert graph.axes["lstm.weight_ih_l1"][1].group == "lstm.l0"
    assert graph.axes["out.weight"][1].group == "lstm.l1"


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.back = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.Conv2d(5, 8, 1)
        self.depth, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.back(F.relu(self.inner(x)))
        x += self.norm(self.depth(x))
        return self.out(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_layers_that_meet_in_an_add_share_one_group() -> None:
    graph = trace(ResidualNet(), 2, 3, 6, 6)
    assert graph.groups == {"stem": 8, "inner": 5}
    for name in ("stem.weight", "back.weight", "depth.weight", "norm.running_var"):
        assert graph.axes[name][0].group == "stem"
    assert graph.axes["depth.weight"][1].group is None
    assert graph.axes["norm.num_batches_tracked"] == ()


def test_a_residual_to_the_input_or_output_stays_whole() -> None:
    class ToInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.b(torch.relu(self.a(x)))
            return x + self.c(x)

    graph = trace(ToInput(), 2, 4)
    assert graph.groups == {"a": 6}
    assert "output" in graph.whole["c"] or "add" in graph.whole["c"]


def test_units_of_a_grouped_convolution_are_its_blocks() -> None:
    net = nn.Sequential(nn.Conv2d(2, 12, 1), nn.Conv2d(12, 6, 1, groups=3), nn.Flatten(), nn.Linear(24, 2))
    graph = trace(net, 2, 2, 2, 2)
    assert graph.groups == {"0": 3}
    assert graph.axes["0.weight"][0].units.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert graph.axes["1.weight"][0].units.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(graph.axes["3.weight"][1].units, torch.arange(3).repeat_interleave(8))


def test_tied_weights_are_one_tensor() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mid, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.mid(self.embed(x))))

    graph = UnitGraph.trace(Tied(), torch.zeros(2, 3, dtype=torch.int64))
    assert graph.groups == {"embed": 4}  # what is looked up and what is read must agree
    assert [a.group for a in graph.axes["mid.weight"]] == ["embed", "embed"]


def test_concatenated_features_stay_whole() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(4, 3), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([self.a(x), self.b(x)], 1))

    graph = trace(Joined(), 2, 4)
    assert graph.groups == {}
    assert "concatenates" in graph.whole["a"]


def test_a_width_written_as_a_number_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.conv(x).view(-1, 16))

    with pytest.raises(SubmodelError, match=r"'view' writes the width 16.*flatten"):
        trace(Fixed(), 2, 1, 4, 4)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("net", "shape", "named"),
    [
        (
            nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2)),
            (2, 3, 4),
            "'1'.*TransformerEncoderLayer",
        ),
        (nn.Sequential(nn.LSTM(4, 3, bidirectional=True)), (2, 5, 4), "'0'.*bidirectional"),
        (nn.Sequential(nn.LSTM(4, 3, proj_size=2)), (2, 5, 4), "'0'.*proj_size"),
        (nn.Sequential(nn.GRU(4, 3, bidirectional=True)), (2, 5, 4), "'0'.*bidirectional"),
        (nn.Sequential(nn.RNN(4, 3)), (2, 5, 4), r"module '0' \(RNN\).*supported are: Linear"),
        (nn.Sequential(nn.ConvTranspose2d(2, 3, 2)), (2, 2, 4, 4), "ConvTranspose2d"),
    ],
)
def test_unknown_modules_are_refused_by_name(net: nn.Module, shape: tuple[int, ...], named: str) -> None:
    with pytest.raises(SubmodelError, match=named):
        trace(net, *shape)


class Attends(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.inner = nn.Linear(4, 4)
        self.attn = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        if self.how == "module":
            return self.attn(x, x, x)[0]
        if self.how == "function":
            return F.scaled_dot_product_attention(x, x, x)
        if self.how == "matmul":
            return x @ x.transpose(1, 2)
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("module", r"module 'attn' \(MultiheadAttention\)"),
        ("function", "scaled_dot_product_attention"),
        ("matmul", "'matmul'"),
        ("branch", "Attends cannot be traced"),
    ],
)
def test_attention_and_branches_are_refused(how: str, named: str) -> None:
    with pytest.raises(SubmodelError, match=named):
        trace(Attends(how), 2, 3, 4)


def test_an_initial_state_is_refused() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            zero = torch.zeros(1, x.shape[0], 3)
            return self.out(self.lstm(x, (zero, zero))[0])

    with pytest.raises(SubmodelError, match="initial state"):
        trace(Given(), 2, 5, 4)


def test_tracing_leaves_the_module_and_the_random_state_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    net[2].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    UnitGraph.trace(net, torch.ones(4, 4))
    assert torch.rand(1) == expected
    assert [m.training for m in net] == [True, True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


class Mixing(nn.Module):
    """Does something to the channels of a convolution that no smaller model could repeat."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.how, self.out = nn.Conv2d(2, 4, 1), how, nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.how(self.conv(x)).flatten(1))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (lambda x: x.mean(1), "sums or compares"),
        (lambda x: x.sum((1, 2)), "sums or compares"),
        (lambda x: torch.max(x, 1)[0], "sums or compares"),
        (lambda x: F.softmax(x, dim=1), "normalises"),
        (lambda x: x[:, :2], "selects some"),
        (lambda x: x[:, 0], "selects some"),
        (lambda x: x.view(x.size(0), 2, 2, 3, 3), "splits or interleaves"),
        (lambda x: torch.cat([x, x], 1), "concatenates"),
        (lambda x: x.flatten(1) + x.permute(0, 2, 3, 1).flatten(1), "do not align"),
        (lambda x: F.avg_pool1d(x.flatten(2).transpose(1, 2), 2), "pools over"),
    ],
)  # fmt: skip
def test_what_mixes_units_keeps_them_whole(how: Callable[[Tensor], Tensor], why: str) -> None:
    net, x = Mixing(how), torch.randn(2, 2, 3, 3)
    net(x)
    graph = UnitGraph.trace(net, x)
    assert graph.groups == {}
    assert re.search(why, graph.whole["conv"])


def test_what_leaves_units_apart_does_not() -> None:
    for how in (
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: torch.stack([x, 2 * x], 1),
        lambda x: torch.cat([x, x], dim=2),
        lambda x: x[..., 0, None],
        lambda x: F.softmax(x, dim=-1),
        lambda x: x[:, :, 1:].amax(dim=-1),
    ):
        net, x = Mixing(how), torch.randn(2, 2, 3, 3)
        net(x)
        assert UnitGraph.trace(net, x).groups == {"conv": 4}
        check(net, x, 1)


@pytest.mark.parametrize("seed", range(30))
def test_spaces_by_a_slow_union(seed: int) -> None:
    """Ties of axes of any grain, and reasons: axes share units exactly if a chain of ties leads from one to the other."""
    rng = random.Random(seed)
    spaces, sizes = Spaces(), [rng.choice([2, 4, 12]) for _ in range(9)]
    axes = [spaces.new(size, f"s{k}")._replace(repeat=24 // size) for k, size in enumerate(sizes)]
    sets, whole = [{k} for k in range(9)], set()
    for _ in range(rng.randrange(12)):
        a, b = rng.randrange(9), rng.randrange(9)
        if rng.random() < 0.25:
            spaces.keep_whole(axes[a], f"because of {a}")
            whole.add(a)
            continue
        if rng.random() < 0.1:
            spaces.tie(axes[a], None, "an axis that is not cut")
            whole.add(a)
            continue
        spaces.tie(axes[a], axes[b], "tied")
        one, other = (next(s for s in sets if k in s) for k in (a, b))
        if one is not other:
            sets.remove(other)
            one |= other
    for members in sets:
        size = min(sizes[k] for k in members)  # 2, 4 and 12 divide one another
        for k in members:
            assert spaces.is_whole(axes[k]) == bool(members & whole)
            assert spaces.size(axes[k]) == size
            assert spaces.units(axes[k], 24).tolist() == [i // (24 // size) for i in range(24)]
            assert spaces.name(axes[k]) == f"s{min(members)}"
    reasons = spaces.why_whole()
    assert set(reasons) == {f"s{min(members)}" for members in sets if members & whole}


def test_axes_without_a_common_grain_stay_whole() -> None:
    for one, other in (((4, 3), (6, 2)), ((4, 1), (4, 3)), ((4, 2), (5, 2))):
        spaces = Spaces()
        a, b = (spaces.new(size, name)._replace(repeat=repeat) for name, (size, repeat) in (("a", one), ("b", other)))
        spaces.tie(a, b, "they meet")
        assert set(spaces.why_whole()) == {"a", "b"}
        assert "do not align" in spaces.why_whole()["a"]
    spaces = Spaces()
    a = spaces.new(4, "a")
    spaces.tie(a._replace(repeat=2), a, "it meets itself")
    assert spaces.is_whole(a)


def test_shapes_of_outputs_of_any_form() -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> object:
            return {"a": x, "b": [x[:1], (x[:, :2], None)], "c": "text"}

    assert output_shapes(Several(), (torch.zeros(2, 3),)) == [(2, 3), (1, 3), (2, 2)]
    assert output_shapes(nn.Identity(), (torch.zeros(2, 3),)) == [(2, 3)]


class Meets(nn.Module):
    """An LSTM whose last state is added to a layer's flattened output, of which each unit has two columns."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.conv, self.lstm, self.out = nn.Conv1d(3, 4, 1), nn.LSTM(3, 8, layers, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x.transpose(1, 2))
        return self.out(states[:, -1] + self.conv(x).flatten(1))


def test_layers_of_an_lstm_with_units_of_unequal_size_stay_whole() -> None:
    """One unit of the upper layer has two columns, one of the lower layer one, so no cut leaves them equally wide."""
    assert trace(Meets(1), 2, 3, 2).groups == {"lstm": 4}
    graph = trace(Meets(2), 2, 3, 2)
    assert graph.groups == {}
    assert "must be equally wide" in graph.whole["lstm.l0"]


class Alone(nn.Module):
    """A layer of one unit, whose axis is dropped and added again."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 1), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).reshape(-1).reshape(-1, 1))


def test_an_axis_that_a_reshape_drops_stays_whole() -> None:
    graph = trace(Alone(), 5, 3)
    assert graph.groups == {}
    assert "splits or interleaves" in graph.whole["one"]
