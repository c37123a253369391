"""Random architectures, random kept sets: a sub-model computes what the full model does without the rest."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.submodels.oracle import check, zeroed

quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**31)


class Residual(nn.Module):
    def __init__(self, channels: int, inner: int, norm: str) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, inner, 3, padding=1, bias=norm != "bn")
        self.norm = make_norm(norm, inner)
        self.b = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.norm(self.a(x))))


def make_norm(kind: str, channels: int) -> nn.Module:
    if kind == "bn":
        return nn.BatchNorm2d(channels)
    if kind == "gn":
        return nn.GroupNorm(next(g for g in (4, 3, 2, 1) if channels % g == 0), channels)
    return nn.GroupNorm(channels, channels) if kind == "in" else nn.Identity()


@st.composite
def conv_nets(draw: st.DrawFn) -> nn.Module:
    width, layers = 2, []
    norms = st.sampled_from(["none", "bn", "gn", "in"])
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "depthwise", "multiplied", "grouped", "residual"]))
        if kind == "residual":
            layers.append(Residual(width, draw(st.integers(1, 5)), draw(norms)))
        elif kind == "depthwise":
            layers.append(nn.Conv2d(width, width, 3, padding=1, groups=width))
        elif kind == "multiplied":
            layers.append(nn.Conv2d(width, 2 * width, 3, padding=1, groups=width))
            width *= 2
        elif kind == "grouped" and width % 2 == 0:
            layers.append(nn.Conv2d(width, 6, 3, padding=1, groups=2))
            width = 6
        else:
            out = draw(st.integers(2, 8))
            layers.append(nn.Conv2d(width, out, 3, padding=1))
            width = out
        layers.append(make_norm(draw(norms), width))
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.SiLU()])))
    layers.append(draw(st.sampled_from([nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Identity()])))
    size = {nn.MaxPool2d: 4, nn.AdaptiveAvgPool2d: 1}.get(type(layers[-1]), 16)
    hidden = draw(st.integers(2, 7))
    head = [nn.Flatten(), nn.Linear(width * size, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
    return nn.Sequential(*layers, *head, nn.Linear(hidden, 5), nn.ReLU(), nn.Linear(5, 3))


class Text(nn.Module):
    def __init__(self, dim: int, hidden: int, layers: int, batch_first: bool, how: str, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, dim)
        self.lstm = kind(dim, hidden, layers, batch_first=batch_first, bias=hidden % 2 == 0)
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, 11)
        self.batch_first, self.how = batch_first, how

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if not self.batch_first:
            x = x.transpose(0, 1)
        states, last = self.lstm(x)
        last = last[0] if isinstance(self.lstm, nn.LSTM) else last
        if not self.batch_first:
            states = states.permute(1, 0, 2)
        if self.how == "last":
            return self.out(self.norm(states[:, -1]))
        if self.how == "hidden":
            return self.out(self.norm(last[-1]))
        if self.how == "stack":
            return self.out(self.norm(last.mean(0)))
        return self.out(self.norm(states)).transpose(1, 2)


@quick
@given(net=conv_nets(), seed=seeds)
def test_conv_nets(net: nn.Module, seed: int) -> None:
    check(net, torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)), seed)


@quick
@given(
    dim=st.integers(1, 6),
    hidden=st.integers(1, 7),
    layers=st.integers(1, 3),
    batch_first=st.booleans(),
    how=st.sampled_from(["last", "hidden", "stack", "all"]),
    kind=st.sampled_from([nn.LSTM, nn.GRU]),
    seed=seeds,
)
def test_text_nets(dim: int, hidden: int, layers: int, batch_first: bool, how: str, kind: type[nn.Module], seed: int) -> None:
    net = Text(dim, hidden, layers, batch_first, how, kind)
    check(net, torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(seed)), seed)


class Gated(nn.Module):
    """Functional calls, a gate, a learnt scale, a 1-d convolution, a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(6, 1) + 0.5)
        self.gate = nn.Linear(6, 6)
        self.shared = nn.Linear(6, 6)
        self.act = nn.PReLU(6)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)) * self.scale
        x = F.avg_pool1d(x, 2).mean(dim=-1)
        x = torch.add(x, torch.sigmoid(self.gate(x)) * x)
        x = self.act(self.shared(F.dropout(self.shared(x), 0.5, self.training)))
        return F.log_softmax(self.out(x[:, :, None].squeeze(-1)), dim=1)


class ChannelsLast(nn.Module):
    """Flattens (H, W, C), so channel j owns every C-th column and not a block of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3)
        self.norm = nn.BatchNorm1d(20)
        self.out = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).permute(0, 2, 3, 1)
        return self.out(self.norm(x.reshape(x.size(0), -1)))


class Joined(nn.Module):
    """Features of two layers side by side, which stay whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 3)
        self.c, self.out = nn.Linear(9, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.c(torch.cat([self.a(x), self.b(x)], dim=1))))


class FlatNorm(nn.Module):
    """A residual add on flattened channels: a linear layer's outputs fold into channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.skip, self.out = nn.Conv2d(2, 3, 3), nn.Linear(5, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).flatten(1) + self.skip(x[:, 0].flatten(1)[:, :5]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("make", "shape"),
    [(Gated, (3, 4, 6)), (ChannelsLast, (3, 2, 4, 4)), (Joined, (3, 4)), (FlatNorm, (3, 2, 4, 4))],
)
def test_hand_made_nets(make: type[nn.Module], shape: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    check(make(), torch.randn(shape), seed)


def test_a_channels_last_flatten_is_followed_in_its_own_order() -> None:
    sub = check(ChannelsLast(), torch.randn(3, 2, 4, 4), 1)
    columns = sub.cutter.graph.axes["out.weight"][1]
    assert columns.group == "conv"
    assert columns.units.tolist() == [0, 1, 2, 3, 4] * 4


def test_units_that_meet_at_another_grain_fold_into_the_coarser() -> None:
    graph = check(FlatNorm(), torch.randn(3, 2, 4, 4), 2).cutter.graph
    assert graph.groups == {"conv": 3}
    assert torch.equal(graph.axes["skip.weight"][0].units, torch.arange(3).repeat_interleave(4))
    assert torch.equal(graph.axes["out.weight"][1].units, torch.arange(3).repeat_interleave(4))


def test_training_steps_agree_too() -> None:
    """Batch statistics, gradients: the sub-model's gradient is the full one's on the kept coordinates."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.Tanh(),
        nn.Linear(6, 2),
    )
    x = torch.randn(5, 2, 4, 4)
    sub = check(net, x, 3)
    layout = sub.cutter.layout
    full = zeroed(net, sub).train()
    full(x.double()).square().sum().backward()
    resident = sub.resident()
    resident.module.train()
    resident.grads.vector.zero_()
    resident.module(x).square().sum().backward()
    theirs = torch.cat([p.grad.flatten() for p in full.parameters()]).float()
    assert layout.num_params == len(theirs)
    index = sub.index[sub.index < layout.num_params]
    ours = resident.grads.vector[: len(index)]
    torch.testing.assert_close(ours, theirs[index], atol=1e-4, rtol=1e-4)
