"""Self-distillation with nested heads: student and teacher networks, heads of several granularities, and their losses.

A head of level l maps m_l values of an embedding of width D to scores of K_l prototypes. The teacher's scores, balanced over a batch,
are targets for the student's: of the other global view, of local views, and of patches that the student does not see.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.blocks.contrastive import koleo, sinkhorn
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.models.split import features, head

__all__ = ["Branch", "NestedHead", "SelfDistilled", "followed", "following", "level_sizes", "self_distillation"]

STUDENT_TEMPERATURE = 0.1
KOLEO = 0.1

Balance = Literal["sinkhorn", "centering"]


def level_sizes(width: int, prototypes: int, levels: int = 5) -> list[tuple[int, int]]:
    """Return (m_l, K_l) of each level, coarse to fine: m_l = D / 2^(levels - 1 - l), K_l = K m_l / D; at least 1 and 2.

    Example:
        >>> level_sizes(384, 4096)
        [(24, 256), (48, 512), (96, 1024), (192, 2048), (384, 4096)]
    """
    dims = [max(1, width // 2 ** (levels - 1 - level)) for level in range(levels)]
    return [(m, max(2, prototypes * m // width)) for m in dims]


class NestedHead(nn.Module):
    """Scores of prototypes at several levels: projection, three layers with GELU, and prototypes of length 1.

    Args:
        width: D, of the embeddings.
        sizes: (m_l, K_l) of each level.
        hidden, bottleneck: widths of the layers.
        nest: ``project``: each level projects the whole embedding; ``slice``: level l reads its first m_l values.
    """

    def __init__(
        self, width: int, sizes: Sequence[tuple[int, int]], hidden: int, bottleneck: int, nest: Literal["project", "slice"]
    ) -> None:
        super().__init__()
        self.dims, self.nest = [m for m, _ in sizes], nest
        self.project = nn.ModuleList([nn.Linear(width, m) for m in self.dims] if nest == "project" else [])
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(m, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck), nn.GELU()
            )
            for m in self.dims
        )
        self.prototypes = nn.ParameterList([nn.Parameter(torch.empty(count, bottleneck)) for _, count in sizes])
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:  # 0.02 at the published width of 2048; less would make all outputs of narrow heads alike
                nn.init.trunc_normal_(parameter, std=0.02 * math.sqrt(2048 / parameter.shape[1]))

    def forward(self, z: Tensor) -> list[Tensor]:
        """Return the scores of each level, shape [..., K_l], from embeddings [..., D]."""
        found = []
        for level, m in enumerate(self.dims):
            own = self.project[level](z) if self.nest == "project" else z[..., :m]
            found.append(self.layers[level](own) @ F.normalize(self.prototypes[level], dim=1).T)
        return found


class Branch(nn.Module):
    """A network with heads for its embeddings and, if it has ``tokens(x, hidden, mask)``, for its patches.

    Args:
        net: with a head (`paceline.models.split`), which is not used here.
        make: makes a head for embeddings of a width.
    """

    def __init__(self, net: nn.Module, make: Callable[[int], NestedHead]) -> None:
        super().__init__()
        width = head(net).in_features
        self.net, self.cls = net, make(width)
        self.patch = make(width) if hasattr(net, "tokens") else None
        self.mask = nn.Parameter(torch.zeros(width)) if self.patch is not None else None

    def embed(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings, shape [N, D], and those of patches, shape [N, T, D], or None."""
        if self.patch is None:
            return features(self.net, x), None
        tokens: Tensor = cast(Any, self.net).tokens(x, hidden, self.mask)
        return tokens[:, 0], tokens[:, 1:]


