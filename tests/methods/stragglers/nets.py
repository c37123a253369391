"""Four small networks twice: as the module that a run trains, and as a plain forward pass over tensors cut by hand.

`axes` names, for each dimension of each tensor, the group of units that it is cut by and the positions of unit j.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 4
Axis = tuple[str, Callable[[int], list[int]]] | None


def plain(group: str) -> Axis:
    """Position j is unit j."""
    return group, lambda j: [j]


def blocks(group: str, size: int) -> Axis:
    """A channel's pixels, after (C, H, W) was flattened."""
    return group, lambda j: list(range(j * size, (j + 1) * size))


def gates(group: str, cells: int) -> Axis:
    """The rows of a cell in the four gates of an LSTM."""
    return group, lambda j: [j, j + cells, j + 2 * cells, j + 3 * cells]


@dataclass(frozen=True)
class Net:
    """A network: how to build it, how many units a group has, how its tensors are cut, and its forward pass.

    `forward(w, x, scale)` computes scores of x from (cut) tensors; `scale` multiplies the outputs of hidden layers.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    units: dict[str, int]
    axes: dict[str, tuple[Axis, ...]]
    forward: Callable[[dict[str, Tensor], Tensor, float], Tensor]

    def indices(self, name: str, kept: dict[str, list[int]], shape: tuple[int, ...]) -> list[list[int]]:
        """Return the positions that remain on each axis of a tensor."""
        places = []
        for axis, length in zip(self.axes[name], shape, strict=True):
            places.append(list(range(length)) if axis is None else sorted(p for j in kept[axis[0]] for p in axis[1](j)))
        return places

    def bundle(self, group: str, unit: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Return a mask of the coordinates that feed or read a unit, for each tensor."""
        masks = {}
        for name, axes in self.axes.items():
            masks[name] = np.zeros(shapes[name], bool)
            for dim, axis in enumerate(axes):
                if axis is not None and axis[0] == group:
                    np.moveaxis(masks[name], dim, 0)[axis[1](unit)] = True
        return masks


def _mlp(w: dict[str, Tensor], x: Tensor, scale: float) -> Tensor:
    x = torch.relu(scale * (x @ w["0.weight"].T + w["0.bias"]))
    x = torch.relu(scale * (x @ w["2.weight"].T + w["2.bias"]))
    return x @ w["4.weight"].T + w["4.bias"]


MLP = Net(
    lambda: nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, CLASSES)),
    (7,),
    {"0": 8, "2": 6},
    {
        "0.weight": (plain("0"), None),
        "0.bias": (plain("0"),),
        "2.weight": (plain("2"), plain("0")),
        "2.bias": (plain("2"),),
        "4.weight": (None, plain("2")),
        "4.bias": (None,),
    },
    _mlp,
)


def _conv(w: dict[str, Tensor], x: Tensor, scale: float) -> Tensor:
    x = torch.relu(scale * F.conv2d(x, w["0.weight"], w["0.bias"], padding=1))
    x = F.max_pool2d(x, 2)
    x = torch.relu(scale * F.conv2d(x, w["3.weight"], w["3.bias"], padding=1))
    return x.reshape(len(x), -1) @ w["6.weight"].T + w["6.bias"]


CONV = Net(
    lambda: nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4, CLASSES),
    ),
    (1, 4, 4),
    {"0": 5, "3": 6},
    {
        "0.weight": (plain("0"), None, None, None),
        "0.bias": (plain("0"),),
        "3.weight": (plain("3"), plain("0"), None, None),
        "3.bias": (plain("3"),),
        "6.weight": (None, blocks("3", 4)),
        "6.bias": (None,),
    },
    _conv,
)


class Recurrent(nn.Module):
    """Scores from the last state of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        return self.out(states[:, -1])


def _lstm(w: dict[str, Tensor], x: Tensor, scale: float) -> Tensor:
    h = c = x.new_zeros(len(x), w["lstm.weight_hh_l0"].shape[1])
    for t in range(x.shape[1]):
        both = x[:, t] @ w["lstm.weight_ih_l0"].T + w["lstm.bias_ih_l0"] + h @ w["lstm.weight_hh_l0"].T + w["lstm.bias_hh_l0"]
        i, f, g, o = both.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return h @ w["out.weight"].T + w["out.bias"]


LSTM = Net(
    Recurrent,
    (3, 5),
    {"lstm": 6},
    {
        "lstm.weight_ih_l0": (gates("lstm", 6), None),
        "lstm.weight_hh_l0": (gates("lstm", 6), plain("lstm")),
        "lstm.bias_ih_l0": (gates("lstm", 6),),
        "lstm.bias_hh_l0": (gates("lstm", 6),),
        "out.weight": (None, plain("lstm")),
        "out.bias": (None,),
    },
    _lstm,
)


def _norms(w: dict[str, Tensor], x: Tensor, scale: float) -> Tensor:
    """Group norm with groups of at least 2 channels, batch norm with the batch's own statistics."""
    x = scale * F.conv2d(x, w["0.weight"], w["0.bias"])
    groups = {6: 3, 3: 1}[x.shape[1]]
    split = x.reshape(len(x), groups, -1)
    x = ((split - split.mean(2, keepdim=True)) / (split.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()).reshape(x.shape)
    x = torch.relu(x * w["1.weight"][:, None, None] + w["1.bias"][:, None, None])
    x = scale * (x.reshape(len(x), -1) @ w["4.weight"].T + w["4.bias"])
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    x = torch.relu(x * w["5.weight"] + w["5.bias"])
    return x @ w["7.weight"].T + w["7.bias"]


NORMS = Net(
    lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, CLASSES),
    ),
    (1, 4, 4),
    {"0": 6, "4": 8},
    {
        "0.weight": (plain("0"), None, None, None),
        "0.bias": (plain("0"),),
        "1.weight": (plain("0"),),
        "1.bias": (plain("0"),),
        "4.weight": (plain("4"), blocks("0", 4)),
        "4.bias": (plain("4"),),
        "5.weight": (plain("4"),),
        "5.bias": (plain("4"),),
        "7.weight": (None, plain("4")),
        "7.bias": (None,),
    },
    _norms,
)

NETS = {"mlp": MLP, "conv": CONV, "lstm": LSTM, "norms": NORMS}
