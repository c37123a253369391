"""Nested sub-models by a public order of the units, and the segments into which they partition a model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from paceline.core.declarations import Nesting
from paceline.core.errors import ProtocolError
from paceline.core.nested import Places, Segmenter
from paceline.core.serialization import digest
from paceline.core.services import Host
from paceline.core.tree import Tree
from paceline.submodels.cut import Cutter
from paceline.submodels.service import submodel_service

__all__ = ["UnitSegmenter", "leading_units", "segmenter_service"]

_CACHED = 4


def leading_units(order: Tree, groups: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the units of a nested sub-model: of each group, those with the highest scores, ascending.

    Ties are broken by index, so equal scores give the first units.

    Args:
        order: public score of each unit by group, [n]; empty for the order of the units.
        groups: number of units of each group.
        counts: number of units to keep in each group.

    Raises:
        ProtocolError: the order does not fit the groups.

    Example:
        >>> leading_units({"a": torch.tensor([1.0, 3.0, 2.0])}, {"a": 3}, {"a": 2})
        {'a': tensor([1, 2])}
    """
    if not isinstance(order, dict) or (order and order.keys() != groups.keys()):
        raise ProtocolError("the public order of the units does not list the groups of the model")
    kept = {}
    for group, size in groups.items():
        scores = order.get(group, torch.zeros(size))
        if not isinstance(scores, Tensor) or scores.shape != (size,) or not bool(torch.isfinite(scores.double()).all()):
            raise ProtocolError(f"the public order needs one finite score for each of the {size} units of group {group!r}")
        ranked = torch.sort(scores.detach().cpu().double(), descending=True, stable=True).indices
        kept[group] = ranked[: counts[group]].sort().values
    return kept


class UnitSegmenter(Segmenter):
    """Segments of one model.

    Args:
        build: creates the cutter; called once.
    """

    def __init__(self, build: Callable[[], Cutter]) -> None:
        self._build = build
        self._known: OrderedDict[Any, Places] = OrderedDict()

    def places(self, order: Tree, nesting: Nesting) -> Places:
        """Return the coordinates of each segment; those of the latest orders are stored."""
        key = digest(order)[0], nesting.fractions, nesting.rounds_up
        if key not in self._known:
            self._known[key] = self._derived(order, nesting)
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
        return self._known[key]

    def _derived(self, order: Tree, nesting: Nesting) -> Places:
        cutter = self._build()
        labels = torch.zeros(cutter.layout.size, dtype=torch.uint8)
        for segment, fraction in enumerate(nesting.fractions[1:], 1):
            kept = leading_units(order, cutter.groups, cutter.keep(fraction, nesting.rounds_up))
            labels[cutter.cut(kept).index] = segment
        return [torch.nonzero(labels == segment).flatten() for segment in range(len(nesting.fractions))]


def segmenter_service(host: Host) -> Segmenter:
    """Return the service for a worker; nothing is traced before its first use."""
    made = submodel_service(host)
    return UnitSegmenter(lambda: made.cutter)
