"""Removal of absolute position from features of patches (RASA, arXiv 2507.14137), from sums over clients.

Repeat: predict a patch's coordinates from its features by linear least squares, and remove the two directions that predict them. As all
steps are linear, they need the moments Z'Z and Z'y only once, and fold into one matrix. Weights of least squares are large where features
vary little, so each iteration removes little of what predicts; with a ridge they turn towards Z'y, without which nothing is predicted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paceline.core.client import Client
from paceline.core.params import Params
from paceline.core.update import Update
from paceline.models.split import head

__all__ = ["explained", "patch_moments", "position_targets", "removal", "remove_positions"]


_BATCH = 500


def position_targets(grid: tuple[int, int]) -> Tensor:
    """Return row and column of each patch, from -0.5 to 0.5, shape [T, 2]."""
    rows, columns = (torch.linspace(-0.5, 0.5, side) if side > 1 else torch.zeros(1) for side in grid)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)


@torch.no_grad()
def patch_moments(client: Client, params: Params, net: nn.Module) -> Update:
    """Return the means over a client's patches of ``gram`` = z'z, [D, D], ``cross`` = z'y, [D, 2], and ``square`` = |y|^2.

    Args:
        client: the client.
        params: its model, of which `net` is a part.
        net: a network with ``tokens(x)``, whose features of patches are z, and the attribute ``grid``; y are coordinates.
    """
    client.load(params)
    client.model.module.eval()
    shown: Any = net
    y = position_targets(shown.grid).to(client.device)
    share, width = max(client.num_samples * len(y), 1), head(net).in_features
    gram, cross = torch.zeros(width, width), torch.zeros(width, 2)
    for x, _ in client.train.batches(_BATCH):
        z = shown.tokens(x)[:, 1:].float()
        gram += torch.einsum("ntd,nte->de", z, z).cpu() / share
        cross += torch.einsum("ntd,tk->dk", z, y).cpu() / share
    client.flops += client.model.flops * client.num_samples
    return Update(gram=gram, cross=cross, square=float(y.square().sum(1).mean()), weight=client.num_samples)


def removal(w: Tensor) -> Tensor:
    """Return the projection that removes the plane of two directions, shape [D, D]; parallel or absent ones are one or none.

    Args:
        w: directions, shape [2, D].

    Example:
        >>> p = removal(torch.tensor([[3.0, 0.0, 0.0], [1.0, 2.0, 0.0]]))
        >>> (torch.tensor([1.0, 2.0, 3.0]).double() @ p).tolist()
        [0.0, 0.0, 3.0]
    """
    w = w.double()
    found = torch.eye(w.shape[1], dtype=torch.float64)
    for row in w:
        length = torch.linalg.vector_norm(row)
        rest = found @ (row / length.clamp(min=1e-300))
        norm = torch.linalg.vector_norm(rest)
        if float(length) > 1e-12 and float(norm) > 1e-6:
            found = found - torch.outer(rest, rest) / norm**2
    return found


def remove_positions(gram: Tensor, cross: Tensor, iterations: int = 9, ridge: float = 0.0) -> Tensor:
    """Return the matrix that removes position from features, shape [D, D]: ``Z @ matrix``.

    Args:
        gram: mean of Z'Z, shape [D, D].
        cross: mean of Z'y, shape [D, 2]; y as in `position_targets`.
        iterations: of fitting and removing; fewer, if nothing is left to remove.
        ridge: added to the diagonal of Z'Z for fitting, as a multiple of its mean.

    Example:
        >>> gram, cross = torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([[2.0], [1.0]])
        >>> left = lambda matrix: (matrix.T @ cross.double()).norm()
        >>> bool(left(remove_positions(gram, cross, 1, ridge=1e9)) < 1e-6 < left(remove_positions(gram, cross, 1)))
        True
    """
    gram, cross = gram.double(), cross.double()
    added = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    whole = torch.eye(len(gram), dtype=torch.float64)
    for _ in range(iterations):
        left = whole.T @ cross
        if torch.linalg.vector_norm(left) <= 1e-6 * torch.linalg.vector_norm(cross):
            break  # what is left predicts nothing, and its directions are those of rounding
        whole = whole @ removal(_fitted(whole.T @ gram @ whole + added, left).T)
    return whole


def explained(gram: Tensor, cross: Tensor, square: float) -> float:
    """Return the share of the coordinates' mean square that linear least squares explains.

    Args:
        gram: mean of Z'Z, shape [D, D].
        cross: mean of Z'y, shape [D, 2].
        square: mean of |y|^2.
    """
    gram, cross = gram.double(), cross.double()
    return float((_fitted(gram, cross) * cross).sum()) / max(square, 1e-12)


def _fitted(gram: Tensor, cross: Tensor) -> Tensor:
    """Return the least-squares weights, shape [D, 2]; directions without features have weight 0."""
    inverse: Tensor = torch.linalg.pinv(gram, rtol=1e-6, hermitian=True)
    return inverse @ cross
