"""Small transformers that support adapters and prompts: a vision transformer and a character language model.

Query, key and value are separate layers, so that adapters can be attached to each. ``vit`` with the dimensions of
ViT-B/16 (dim 768, depth 12, patch 16 on 224 x 224) has exactly its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.models.card import model_card

__all__ = ["Attention", "Block", "CharModel", "VisionTransformer", "char_model", "vit"]


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: width d, a multiple of `heads`.
        heads: number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return the attended values, shape [N, T, d]; `seen` is the attention mask, [N, T, T] (bool)."""
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # torch.func can vectorise this, unlike fused kernels
        if seen is not None:  # not minus infinity: a fully masked position would become NaN
            scores = scores.masked_fill(~seen[:, None], -1e9)
        attended: Tensor = self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return attended


class Block(nn.Module):
    """Attention and a two-layer network, each preceded by a LayerNorm and wrapped in a residual connection.

    `after` is the place of an adapter: after the network, before its residual addition.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.after: nn.Module = nn.Identity()

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return shape [N, T, d]; for `seen` see `Attention`."""
        x = x + self.attention(self.norm1(x), seen)
        out: Tensor = x + self.after(self.fc2(F.gelu(self.fc1(self.norm2(x)))))
        return out


class VisionTransformer(nn.Module):
    """Vision transformer that classifies by its class token.

    `prompts` is the place of learnt tokens: a module ``(x, block number) -> x``.
    """

    head_name = "head"

    def __init__(self, shape: Sequence[int], num_classes: int, dim: int, depth: int, heads: int, patch: int, hidden: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.width, self.patch, self.channels = dim, patch, channels
        self.grid = (height // patch, width // patch)
        self.embed = nn.Conv2d(channels, dim, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + (height // patch) * (width // patch), dim))
        self.blocks = nn.ModuleList([Block(dim, heads, hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        self.prompts: nn.Module | None = None
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def features(self, x: Tensor) -> Tensor:
        """Return the input of the head, shape [N, d]."""
        return self.tokens(x)[:, 0]

    def tokens(self, x: Tensor, hidden: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the class token and the patches after the last block, shape [N, 1 + T, d], of pictures of any multiple of the patch.

        Args:
            x: pictures, shape [N, C, H, W]; positions are interpolated where the sides are not those of the model.
            hidden: which patches are replaced before the first block, shape [N, T] (bool).
            mask: the token that replaces them, shape [d].
        """
        patches = self.embed(x)
        grid = tuple(patches.shape[2:])
        patches = patches.flatten(2).transpose(1, 2)
        if hidden is not None and mask is not None:
            patches = torch.where(hidden.unsqueeze(2), mask.to(patches), patches)
        x = torch.cat([self.cls.expand(len(x), -1, -1), patches], 1) + self._positions(grid)
        for number, block in enumerate(self.blocks):
            if self.prompts is not None:
                x = self.prompts(x, number)
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def _positions(self, grid: tuple[int, ...]) -> Tensor:
        """Return the positions of a grid of patches, shape [1, 1 + T, d]; bicubic, as a product with constant weights."""
        if grid == self.grid:
            return self.position
        count = self.grid[0] * self.grid[1]
        unit = torch.eye(count, device=self.position.device).view(1, count, *self.grid)
        weights = F.interpolate(unit, size=grid, mode="bicubic", antialias=True).view(count, -1).T.to(self.position)
        return torch.cat([self.position[:, :1], weights @ self.position[:, 1:]], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape [N, classes]."""
        out: Tensor = self.head(self.features(x))
        return out


@model_card("picture")
def vit(
    shape: Sequence[int] = (1, 28, 28),
    num_classes: int = 10,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    patch: int = 7,
    mlp: int = 4,
) -> nn.Module:
    """Return a vision transformer.

    Args:
        shape: shape of one image; height and width are multiples of `patch`.
        num_classes: number of outputs.
        dim, depth, heads: width, number of blocks, and attention heads.
        patch: side of a patch.
        mlp: hidden width of a block's network, as a multiple of `dim`.

    Raises:
        ConfigError: the options do not fit the images.
    """
    if len(shape) != 3 or shape[1] % patch or shape[2] % patch or dim % heads or min(dim, depth, heads, patch, mlp) < 1:
        given = f"vit with patch={patch}, dim={dim}, heads={heads} does not fit pictures of {tuple(shape)}"
        raise ConfigError(f"{given}: the sides must be multiples of patch, and dim a multiple of heads, all at least 1")
    return VisionTransformer(shape, num_classes, dim, depth, heads, patch, mlp * dim)


class CharModel(nn.Module):
    """Causal language model: tokens [N, T] to scores [N, symbols, T] of the next token at each position.

    Negative tokens are padding on the left: they are masked, and positions count from the first token.
    """

    head_name = "head"

    def __init__(self, symbols: int, length: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, dim)
        self.position = nn.Parameter(0.02 * torch.randn(1, length, dim))
        self.blocks = nn.ModuleList([Block(dim, heads, 4 * dim) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, symbols)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape [N, symbols, T]."""
        real = x >= 0
        place = (real.long().cumsum(1) - 1).clamp(min=0)
        earlier = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        seen = earlier & real[:, None]
        x = self.embed(x.long().clamp(min=0)) + F.embedding(place, self.position[0])
        for block in self.blocks:
            x = block(x, seen)
        out: Tensor = self.head(self.norm(x)).transpose(1, 2)
        return out


@model_card("text", "position")
def char_model(shape: Sequence[int] = (64,), num_classes: int = 96, dim: int = 64, depth: int = 2, heads: int = 4) -> nn.Module:
    """Return a character language model.

    Args:
        shape: (T,), the longest sequence.
        num_classes: number of symbols.
        dim, depth, heads: width, number of blocks, and attention heads.

    Raises:
        ConfigError: the samples are not sequences, or `dim` is not a multiple of `heads`.
    """
    if len(shape) != 1 or dim % heads:
        raise ConfigError(f"char_model with dim={dim}, heads={heads} does not fit samples of {tuple(shape)}; use sequences")
    return CharModel(num_classes, shape[0], dim, depth, heads)