class SelfDistilled(nn.Module):
    """A student and its teacher, a copy at first. As a model it is a linear probe of the teacher's embeddings.

    Args:
        net: builds the network; its own last layer remains unused, but its shape is the probe's.
        make: see `Branch`.
    """

    head_name = "probe"

    def __init__(self, net: Callable[[], nn.Module], make: Callable[[int], NestedHead]) -> None:
        super().__init__()
        made = net()
        last = head(made).requires_grad_(False)
        self.student = Branch(made, make)
        self.teacher = copy.deepcopy(self.student)
        self.probe = nn.Linear(last.in_features, last.out_features)

    def features(self, x: Tensor) -> Tensor:
        """Return the teacher's embeddings, shape [N, D]."""
        return features(self.teacher.net, x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the probe's scores, shape [N, outputs]."""
        out: Tensor = self.probe(self.features(x))
        return out


@lru_cache(maxsize=16)
def _places(layout: Layout, buffers: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return where each coordinate's student is (its own place, except for the teacher's), which are the teacher's, and which the
    student's, each of shape [d]."""
    source, of = torch.arange(layout.size), {"teacher": torch.zeros(layout.size, dtype=torch.bool)}
    of["student"] = of["teacher"].clone()
    for entry in layout.entries:
        branch, _, rest = entry.name.partition(".")
        if branch in of and (buffers or entry.kind == "param"):
            of[branch][entry.offset : entry.offset + entry.size] = True
            if branch == "teacher":
                twin = layout.by_name[f"student.{rest}"].offset
                source[entry.offset : entry.offset + entry.size] = torch.arange(twin, twin + entry.size)
    return source, of["teacher"], of["student"]


def following(
    layout: Layout, device: torch.device, momentum: float, shrink: float = 1.0, buffers: bool = False
) -> Callable[[Params], Params]:
    """Return the step of a `SelfDistilled` after which teacher is momentum * teacher + (1 - momentum) * student.

    Args:
        layout: of the parameters.
        device: that the parameters are on.
        momentum: m.
        shrink: factor on the student before, for weight decay.
        buffers: average running statistics too.
    """
    source, teacher, student = (places.to(device) for places in _places(layout, buffers))

    def step(params: Params) -> Params:
        now = params.vector if shrink == 1.0 else torch.where(student, shrink * params.vector, params.vector)
        return Params(torch.where(teacher, momentum * now + (1 - momentum) * now[source], now), params.layout)

    return step


def followed(params: Params, momentum: float, shrink: float = 1.0, buffers: bool = False) -> Params:
    """Return the parameters of a `SelfDistilled` after one step of `following`."""
    return following(params.layout, params.vector.device, momentum, shrink, buffers)(params)


def _targets(scores: Tensor, temperature: float, balance: Balance, kept: Tensor | None = None) -> Tensor:
    """Return the teacher's targets: balanced by `sinkhorn`, or a softmax of scores minus their mean over the batch."""
    if balance == "sinkhorn":
        return sinkhorn(scores, temperature, kept=kept)
    weight = torch.ones_like(scores[:, :1]) if kept is None else kept.unsqueeze(1).to(scores)
    centre = (weight * scores).sum(0) / weight.sum(0).clamp(min=1)
    return ((scores - centre) / temperature).softmax(1) * weight


def self_distillation(
    module: SelfDistilled, views: Tensor, crops: Tensor, hidden: Tensor | None, temperature: float, balance: Balance = "sinkhorn"
) -> Tensor:
    """Return the loss: global and local views, hidden patches, and the spread of embeddings (KoLeo), summed over levels.

    Args:
        module: student and teacher.
        views: two global views of each sample, shape [B, 2, ...].
        crops: n local views, shape [B, n, ...].
        hidden: patches of the global views that the student does not see, shape [B, 2, T] (bool); None without patches.
        temperature: of the teacher.
        balance: of the targets.
    """
    batch, count = len(views), crops.shape[1]
    pairs = 2 + 2 * count
    both = views.transpose(0, 1).flatten(0, 1)  # the first views of all samples, then the second
    masks = None if hidden is None else hidden.transpose(0, 1).flatten(0, 1)
    with torch.no_grad():
        seen, patches = module.teacher.embed(both)
        targets = [_targets(z, temperature, balance) for z in module.teacher.cls(seen)]
    own, own_patches = module.student.embed(both, masks)
    small, _ = module.student.embed(crops.transpose(0, 1).flatten(0, 1))
    total = sum((koleo(part) for part in (own[:batch], own[batch:])), own.new_zeros(())) * KOLEO if batch > 1 else own.new_zeros(())
    for q, z, local in zip(targets, module.student.cls(own), module.student.cls(small), strict=True):
        swapped = torch.cat([q[batch:], q[:batch]])
        total = total - 2 / pairs * (swapped * (z / STUDENT_TEMPERATURE).log_softmax(1)).sum(1).mean()
        logs = (local / STUDENT_TEMPERATURE).log_softmax(1).view(count, batch, -1).sum(0)
        total = total - (q.view(2, batch, -1).sum(0) * logs).sum(1).mean() / pairs
    if masks is None or patches is None or own_patches is None or module.teacher.patch is None or module.student.patch is None:
        return total
    weight = masks / masks.sum(1, keepdim=True).clamp(min=1) / len(masks)
    with torch.no_grad():
        flat = [_targets(z.flatten(0, 1), temperature, balance, masks.flatten()) for z in module.teacher.patch(patches)]
    for q, z in zip(flat, module.student.patch(own_patches), strict=True):
        each = -(q.view_as(z) * (z / STUDENT_TEMPERATURE).log_softmax(2)).sum(2)
        total = total + (weight * each).sum()
    return total
