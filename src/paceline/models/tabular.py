"""Model of tables that embeds each column: categories by a vector each, numbers by lines that bend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.models.card import model_card
from paceline.models.dense import mlp

__all__ = ["ColumnEmbedding", "tabular"]


class ColumnEmbedding(nn.Module):
    """Maps rows [N, F] to [N, columns * dim]: of a category its vector, of a number x the vector relu(x w + b).

    Args:
        categories: for each column the number of inputs of a category, of which one is 1; or 0 for a number, which is one input.
        dim: width of a column's vector.
    """

    def __init__(self, categories: Sequence[int], dim: int) -> None:
        super().__init__()
        self.categories = tuple(categories)
        self.columns = nn.ModuleList([nn.Linear(size or 1, dim, bias=not size) for size in self.categories])
        for size, column in zip(self.categories, self.columns, strict=True):
            if size:
                nn.init.normal_(column.weight, std=0.5)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors of all columns, one after the other."""
        vectors, start = [], 0
        for size, column in zip(self.categories, self.columns, strict=True):
            vector = column(x[:, start : start + (size or 1)])
            vectors.append(vector if size else vector.relu())
            start += size or 1
        return torch.cat(vectors, 1)


@model_card("table")
def tabular(
    shape: Sequence[int] = (20,),
    num_classes: int = 2,
    categories: Sequence[int] = (),
    dim: int = 8,
    hidden: Sequence[int] | int = (64,),
) -> nn.Module:
    """Return a perceptron on an embedding of each column (Guo and Berkhahn, 2016; Gorishniy et al., 2022).

    Args:
        shape: (F,), inputs of a row.
        num_classes: number of outputs.
        categories: for each column the inputs that a category has, or 0 for a number; by default all are numbers.
        dim: width of a column's vector.
        hidden: widths of the hidden layers, or the width of a single one.

    Raises:
        ConfigError: the samples are no rows, or the columns have another number of inputs.
    """
    columns = tuple(categories) or (0,) * (shape[0] if len(shape) == 1 else 0)
    if len(shape) != 1 or dim < 1 or sum(size or 1 for size in columns) != shape[0]:
        raise ConfigError(
            f"model tabular with dim={dim} requires rows [F] of a table whose columns have as many inputs; these are {tuple(shape)} with "
            f"categories={list(categories)}"
        )
    return nn.Sequential(ColumnEmbedding(columns, dim), *mlp((len(columns) * dim,), num_classes, hidden)[1:])  # type: ignore[index]
