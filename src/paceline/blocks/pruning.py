"""Unstructured pruning: protected tensors, units without incoming weights, and messages of surviving values alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from paceline.blocks.ranks import pack, unpack
from paceline.core.errors import ConfigError, WireError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.models.split import head_name
from paceline.submodels.graph import UnitGraph

__all__ = ["Protected", "PrunedModel", "prunable", "spread", "without_dead_units"]

Protected = Literal["nothing", "last-bias", "biases", "head"]
"""Tensors that are never masked, beside those of normalisations: the bias of the head, all biases, or these and the whole head."""

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_PRODUCERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)


@node
class PrunedModel:
    """A model as a message: its surviving values, shape [n], and a bit for each value of the model that says which ones survive."""

    values: Tensor
    bits: bytes

    @staticmethod
    def of(params: Params, mask: Params) -> PrunedModel:
        """Return the values where `mask` is 1."""
        return PrunedModel(params.vector[mask.vector > 0], pack(mask.vector > 0, 2))

    def opened(self, layout: Layout) -> tuple[Params, Params]:
        """Return the model, which is 0 where it is masked, and the mask, [d] both.

        Raises:
            WireError: the message does not fit the layout.
        """
        kept = unpack(self.bits, 2, layout.size).to(self.values.device) > 0
        if int(kept.sum()) != len(self.values):
            raise WireError(f"a pruned model has {len(self.values)} values, but its bits stand for {int(kept.sum())}")
        return spread(self.values, kept, layout), Params(kept.float(), layout)


def spread(values: Tensor, kept: Tensor, layout: Layout) -> Params:
    """Return the values, shape [n], at the coordinates where `kept`, shape [d], is true; 0 elsewhere."""
    return Params(values.new_zeros(layout.size).masked_scatter(kept, values), layout)


def prunable(module: nn.Module, layout: Layout, protected: Protected) -> list[str]:
    """Return the names of the tensors that may be masked."""
    matrices = [entry.name for entry in layout.entries if entry.kind == "param" and len(entry.shape) > 1]
    try:
        last = head_name(module)
    except ConfigError:
        last = matrices[-1].rpartition(".")[0] if matrices else ""
    found = []
    for entry in layout.entries:
        owner, _, leaf = entry.name.rpartition(".")
        bias = leaf == "bias" or leaf.startswith("bias_")
        spared = {
            "nothing": False,
            "last-bias": bias and owner == last,
            "biases": bias,
            "head": bias or owner == last,
        }[protected]
        if entry.kind == "param" and not spared and not isinstance(module.get_submodule(owner), _NORMS):
            found.append(entry.name)
    return found


def without_dead_units(mask: Params, module: nn.Module, graph: UnitGraph, share: float = 0.0) -> Params:
    """Return the mask with all weights and biases of a unit set to 0 whose incoming weights have hardly any survivor.

    A unit is a row of a linear layer, a filter of a convolution, or a recurrent cell; layers that add their outputs share their units.
    It is removed if at most `share` of the weights survive in each of its rows, together with the weights that read it, until no
    unit is left without incoming weights. Normalisations are left as they are.

    Args:
        mask: 1 for surviving parameters, [d].
        module: the model.
        graph: its units.
        share: largest share of surviving weights in a row of a removed unit.
    """
    mask = mask.clone()
    entries = [entry for entry in mask.layout.entries if entry.kind == "param"]
    owners = {entry.name: module.get_submodule(entry.name.rpartition(".")[0]) for entry in entries}
    foreign = {
        axis.group
        for entry in entries
        for axis in graph.axes[entry.name]
        if len(entry.shape) > 1 and not isinstance(owners[entry.name], _PRODUCERS)
    }
    while True:
        alive = {group: torch.zeros(size, dtype=torch.bool) for group, size in graph.groups.items()}
        for entry in entries:
            axis = graph.axes[entry.name][0] if entry.shape else None
            if len(entry.shape) > 1 and axis is not None and axis.group is not None:
                alive[axis.group][axis.units[mask[entry.name].flatten(1).mean(1) > share]] = True
        before = mask.vector.sum()
        for entry in entries:
            for dim, axis in enumerate(graph.axes[entry.name]):
                if axis.group is None or axis.group in foreign or isinstance(owners[entry.name], _NORMS):
                    continue
                mask[entry.name].mul_(alive[axis.group][axis.units].view([-1 if d == dim else 1 for d in range(len(entry.shape))]))
        if mask.vector.sum() == before:
            return mask
