"""Every form in which a rule's function can be called: what is cut computes what the full model does without the rest."""

import operator
import re

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.errors import SubmodelError
from paceline.submodels.graph import UnitGraph
from paceline.submodels.rules import MODULES as RULES
from tests.submodels.oracle import check

X = (3, 2, 5, 6)
"""Samples, channels, rows, columns of the input; no two sizes of a tensor in a test are equal by accident."""


class Form(nn.Module):
    """Two convolutions of equally many channels, a form, and a linear layer."""

    def __init__(self, form) -> None:
        super().__init__()
        self.a, self.b, self.form = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), form
        self.scale, self.shift = nn.Parameter(torch.rand(4, 1, 1) + 0.5), nn.Parameter(torch.rand(1, 4, 1, 1))
        self.w, self.c = nn.Parameter(torch.rand(7, 6)), nn.Parameter(torch.rand(7))
        self.v, self.d = nn.Parameter(torch.rand(5, 4)), nn.Parameter(torch.rand(5))
        self.out = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.form(self, self.a(x)).flatten(1))


class Pair(Form):
    """The same with both convolutions' outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.form(self, self.a(x), self.b(x)).flatten(1))


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


APART = {
    "x * scale": lambda m, x: x * m.scale,
    "scale * x + shift": lambda m, x: m.scale * x + m.shift,
    "imul": lambda m, x: operator.imul(x.clone(), m.scale),
    "numbers": lambda m, x: 1.0 - 2 * x / 3 + x**2,
    "torch.add": lambda m, x: torch.add(x, m.shift, alpha=2.0),
    "torch.mul by keyword": lambda m, x: torch.mul(input=x, other=m.shift),
    "maximum": lambda m, x: torch.maximum(x, m.shift),
    "gate": lambda m, x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "mean -1": lambda m, x: x.mean(-1),
    "mean 3, keep": lambda m, x: x.mean(3, keepdim=True),
    "mean, keep by position": lambda m, x: x.mean(-2, True),
    "sum of both": lambda m, x: x.sum(dim=(2, 3)),
    "amax of both": lambda m, x: x.amax((-1, -2), keepdim=True),
    "amin": lambda m, x: x.amin(dim=2),
    "max with indices": lambda m, x: x.max(2)[0],
    "torch.max with indices": lambda m, x: torch.max(x, dim=3, keepdim=True)[0],
    "torch.max of two": lambda m, x: torch.max(x, m.scale),
    "torch.min of two": lambda m, x: torch.min(x, other=m.shift),
    "softmax": lambda m, x: F.softmax(x, 2),
    "softmax by keyword": lambda m, x: torch.softmax(x, dim=-1),
    "log_softmax": lambda m, x: x.log_softmax(3),
    "cat 2": lambda m, x: torch.cat([x, x * 2], 2),
    "cat -1": lambda m, x: torch.cat((x, x[..., :2], x[..., 1:]), dim=-1),
    "cat samples": lambda m, x: torch.cat([x, x])[:3],
    "cat of one": lambda m, x: torch.cat([x], 2),
    "stack 1": lambda m, x: torch.stack([x, x * 2, x * 3], 1),
    "stack -1": lambda m, x: torch.stack([x, x * 2], dim=-1),
    "stack 2": lambda m, x: torch.stack([x, x * 2], 2),
    "transpose": lambda m, x: x.transpose(1, 2),
    "transpose by keyword": lambda m, x: torch.transpose(x, dim0=1, dim1=-1),
    "swapaxes": lambda m, x: x.swapaxes(3, 1),
    "permute": lambda m, x: x.permute(0, 3, 1, 2),
    "permute of a tuple": lambda m, x: x.permute((0, 2, 1, 3)),
    "permute by keyword": lambda m, x: torch.permute(x, dims=(0, 2, 3, 1)),
    "view": lambda m, x: x.view(x.size(0), -1),
    "view of a tuple": lambda m, x: x.view((x.size(0), -1, 6)),
    "reshape by keyword": lambda m, x: torch.reshape(x, shape=(x.size(0), -1, 30)),
    "flatten in between": lambda m, x: torch.flatten(x, start_dim=2),
    "flatten 1 to 2": lambda m, x: x.flatten(1, 2),
    "unsqueeze and squeeze": lambda m, x: x.unsqueeze(1).squeeze(1),
    "unsqueeze behind": lambda m, x: x.unsqueeze(2),
    "columns": lambda m, x: x[..., 1:3],
    "a row": lambda m, x: x[:, :, 2],
    "the last of both": lambda m, x: x[:, :, -1, 0],
    "new axes": lambda m, x: x[:, None, :, 1:, None],
    "new axis before the ellipsis": lambda m, x: x[None, ..., 2][0],
    "samples": lambda m, x: x[0:3],
    "linear": lambda m, x: F.linear(x, m.w, m.c).mean(-1),
    "linear by keyword": lambda m, x: F.linear(input=x, weight=m.w, bias=m.c).amax(3),
    "linear without bias": lambda m, x: F.linear(x, m.w).sum(-1),
    "linear over channels": lambda m, x: F.linear(last(x), m.v, m.d),
    "pool": lambda m, x: F.max_pool2d(x, 2),
    "adaptive pool": lambda m, x: F.adaptive_avg_pool2d(x, output_size=(1, 2)),
    "pool rows": lambda m, x: F.avg_pool1d(x.flatten(2), kernel_size=3),
    "relu": lambda m, x: F.leaky_relu(x, negative_slope=0.2),
    "dropout": lambda m, x: F.dropout(x, p=0.5, training=m.training),
}
"""Forms that leave the channels apart."""


def net_of(kind, form) -> nn.Module:
    net = kind(form)
    net(torch.randn(X))
    return net


@pytest.mark.parametrize("form", APART)
def test_forms_that_leave_channels_apart(form: str) -> None:
    torch.manual_seed(0)
    net, x = net_of(Form, APART[form]), torch.randn(X)
    groups = {name: size for name, size in UnitGraph.trace(net, x).groups.items() if size > 1}
    assert groups == {"a": 4} | ({"v:0": 5} if form == "linear over channels" else {})
    for seed in (1, 2, 5):
        check(net, x, seed)


TOGETHER = {
    "sum": lambda m, x, y: x + y,
    "in place": lambda m, x, y: x.add_(y),
    "cat": lambda m, x, y: torch.cat([x, y], 3),
    "stack": lambda m, x, y: torch.stack((x, y), dim=1),
    "pow": lambda m, x, y: torch.pow(x.abs() + 1, y),
}


@pytest.mark.parametrize("form", TOGETHER)
def test_forms_in_which_two_layers_share_their_units(form: str) -> None:
    torch.manual_seed(0)
    net, x = net_of(Pair, TOGETHER[form]), torch.randn(X)
    assert UnitGraph.trace(net, x).groups == {"a": 4}
    for seed in (1, 2, 5):
        check(net, x, seed)


MIXED = {
    "sum of the mean": (lambda m, x: x.mean().sum() * x[..., 0], "sums or compares"),
    "mean of all": (lambda m, x: x.mean() * x[..., 0], "sums or compares"),
    "mean 1": (lambda m, x: x.mean(1), "sums or compares"),
    "sum -3": (lambda m, x: x.sum((-3, -1)), "sums or compares"),
    "max over channels": (lambda m, x: x.max(dim=1)[0], "sums or compares"),
    "softmax over all": (lambda m, x: F.softmax(x.flatten(1), dim=1), "normalises"),
    "log_softmax over channels": (lambda m, x: x.log_softmax(-3), "normalises"),
    "some channels": (lambda m, x: x[:, 1:], "selects some"),
    "one channel": (lambda m, x: x[:, -1], "selects some"),
    "channels from behind": (lambda m, x: x[..., 1, :, :], "selects some"),
    "cat channels": (lambda m, x: torch.cat([x, x[:, :, :]], -3), "concatenates"),
    "split": (lambda m, x: x.reshape(x.size(0), 2, -1, 5, 6), "splits or interleaves"),
    "interleave": (lambda m, x: x.transpose(1, 2).reshape(x.size(0), 4, 5, 6), "splits or interleaves"),
    "pool channels": (lambda m, x: F.avg_pool2d(x.permute(0, 2, 1, 3), 2), "pools over"),
    "broadcast": (lambda m, x: last(x)[:, :, :4].transpose(2, 3) + x[:, None, :, :, 0].transpose(2, 3)[:, :, :4], "do not align|not cut"),
    "number per channel": (lambda m, x: x + torch.arange(4.0)[:, None, None], "not cut"),
}  # fmt: skip


@pytest.mark.parametrize("form", MIXED)
def test_forms_that_mix_channels_keep_them_whole(form: str) -> None:
    torch.manual_seed(0)
    how, why = MIXED[form]
    graph = UnitGraph.trace(net_of(Form, how), torch.randn(X))
    assert graph.groups == {}
    assert re.search(why, graph.whole["a"])


@pytest.mark.parametrize(
    ("form", "named"),
    [
        (lambda m, x: x[[0, 1]], "its index is a .*list"),
        (lambda m, x: x[torch.arange(3)], "its index is a Tensor"),
        (lambda m, x: x.view(-1, 4, 30), "'view' writes the width 4"),
        (lambda m, x: x.reshape((3, 120)), "'reshape' writes the width 120"),
        (lambda m, x: torch.reshape(x, shape=(3, 4, 30)), "'reshape' writes the width 4"),
        (lambda m, x: x.view(size=(3, 20, 6)), "'view' writes the width 20"),
        (lambda m, x: x.cumsum(1), "'cumsum' cannot be cut .*no rule"),
    ],
)
def test_forms_that_are_refused(form, named: str) -> None:
    with pytest.raises(SubmodelError, match=named):
        UnitGraph.trace(net_of(Form, form), torch.randn(X))


def relu(x: Tensor) -> Tensor:
    return x.flip(1)


torch.fx.wrap("relu")


def test_a_function_of_ones_own_is_not_taken_for_torchs() -> None:
    with pytest.raises(SubmodelError, match=r"'relu' cannot be cut .*no rule"):
        UnitGraph.trace(net_of(Form, lambda m, x: relu(x)), torch.randn(X))


# -- modules ---------------------------------------------------------------------------------------------
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
    "Linear, Conv1d, Conv2d, BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm, PReLU, Embedding, LSTM, Flatten, Softmax, LogSoftmax"
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
        ("a parameter that is missing", torch.randn(3, 4), {"a": 6}),
    ],
)
def test_odd_forwards(kind: str, x: Tensor, groups: dict[str, int]) -> None:
    net = Odd(kind)
    graph = UnitGraph.trace(net, x)
    assert graph.groups == groups
    if groups:
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
