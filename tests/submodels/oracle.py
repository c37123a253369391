"""The full model with dropped units taken out by zeros: what a sub-model must agree with."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.submodels.cut import Cutter, SubModel


class KeptNorm(nn.Module):
    """A GroupNorm or LayerNorm whose statistics are taken over the kept positions of one axis only."""

    def __init__(self, norm: nn.Module, kept: Tensor, groups: int | None) -> None:
        super().__init__()
        self.norm, self.kept, self.groups = norm, kept, groups

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        if self.groups is not None:
            weight, bias = self.norm.weight[self.kept], self.norm.bias[self.kept]
            out[:, self.kept] = F.group_norm(x[:, self.kept], self.groups, weight, bias, self.norm.eps)
        else:
            weight, bias = self.norm.weight[self.kept], self.norm.bias[self.kept]
            part = x[..., self.kept]
            out[..., self.kept] = F.layer_norm(part, part.shape[-1:], weight, bias, self.norm.eps)
        return out


def groups_left(groups: int, channels: int, kept: int) -> int:
    """The documented rule, written the slow way."""
    return max(g for g in range(1, kept + 1) if kept % g == 0 and (g == 1 or kept / g >= channels / groups))


def zeroed(module: nn.Module, sub: SubModel) -> nn.Module:
    full = copy.deepcopy(module).double()
    graph = sub.cutter.graph
    with torch.no_grad():
        for name, parameter in full.named_parameters():
            for dim, axis in enumerate(graph.axes[name]):
                if axis.group is not None:
                    gone = ~torch.isin(axis.units, sub.kept[axis.group])
                    parameter.transpose(0, dim)[gone] = 0.0
    for path, axes in graph.norms.items():
        norm, axis = full.get_submodule(path), axes[-1]
        if axis.group is None or isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        kept = torch.nonzero(torch.isin(axis.units, sub.kept[axis.group])).flatten()
        groups = None
        if isinstance(norm, nn.GroupNorm):
            groups = groups_left(norm.num_groups, norm.num_channels, len(kept))
        parent, _, leaf = path.rpartition(".")
        setattr(full.get_submodule(parent), leaf, KeptNorm(norm, kept, groups))
    return full


def randomise(module: nn.Module, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.running_mean.normal_(generator=rng)
            m.running_var.uniform_(0.5, 2.0, generator=rng)
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm) and m.weight is not None:
            nn.init.normal_(m.weight, generator=rng)
            nn.init.normal_(m.bias, generator=rng)


def random_kept(cutter: Cutter, seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    counts = {g: int(torch.randint(1, n + 1, (), generator=rng)) for g, n in cutter.groups.items()}
    for names in cutter.graph.equal:
        counts |= dict.fromkeys(names, counts[names[0]])
    return {g: torch.randperm(n, generator=rng)[: counts[g]] for g, n in cutter.groups.items()}


def check(module: nn.Module, example: Tensor, seed: int = 0) -> SubModel:
    """Cut at random; assert that index maps are exact and that forward passes agree."""
    randomise(module, seed)
    layout = Layout.of(module)
    cutter = Cutter(module, layout, example)
    sub = cutter.cut(random_kept(cutter, seed))
    full = Params.of(module, layout)
    small = sub.extract(full)
    assert torch.equal(sub.extract(sub.scatter(small)).vector, small.vector)
    mask = sub.mask().vector
    assert mask.sum() == sub.layout.size
    assert torch.equal(sub.scatter(small).vector, torch.where(mask > 0, full.vector, torch.zeros(())))
    sub.resident().load(small)
    dense = copy.deepcopy(sub.module()).double().eval()
    x = example.double() if example.is_floating_point() else example
    with torch.no_grad():
        ours, theirs = dense(x), zeroed(module, sub).eval()(x)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    return sub
