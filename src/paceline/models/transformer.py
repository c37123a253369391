"""Small transformers with places for adapters and prompts: a vision transformer and a language model of characters.

Query, key and value are layers of their own, so that adapters can be put on each. ``vit`` with the figures of ViT-B/16
(dim 768, depth 12, patch 16 on 224 x 224) has its parameters, one for one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.errors import ConfigError

__all__ = ["Attention", "Block", "CharModel", "VisionTransformer", "char_model", "vit"]


class Attention(nn.Module):
    """Self-attention of several heads.

    Args:
        dim: width d, a multiple of `heads`.
        heads: number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return the attended values, shape [N, T, d]; `seen` says which places each place sees, [N, T, T] (bool)."""
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # torch.func stacks these, and no fused kernel
        if seen is not None:  # not minus infinity: a place that sees nothing would become NaN
            scores = scores.masked_fill(~seen[:, None], -1e9)
        attended: Tensor = self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return attended


class Block(nn.Module):
    """Attention and a two-layer network, each after a LayerNorm and around a residual.

    `after` is the place of an adapter: behind the network, before its residual.
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
    """A vision transformer that classifies by its class token.

    `prompts` is the place of learnt tokens: a module ``(x, block number) -> x``.
    """

    head_name = "head"

    def __init__(self, shape: Sequence[int], num_classes: int, dim: int, depth: int, heads: int, patch: int, hidden: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.width, self.patch, self.channels = dim, patch, channels
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
        """Return what the head reads, shape [N, d]."""
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1) + self.position
        for number, block in enumerate(self.blocks):
            if self.prompts is not None:
                x = self.prompts(x, number)
            x = block(x)
        out: Tensor = self.norm(x)[:, 0]
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape [N, classes]."""
        out: Tensor = self.head(self.features(x))
        return out


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
        shape: of one picture; height and width are multiples of `patch`.
        num_classes: number of outputs.
        dim, depth, heads: width, blocks, and heads of attention.
        patch: side of a patch.
        mlp: hidden width of a block's network, as a multiple of `dim`.
    """
    if len(shape) != 3 or shape[1] % patch or shape[2] % patch or dim % heads or min(dim, depth, heads, patch, mlp) < 1:
        told = f"vit with patch={patch}, dim={dim}, heads={heads} does not suit pictures of {tuple(shape)}"
        raise ConfigError(f"{told}: sides are multiples of patch, dim one of heads, all at least 1")
    return VisionTransformer(shape, num_classes, dim, depth, heads, patch, mlp * dim)


class CharModel(nn.Module):
    """A causal language model: tokens [N, T] to scores [N, symbols, T] of what comes next at each place.

    Negative tokens are padding, on the left: nothing sees them, and places are counted from the first token on.
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


def char_model(shape: Sequence[int] = (64,), num_classes: int = 96, dim: int = 64, depth: int = 2, heads: int = 4) -> nn.Module:
    """Return a language model of characters.

    Args:
        shape: (T,), the longest sequence.
        num_classes: number of symbols.
        dim, depth, heads: width, blocks, and heads of attention.
    """
    if len(shape) != 1 or dim % heads:
        raise ConfigError(f"char_model with dim={dim}, heads={heads} does not suit samples of {tuple(shape)}; it reads sequences")
    return CharModel(num_classes, shape[0], dim, depth, heads)
