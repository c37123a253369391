"""Cut physically smaller dense models out of a full one, and scatter their updates back.

A `Cutter` represents the full model; ``cutter.cut(kept)`` returns a `SubModel`: a smaller layout with the same tensor
names, one index vector that gathers its coordinates from the full vector and scatters updates back, and a resident
dense module that actually trains faster.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paceline.core.errors import SubmodelError, nearest
from paceline.core.layout import Layout, float_buffers
from paceline.core.params import Params, Resident
from paceline.submodels.build import cut_tensor, output_shapes, shrink
from paceline.submodels.flops import flops
from paceline.submodels.graph import UnitGraph

__all__ = ["TIERS", "Cutter", "SubModel", "keep_count"]

TIERS = (1.0, 0.95, 0.85, 0.75, 0.65, 0.5)
"""Kept fractions available to stragglers."""

_CACHED = 16


def keep_count(units: int, fraction: float, up: bool = False) -> int:
    """Return ``max(1, floor(fraction * units))``, robust to binary rounding: 0.29 of 100 is 29.

    Args:
        units: number of units.
        fraction: p.
        up: round up instead (HeteroFL).

    Example:
        >>> keep_count(100, 0.29), keep_count(3, 0.1), keep_count(9, 0.5, up=True)
        (29, 1, 5)
    """
    return max(1, math.ceil(fraction * units - 1e-9) if up else int(fraction * units + 1e-9))


class SubModel:
    """One set of kept units of a full model.

    Args:
        cutter: the cutter that created it.
        kept: for each group the kept units, ascending.
        layout: the smaller layout; same tensor names, same order.
        index: coordinate in the full vector of each coordinate of the smaller one, shape [layout.size].
    """

    def __init__(self, cutter: Cutter, kept: dict[str, Tensor], layout: Layout, index: Tensor) -> None:
        self.cutter, self.kept, self.layout, self.index = cutter, kept, layout, index

    def _check(self, params: Params, layout: Layout) -> None:
        if params.layout is not layout and params.layout.digest != layout.digest:
            raise SubmodelError(f"expected parameters with {layout.size} values, got {params!r}")

    def extract(self, full: Params) -> Params:
        """Return the coordinates of this sub-model: one gather.

        Args:
            full: parameters of the full model, [d].

        Returns:
            parameters of the sub-model.
        """
        self._check(full, self.cutter.layout)
        return Params(full.vector.index_select(0, self.index.to(full.vector.device)), self.layout)

    def scatter(self, update: Params) -> Params:
        """Return a full vector with `update` on the coordinates of this sub-model and zero elsewhere.

        Scatter updates (differences), never weights: zeros in place of weights would bias a mean towards zero.

        Args:
            update: update of the sub-model.

        Returns:
            update of the full model, [d].
        """
        self._check(update, self.layout)
        full = update.vector.new_zeros(self.cutter.layout.size)
        return Params(full.index_copy_(0, self.index.to(full.device), update.vector), self.cutter.layout)

    def mask(self, device: torch.device | str | None = None) -> Params:
        """Return 1 on the kept coordinates of the full vector and 0 elsewhere; on the device of the full model by default."""
        return self.scatter(Params(torch.ones(self.layout.size, device=device or self.cutter.device), self.layout))

    def resident(self) -> Resident:
        """Return a dense smaller module with this layout, to be loaded by the caller.

        There is one module per tuple of widths and cutter, independent of which units are kept, so it contains one sub-model at
        a time. Tensors outside the layout (frozen weights, local buffers) are filled in here.
        """
        return self.cutter._resident(self)

    def module(self) -> nn.Module:
        """Return the resident's module with the values loaded last."""
        return self.resident().module

    def cut_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut named tensors of the full model (such as a client's own BatchNorm statistics)."""
        masks = self.cutter._masks(self.kept)
        return {n: cut_tensor(t, self.cutter.graph.axes[n], masks) for n, t in tensors.items()}

    def merge_tensors(self, full: Mapping[str, Tensor], small: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of the full tensors with the kept parts replaced by those of `small`."""
        masks, out = self.cutter._masks(self.kept), {}
        for name, tensor in full.items():
            where = [a.positions(masks).to(tensor.device) for a in self.cutter.graph.axes[name]]
            grid = torch.meshgrid(*where, indexing="ij") if where else ()
            out[name] = tensor.clone()
            out[name][grid] = small[name]
        return out


class Cutter:
    """Cuts sub-models out of one full model.

    Args:
        module: the full model; its values are read only for tensors outside `layout`.
        layout: layout of the full vector (`Layout.of(module, ...)`).
        example_input: one batch; axis 0 counts samples, and its values do not matter.

    Raises:
        SubmodelError: the module cannot be cut (see `UnitGraph.trace`).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> cutter = Cutter(net, Layout.of(net), torch.zeros(1, 4))
        >>> cutter.keep(0.5), cutter.first(0.5).layout.size
        ({'0': 4}, 30)
    """

    def __init__(self, module: nn.Module, layout: Layout, example_input: Tensor | tuple[Tensor, ...]) -> None:
        self.full, self.layout = module, layout
        self.mixed: torch.dtype | None = None
        """See `Resident.mixed`; applies to sub-models as to the full model."""
        self.device = next(module.parameters()).device
        """Device of the full model, its masks and its sub-models."""
        inputs = example_input if isinstance(example_input, tuple) else (example_input,)
        self.example = tuple(x.to(self.device) for x in inputs)
        self.graph = UnitGraph.trace(module, self.example)
        self.groups: dict[str, int] = self.graph.groups
        """Number of units of each group."""
        if not self.groups:
            raise SubmodelError(f"{type(module).__name__} has no units that can be removed: {self.graph.whole}")
        missing = [e.name for e in layout.entries if e.name not in self.graph.axes]
        if missing:
            raise SubmodelError(f"tensors of the layout are missing from the module: {missing}")
        self._built: OrderedDict[tuple[int, ...], Resident] = OrderedDict()
        self.flops = flops(module, self.example)
        """Forward FLOPs of the full model per sample."""
        self._costs: dict[tuple[int, ...], float] = {tuple(self.groups.values()): self.flops}
        self._shapes = output_shapes(module, self.example)
        cut = [n for n, axes in self.graph.axes.items() if any(a.group is not None for a in axes)]
        self._outside = [n for n in cut if n not in layout.by_name]

    @property
    def has_frozen(self) -> bool:
        """Whether sub-models have tensors outside the vector that depend on the kept units, except a client's own buffers."""
        own = {name for name, _ in float_buffers(self.full)}
        return not own.issuperset(self._outside)

    def keep(self, fraction: float, up: bool = False) -> dict[str, int]:
        """Return the number of units that each group keeps at the fraction p: ``keep_count(n, p, up)``.

        Args:
            fraction: p, above 0 and at most 1.
            up: round p n up instead of down.

        Raises:
            SubmodelError: p is not in (0, 1].
        """
        if not 0.0 < fraction <= 1.0:
            raise SubmodelError(f"the fraction of units must be above 0 and at most 1, not {fraction}")
        return {g: keep_count(n, fraction, up) for g, n in self.groups.items()}

    def cut(self, kept: Mapping[str, Tensor]) -> SubModel:
        """Return the sub-model with the given units.

        Args:
            kept: for each group (all of them) the units to keep, shape [count], in any order.

        Raises:
            SubmodelError: groups are unknown or missing; units are out of range, repeated or missing; or layers of one LSTM
                would keep different numbers of cells.
        """
        sorted_kept = self._checked(kept)
        masks = self._masks(sorted_kept)
        tensors, parts = [], []
        for entry in self.layout.entries:
            index, shape = torch.full((1,), entry.offset), []
            stride = entry.size
            for axis in self.graph.axes[entry.name]:
                at = axis.positions(masks)
                stride //= len(axis.units)
                index = (index[:, None] + at * stride).reshape(-1)
                shape.append(len(at))
            tensors.append((entry.name, tuple(shape), entry.kind))
            parts.append(index)
        return SubModel(self, sorted_kept, Layout.build(tensors), torch.cat(parts))

    def first(self, fraction: float, up: bool = False) -> SubModel:
        """Return the sub-model with the first ``keep(fraction, up)`` units of every group."""
        return self.cut({g: torch.arange(k) for g, k in self.keep(fraction, up).items()})

    def cost(self, fraction: float, up: bool = False) -> float:
        """Return c(p): forward FLOPs of the sub-model relative to those of the full model, from 0 to 1.

        Args:
            fraction: p, above 0 and at most 1.
            up: see `keep`.
        """
        widths = tuple(self.keep(fraction, up).values())
        if widths not in self._costs:
            self._costs[widths] = self.first(fraction, up).resident().flops
        return self._costs[widths] / self.flops

    def share(self, fraction: float) -> float:
        """Return the fraction of the vector's coordinates that a sub-model of this kept fraction has."""
        return self.first(fraction).layout.size / self.layout.size

    def _checked(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name in kept:
            if name not in self.groups:
                raise SubmodelError(f"unknown group {name!r}{nearest(name, self.groups)}")
        out = {}
        for name, size in self.groups.items():
            if name not in kept:
                raise SubmodelError(f"the units of group {name!r} are missing; list the retained units of every group")
            units = torch.sort(kept[name].detach().cpu().long().flatten()).values
            distinct = len(units) > 0 and not bool((units[1:] == units[:-1]).any())
            if not distinct or int(units[0]) < 0 or int(units[-1]) >= size:
                raise SubmodelError(f"group {name!r} must retain at least one of its units 0 to {size - 1}, each listed once")
            out[name] = units
        for names in self.graph.equal:
            if len({len(out[n]) for n in names}) > 1:
                raise SubmodelError(f"the layers {list(names)} of one LSTM must retain equally many cells")
        return out

    def _masks(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        masks = {g: torch.zeros(n, dtype=torch.bool) for g, n in self.groups.items()}
        for name, units in kept.items():
            masks[name][units] = True
        return masks

    def _resident(self, sub: SubModel) -> Resident:
        widths = _widths(sub)
        if widths in self._built:
            self._built.move_to_end(widths)
        else:
            self._built[widths] = self._build(sub)
            if len(self._built) > _CACHED:
                self._built.popitem(last=False)
        resident = self._built[widths]
        if self._outside:
            own = dict(resident.module.named_parameters()) | dict(resident.module.named_buffers())
            full = dict(self.full.named_parameters()) | dict(self.full.named_buffers())
            with torch.no_grad():
                for name, tensor in sub.cut_tensors({n: full[n] for n in self._outside}).items():
                    own[name].copy_(tensor)
        return resident

    def _build(self, sub: SubModel) -> Resident:
        small = shrink(self.full, self.graph, self._masks(sub.kept))
        try:
            same = output_shapes(small, self.example) == self._shapes
        except RuntimeError as error:
            raise SubmodelError(f"the forward pass of the sub-model with widths {_widths(sub)} failed: {error}") from error
        if not same:
            raise SubmodelError(f"the sub-model with widths {_widths(sub)} returns tensors of other shapes than the full model")
        cost = flops(small, self.example)
        resident = Resident(small, sub.layout, self.device)
        resident.flops, resident.mixed = cost, self.mixed
        return resident


def _widths(sub: SubModel) -> tuple[int, ...]:
    return tuple(len(units) for units in sub.kept.values())
