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
    "mean over rows, channels last": lambda m, x: last(x).mean(1),
    "mean over rows, channels last, keep": lambda m, x: last(x).mean(1, True),
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
    "unsqueeze at the end": lambda m, x: x.unsqueeze(-1),
    "new axis and back": lambda m, x: x[..., None].squeeze(-1),
    "one row": lambda m, x: x.reshape(x.size(0), 1, -1),
    "ones around": lambda m, x: x.reshape(x.size(0), 1, -1, 1),
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
