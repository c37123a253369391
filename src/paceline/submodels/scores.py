"""Importance scores: how much each unit's bundle of weights changes.

The bundle of a unit is everything that is cut with it: incoming weights, bias, outgoing weights, and the
normalisation's scale and shift. A low score indicates a unit that training hardly changes. Scores are one tensor per
group, shape [units]; NaN marks a unit without information.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paceline.core.errors import ConfigError
from paceline.core.layout import Entry, Layout
from paceline.core.params import Params
from paceline.submodels.graph import UnitGraph

__all__ = ["Reduce", "Scorer", "Scores", "combine", "steady_mask", "unknown"]

Scores = dict[str, Tensor]
"""One score per unit, by group; NaN where unknown."""

Reduce = Literal["max", "mean", "l2"]
"""Reduction of the changes in a bundle to one score: maximum, mean, or ‖Δ‖ / ‖θ‖ of the bundle."""


@dataclass(frozen=True)
class _Part:
    """One axis of one tensor that belongs to a group."""

    entry: Entry
    group: str
    units: Tensor
    dims: tuple[int, ...]
    twice: Tensor | None
    """True where an earlier axis already counted the coordinate to the same unit (the diagonal of W_hh)."""


def unknown(sizes: Mapping[str, int], device: torch.device | str = "cpu") -> Scores:
    """Return scores without information (all NaN), on a device."""
    return {g: torch.full((n,), math.nan, device=device) for g, n in sizes.items()}


def steady_mask(delta: Params, theta: Params, threshold: float, tolerance: float = 1e-9) -> Params:
    """Return 1 for every steady weight, |Δ| <= threshold * |θ|, and 0 for the others (FLuID).

    Masks of several clients can be added; see `Scorer.invariant`.

    Args:
        delta: a client's update Δ, [d].
        theta: the model θ before the update, [d].
        threshold: largest relative change of a steady weight.
        tolerance: absolute change up to which a weight is always steady.
    """
    steady = delta.vector.abs() <= threshold * theta.vector.abs() + tolerance
    return Params(steady.to(theta.vector.dtype), theta.layout)


class Scorer:
    """Scores the units of one model.

    Args:
        graph: units of the model.
        layout: layout of the vectors to score; running statistics are not scored.
    """

    def __init__(self, graph: UnitGraph, layout: Layout) -> None:
        self.layout, self.groups = layout, graph.groups
        self._layer: dict[str, list[Entry]] = {}
        self._parts: list[_Part] = []
        for entry in layout.entries:
            if entry.kind != "param":
                continue
            self._layer.setdefault(entry.name.rpartition(".")[0], []).append(entry)
            axes = graph.axes[entry.name]
            for dim, axis in enumerate(axes):
                if axis.group is None:
                    continue
                twice: Tensor | None = None
                for earlier in range(dim):
                    if axes[earlier].group == axis.group:
                        a = axes[earlier].units.view([-1 if d == earlier else 1 for d in range(len(axes))])
                        b = axis.units.view([-1 if d == dim else 1 for d in range(len(axes))])
                        twice = (a == b) if twice is None else twice | (a == b)
                others = tuple(d for d in range(len(axes)) if d != dim)
                self._parts.append(_Part(entry, axis.group, axis.units, others, twice))

    def score(
        self,
        delta: Params,
        theta: Params,
        reduce: Reduce = "max",
        eps: float = 1e-3,
        trained: Params | None = None,
    ) -> Scores:
        """Return the relative change of every unit: reduction over its bundle of |Δ| / (|θ| + ε).

        ε is `eps` times the root mean square of the layer's weights, so that a zero bias cannot dominate. Relative change under
        Adam measures little more than 1/|θ|: score with SGD updates.

        Args:
            delta: the change, full size (a scattered update, or θ_t - θ_{t-1}).
            theta: the reference parameters.
            reduce: max, mean, or l2 (‖Δ‖ over ‖|θ| + ε‖), which is robust against one near-zero weight.
            eps: 0 yields the bare ratio.
            trained: 1 where `delta` was trained and 0 elsewhere (`SubModel.mask`); untrained coordinates are ignored, and
                units without trained ones are unknown.

        Raises:
            ConfigError: unknown reduction.
        """
        if reduce not in ("max", "mean", "l2"):
            raise ConfigError(f"reduce={reduce!r} must be max, mean or l2")
        top, bottom = delta.vector.abs(), theta.vector.abs()
        if eps:
            bottom = bottom + self._eps(theta, eps)
        live = torch.ones_like(top) if trained is None else trained.vector
        count = self._sums(live)
        if reduce == "l2":
            up, down = self._sums(live * top.square()), self._sums(live * bottom.square())
            return {g: _ratio(up[g].sqrt(), down[g].sqrt()).masked_fill(count[g] == 0, math.nan) for g in up}
        ratio = _ratio(top, bottom) * live
        if reduce == "max":
            return {g: v.masked_fill(count[g] == 0, math.nan) for g, v in self._largest(ratio).items()}
        return {g: v / count[g] for g, v in self._sums(ratio).items()}

    def total(self, values: Params) -> Scores:
        """Return the sum over each unit's bundle of the absolute value of each coordinate.

        Args:
            values: any value by coordinate, [d], such as gradient times weight.
        """
        return self._sums(values.vector.abs())

    def invariant(self, steady: Params, clients: float, quorum: float = 0.75) -> dict[str, Tensor]:
        """Return a mask of the units whose whole bundle is steady for at least `quorum` of the clients.

        Args:
            steady: sum of the clients' `steady_mask`, [d], so no individual mask needs to be seen.
            clients: number of clients in the sum.
            quorum: minimum share of them.

        Returns:
            bool mask of each group's units, shape [n].
        """
        moving = (steady.vector < quorum * clients - 1e-6).to(steady.vector.dtype)
        return {g: v < 0.5 for g, v in self._largest(moving).items()}

    def _eps(self, theta: Params, eps: float) -> Tensor:
        out = torch.zeros_like(theta.vector)
        for entries in self._layer.values():
            total = sum(theta[e.name].square().sum() for e in entries)
            rms = torch.as_tensor(total / sum(e.size for e in entries)).sqrt()
            for e in entries:
                out[e.offset : e.offset + e.size] = eps * rms
        return out

    def _sums(self, values: Tensor) -> Scores:
        out = {g: values.new_zeros(n) for g, n in self.groups.items()}
        for part in self._parts:
            view = self._view(values, part)
            out[part.group].scatter_add_(0, part.units.to(values.device), view.sum(part.dims) if part.dims else view)
        return out

    def _largest(self, values: Tensor) -> Scores:
        out = {g: values.new_zeros(n) for g, n in self.groups.items()}
        for part in self._parts:
            view = self._view(values, part)
            most = view.amax(part.dims) if part.dims else view
            out[part.group].scatter_reduce_(0, part.units.to(values.device), most, "amax")
        return out

    def _view(self, values: Tensor, part: _Part) -> Tensor:
        view = self.layout.view(values, part.entry.name)
        return view if part.twice is None else view.masked_fill(part.twice.to(view.device), 0.0)


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """Return top / bottom, with 0 / 0 = 0: an unchanged weight is steady, whatever its size."""
    return torch.where(top == 0, 0.0, top / bottom)


def combine(
    local: Mapping[str, Tensor],
    public: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    previous: Mapping[str, Tensor] | None = None,
    factor: float = 0.5,
    age: int = 1,
    limit: int = 10,
) -> Scores:
    """Combine scores: a client's own for the units it trained, the public change for the others.

    Args:
        local: scores of this client's last training.
        public: scores of θ_t - θ_{t-1}, which every client knows.
        kept: the units it trained, by group.
        previous: the combined scores so far; the result is ``factor * new + (1 - factor) * previous``.
        factor: weight of the new scores.
        age: rounds since `previous` was computed; if above `limit` it is ignored.
        limit: rounds after which scores are too old to use.
    """
    out = {}
    for group, theirs in public.items():
        own = torch.zeros(len(theirs), dtype=torch.bool, device=theirs.device)
        own[kept[group].to(theirs.device)] = True
        new = torch.where(own & ~local[group].isnan(), local[group], theirs)
        if previous is not None and age <= limit:
            before = previous[group]
            mixed = factor * new + (1.0 - factor) * before
            new = torch.where(before.isnan(), new, torch.where(new.isnan(), before, mixed))
        out[group] = new
    return out
