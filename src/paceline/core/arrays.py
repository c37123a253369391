"""Samples of a task in columns, with the natural client of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.core.columns import columns, first, length, map_tree, select
from paceline.core.datasets import check_lengths, columnar
from paceline.core.errors import ConfigError

__all__ = ["Arrays"]


@dataclass(frozen=True)
class Arrays:
    """A data set as columns of N samples.

    Args:
        x: inputs: a tensor or array of shape [N, ...], a `Column`, or a tuple or dict of them.
        y: targets, likewise; class indices in classification. Whole numbers become int64.
        owner: natural client of each sample, shape [N] (int64 codes), or None.
        owners: names of the natural clients, by code.
    """

    x: Any
    y: Any
    owner: Tensor | None = None
    owners: Sequence[str] = ()

    def __post_init__(self) -> None:
        if type(self.x) is not Tensor or type(self.y) is not Tensor or self.y.dtype not in (torch.int64, torch.float32):
            object.__setattr__(self, "x", columnar(self.x))
            object.__setattr__(self, "y", map_tree(_long, columnar(self.y)))
        if type(self.x) is not Tensor or type(self.y) is not Tensor or len(self.x) != len(self.y):
            check_lengths(self.x, self.y, "samples")

    def __len__(self) -> int:
        return length(self.x)

    def subset(self, index: Tensor) -> Arrays:
        """Return the samples at `index` (copied)."""
        owner = None if self.owner is None else self.owner[index]
        return Arrays(select(self.x, index), select(self.y, index), owner, self.owners)

    @property
    def example(self) -> Any:
        """Inputs of the first sample, as a batch."""
        return first(self.x)

    def tensors(self, what: str) -> tuple[Tensor, Tensor]:
        """Return the inputs and the targets of samples that have one tensor of each.

        Args:
            what: what requires that, for the message.

        Raises:
            ConfigError: there are several, or they are not in memory.
        """
        if isinstance(self.x, Tensor) and isinstance(self.y, Tensor):
            return self.x, self.y
        names = [name or type(column).__name__ for tree in (self.x, self.y) for name, column in columns(tree)]
        raise ConfigError(f"{what} requires one tensor of inputs and one of targets in memory; the samples have {', '.join(names)}")


def _long(column: Any) -> Any:
    return column.long() if isinstance(column, Tensor) and not column.is_floating_point() else column
