"""A chain of layers as blocks: features at each depth, classifiers on them at a client, and the rest of the network at the server."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.models.split import head
from paceline.submodels.flops import quiet

__all__ = ["TappedChain", "UpperNetworks", "block_ends", "pooled"]

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def block_ends(module: nn.Module) -> list[int]:
    """Return the number of layers up to the end of each block of a chain, without the head.

    A block begins with a layer with weights (other than a normalisation) and includes the layers without weights behind it.

    Raises:
        ConfigError: the module is not a chain with a linear head, or has no other layer with weights.

    Example:
        >>> block_ends(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)))
        [3, 5]
    """
    if not isinstance(module, nn.Sequential):
        raise ConfigError(
            f"{type(module).__name__} cannot be split into features of blocks; use an nn.Sequential that ends in nn.Linear"
        )
    head(module)
    layers = list(module)[:-1]
    starts = [k for k, layer in enumerate(layers) if any(True for _ in layer.parameters()) and not isinstance(layer, _NORMS)]
    if not starts:
        raise ConfigError("the model has no layer with weights beside its head, so it has no features to send; add a hidden layer")
    return [*starts[1:], len(layers)]


def pooled(h: Tensor) -> Tensor:
    """Return features averaged over all but the first two dimensions, shape [B, d], float32."""
    return (h.flatten(2).mean(2) if h.dim() > 2 else h).float()


class TappedChain(nn.Module):
    """A chain with a linear classifier on the pooled features of each depth; its output is the chain's.

    Args:
        chain: the chain.
        example: inputs of one sample.
        least: smallest depth with a classifier; depth 1 is the first block, and the last depth the input of the head.
    """

    def __init__(self, chain: nn.Module, example: Tensor, least: int) -> None:
        super().__init__()
        self.ends = block_ends(chain)
        self.chain, self.classes = cast(nn.Sequential, chain), head(chain).out_features
        self.shapes: list[tuple[int, ...]] = []
        h, widths = example, {}
        with quiet(chain):
            for depth in range(1, len(self.ends) + 1):
                h = self._between(h, self.ends[depth - 2] if depth > 1 else 0, self.ends[depth - 1])
                self.shapes.append(tuple(h.shape[1:]))
                widths[depth] = pooled(h).shape[1]
        lowest = min(least, len(self.ends))
        self.taps = nn.ModuleDict({str(k): nn.Linear(width, self.classes) for k, width in widths.items() if k >= lowest})

    def _between(self, h: Tensor, start: int, end: int) -> Tensor:
        for layer in list(self.chain)[start:end]:
            h = layer(h)
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Return the chain's scores, shape [B, C]."""
        return self._between(x, 0, len(self.chain))

    def lower(self, x: Tensor, depth: int) -> Tensor:
        """Return the features of block `depth`, shape [B, ...]."""
        return self._between(x, 0, self.ends[depth - 1])

    def upper(self, h: Tensor, depth: int) -> Tensor:
        """Return the chain's scores from the features of block `depth`."""
        return self._between(h, self.ends[depth - 1], len(self.chain))

    def tap(self, h: Tensor, depth: int) -> Tensor:
        """Return the scores of the classifier at `depth`, shape [B, C]."""
        scores: Tensor = self.taps[str(depth)](pooled(h))
        return scores


class UpperNetworks(nn.Module):
    """The rest of a chain above each depth, with a hidden layer before the scores; those of deeper depths are part of the others.

    Args:
        chain: the chain, of which only layers above depth `least` are used.
        example: inputs of one sample.
        least: smallest depth.
    """

    def __init__(self, chain: nn.Module, example: Tensor, least: int) -> None:
        super().__init__()
        ends, last = block_ends(chain), head(chain)
        first = ends[min(least, len(ends)) - 1]
        self.starts = [end - first for end in ends]
        self.layers = nn.ModuleList(list(cast(nn.Sequential, chain))[first:-1])
        width = last.in_features
        self.top = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, last.out_features))
        self.dtype = last.weight.dtype

    def forward(self, h: Tensor, depth: int) -> Tensor:
        """Return scores, shape [B, C], of the features of block `depth`."""
        h = h.to(self.dtype)
        for layer in list(self.layers)[self.starts[depth - 1] :]:
            h = layer(h)
        scores: Tensor = self.top(h.float())
        return scores
