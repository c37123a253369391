"""Every supported module, and forwards that only a trace of every node gets right."""

import pytest
import torch
import torch.fx
from torch import Tensor, nn

from paceline.core.errors import SubmodelError
from paceline.submodels.graph import UnitGraph
from paceline.submodels.rules import MODULES as RULES
from tests.submodels.oracle import check


class Wrapped(nn.Module):
    """Several inputs and outputs, nested; a default; values that depend on inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(5, 6), nn.Linear(6, 7)
        self.out = nn.Linear(7, 2)

    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> dict[str, object]:
        hidden = torch.relu(self.a(x) + self.b(y.flip(1) * scale))
        inner = self.c(hidden)
        return {"logits": self.out(inner), "more": [hidden, (y.cumsum(1),)]}


def test_inputs_and_nested_outputs_are_never_cut() -> None:
    graph = UnitGraph.trace(Wrapped(), (torch.randn(3, 4), torch.randn(3, 5)))
    assert graph.groups == {"c": 7}
    assert "output" in graph.whole["a"]
    assert graph.axes["b.weight"][1].group is None
    with pytest.raises(SubmodelError, match="input 'y' is missing"):
        UnitGraph.trace(Wrapped(), torch.randn(3, 4))


FLAT = nn.Flatten()
MODULES = {
    "conv1d": ((3, 4, 9), [6, 5, 7], lambda: [nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(6, 5, 2), FLAT]),
    "groups": ((3, 2, 5, 6), [4, 7], lambda: [nn.Conv2d(2, 8, 1), nn.Conv2d(8, 12, 1, groups=4), nn.GroupNorm(4, 12), nn.Flatten()]),
    "group norm of two": ((3, 2, 5, 6), [8, 7], lambda: [nn.Conv2d(2, 8, 1, bias=False), nn.GroupNorm(2, 8), nn.MaxPool2d(2), FLAT]),
    "norm without weights": ((3, 4), [6, 5, 7], lambda: [nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 5)]),
    "batch statistics only": ((3, 4), [6, 5, 7], lambda: [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5, bias=False)]),
    "layer norm": ((3, 4), [6, 5, 7], lambda: [nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 5), nn.LayerNorm(5)]),
    "layer norm of steps": ((3, 7, 4), [6, 5, 7], lambda: [nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.Flatten()]),
    "prelu": ((3, 2, 5, 6), [6, 5, 7], lambda: [nn.Conv2d(2, 6, 1), nn.PReLU(6), nn.Conv2d(6, 5, 1), nn.PReLU(), nn.Flatten()]),
    "prelu of two": ((3, 2, 5, 6), [2, 5, 7], lambda: [nn.Conv2d(2, 2, 1), nn.PReLU(2), nn.Conv2d(2, 5, 1), FLAT]),
    "flatten in two": ((3, 2, 5, 6), [6, 7], lambda: [nn.Conv2d(2, 6, 1), nn.Flatten(2), nn.Flatten(1)]),
    "adaptive": ((3, 2, 5, 6), [6, 7], lambda: [nn.Conv2d(2, 6, 1), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten()]),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODULES)
def test_modules(kind: str) -> None:
    torch.manual_seed(0)
    shape, units, make = MODULES[kind]
    layers = make()
    width = nn.Sequential(*layers)(torch.randn(shape)).shape[1]
    net = nn.Sequential(*layers, nn.Linear(width, 7), nn.ReLU(), nn.Linear(7, 3))
    for seed in range(4):
        sub = check(net, torch.randn(shape), seed)
        assert list(sub.cutter.groups.values()) == units
        stores_its_sizes(sub.module(), torch.randn(shape))


def fresh(layer: nn.Module) -> nn.Module | None:
    """Return a new layer made from the sizes that a layer stores."""
    match layer:
        case nn.Linear():
            return nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        case nn.Conv1d() | nn.Conv2d():
            return type(layer)(
                layer.in_channels, layer.out_channels, layer.kernel_size, groups=layer.groups, bias=layer.bias is not None
            )
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return type(layer)(layer.num_features, affine=layer.affine)
        case nn.GroupNorm():
            return nn.GroupNorm(layer.num_groups, layer.num_channels)
        case nn.LayerNorm():
            return nn.LayerNorm(layer.normalized_shape)
        case nn.PReLU():
            return nn.PReLU(layer.num_parameters)
        case nn.Embedding():
            return nn.Embedding(layer.num_embeddings, layer.embedding_dim)
        case nn.LSTM():
            return nn.LSTM(layer.input_size, layer.hidden_size, layer.num_layers, layer.bias, layer.batch_first)
    return None


def stores_its_sizes(small: nn.Module, x: Tensor) -> None:
    """Whoever builds a module from what a cut layer says of itself gets tensors of the same shapes."""
    seen = 0
    for layer in small.modules():
        new = fresh(layer)
        if new is not None:
            seen += 1
            assert {n: t.shape for n, t in new.state_dict().items()} == {n: t.shape for n, t in layer.state_dict().items()}, layer
    assert seen
    assert torch.isfinite(small.eval()(x)).all()


@pytest.mark.parametrize("layer", [nn.Softmax(1), nn.LogSoftmax(-1)])
def test_a_softmax_module_keeps_its_units_whole(layer: nn.Module) -> None:
    graph = UnitGraph.trace(nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(3, 4))
    assert graph.groups == {"2": 5}
    assert "normalises" in graph.whole["0"]


class Words(nn.Module):
    def __init__(self, layers: int, batch_first: bool, bias: bool, state: int | None) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.lstm = nn.LSTM(4, 6, layers, bias=bias, batch_first=batch_first)
        self.out, self.state = nn.Linear(6, 3), state

    def forward(self, x: Tensor) -> Tensor:
        states, (hidden, cell) = self.lstm(self.embed(x))
        if self.state is None:
            return self.out(states)
        if self.state == 99:
            return self.out(hidden.mean(0))
        return self.out(hidden[self.state] + cell[self.state])


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("shape", "state"), [((5, 7), None), ((5, 7), -1), ((7,), None), ((7,), 0), ((5, 7), 99), ((7,), 99)])
def test_words(layers: int, batch_first: bool, shape: tuple[int, ...], state: int | None) -> None:
    torch.manual_seed(0)
    net = Words(layers, batch_first, batch_first, state)
    x = torch.randint(11, shape, generator=torch.Generator().manual_seed(0))
    for seed in (1, 2):
        sub = check(net, x, seed)
        assert len({len(sub.kept[g]) for g in sub.kept if g.startswith("lstm")}) == 1
        stores_its_sizes(sub.module(), x)
    graph = UnitGraph.trace(net, x)
    names = [f"lstm.l{k}" for k in range(layers)] if layers > 1 else ["lstm"]
    together = names[:1] if state == 99 else names  # where the states of all layers are read, their cells are one group
    assert graph.groups == {"embed": 4} | dict.fromkeys(together, 6)
    assert graph.equal == ((tuple(names),) if len(together) > 1 else ())
    below = ["embed", *(together * layers)[:layers]]
    for k in range(layers):
        assert [a.group for a in graph.axes[f"lstm.weight_ih_l{k}"]] == [below[k + 1], below[k]]
        assert [a.group for a in graph.axes[f"lstm.weight_hh_l{k}"]] == [below[k + 1]] * 2


SAME = (
    "ReLU, ReLU6, LeakyReLU, ELU, SELU, CELU, GELU, SiLU, Mish, Sigmoid, Tanh, Hardtanh, Hardswish, Hardsigmoid, Softplus, Softsign, "
    "LogSigmoid, Tanhshrink, Softshrink, Hardshrink, Threshold, Identity, Dropout, Dropout1d, Dropout2d, AlphaDropout"
)
OTHERS = (
    "Linear, Conv1d, Conv2d, BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm, PReLU, Embedding, LSTM, GRU, Upsample, Flatten, Softmax, "
    "LogSoftmax"
)


def test_every_supported_module_has_its_rule() -> None:
    spatial = {f"{name}{n}d" for name in ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "LPPool") for n in (1, 2)}
    rules = {layer.__name__: rule.__name__ for layer, rule in RULES.items()}
    assert rules.keys() == spatial | set(SAME.split(", ")) | set(OTHERS.split(", "))
    assert {rules[name] for name in SAME.split(", ")} == {"_same"}
    assert {rules[name] for name in spatial} == {"_pool"}


class Second(nn.Linear):
    """A linear layer of its own class."""

    def __init__(self) -> None:
        super().__init__(6, 2)
        parameters, self._parameters = self._parameters, {"none": None}
        self._parameters.update(parameters)  # the missing one comes first


class Odd(nn.Module):
    """Forwards that only a trace of every node gets right."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)
        self.embed, self.lstm = nn.Embedding(11, 5), nn.LSTM(5, 6)
        self.conv, self.over = nn.Conv1d(2, 6, 1), nn.LSTM(9, 4, batch_first=True)
        self.a2, self.out2, self.plain, self.pool = (
            nn.Linear(4, 6),
            nn.Linear(6, 2),
            nn.LayerNorm(6, elementwise_affine=False),
            nn.MaxPool2d((2, 1)),
        )
        self.deep = nn.LSTM(5, 6, 3)
        self.scale, self.norm, self.second = nn.Parameter(torch.rand(6) + 0.5), nn.BatchNorm1d(5), Second()

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "chunks of the input":
                x, y = x.split([4, 3], dim=-1)
                return self.out(torch.relu(self.a(x) + self.b(y)))
            case "samples and steps in one":
                return self.out(torch.tanh(self.a(x.reshape(-1, 4))))
            case "final states with a new axis":
                return self.out(self.lstm(self.embed(x))[1][0][-1].unsqueeze(0))
            case "a scale of its own":
                return self.out(self.a(x) * self.scale)
            case "channels as steps":
                return self.over(self.conv(x))[1][0][-1]
            case "pool over units":
                return self.pool(self.conv(x)[:, None].transpose(2, 3).transpose(1, 3)).flatten(1)
            case "one norm for two layers":
                return self.out(self.plain(self.a(x)).relu()) + self.out2(self.plain(self.a2(x)).tanh())
            case "cells that are compared":
                return self.out(torch.softmax(self.deep(self.embed(x))[0], -1))
            case "norm over units":
                return self.out(self.norm(self.a(x)))
        return self.second(self.a(x).relu())


@pytest.mark.parametrize(
    ("kind", "x", "groups"),
    [
        ("chunks of the input", torch.randn(3, 7), {"a": 6}),
        ("samples and steps in one", torch.randn(3, 5, 4), {"a": 6}),
        ("final states with a new axis", torch.arange(7), {"embed": 5, "lstm": 6}),
        ("a scale of its own", torch.randn(3, 4), {"a": 6}),
        ("channels as steps", torch.randn(3, 2, 9), {}),
        ("norm over units", torch.randn(3, 5, 4), {}),
        ("pool over units", torch.randn(3, 2, 9), {}),
        ("one norm for two layers", torch.randn(3, 4), {"a": 6}),
        ("cells that are compared", torch.randint(11, (3, 7)), {"embed": 5}),
        ("a parameter that is missing", torch.randn(3, 4), {"a": 6}),
    ],
)
def test_odd_forwards(kind: str, x: Tensor, groups: dict[str, int]) -> None:
    net = Odd(kind)
    graph = UnitGraph.trace(net, x)
    assert graph.groups == groups
    if groups and kind != "one norm for two layers":  # whose norm has no weights that the oracle could pick
        check(net, x, 1)
    if kind == "a scale of its own":
        assert graph.axes["scale"][0].group == "a"


def test_the_name_of_a_parameter_that_comes_first() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.table, self.out = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(4, 6)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.scale * 2.0) + x[:, :1] * self.table[:1])

    assert UnitGraph.trace(First(), torch.randn(1, 4)).groups == {"scale": 6}
