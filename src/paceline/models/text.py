"""Classifiers of texts [N, T] of codes, in which 0 is padding: a bag of words and a transformer encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.models.card import model_card
from paceline.models.transformer import Block

__all__ = ["TextEncoder", "WordBag", "text_encoder", "word_bag"]


def _mean(states: Tensor, real: Tensor) -> Tensor:
    """Return the mean over the positions of a text, [N, d], without padding."""
    weights = real.to(states.dtype).unsqueeze(2)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


class WordBag(nn.Module):
    """Sum of the symbols' vectors over the root of their number, and a linear head; the order of symbols does not count.

    Args:
        symbols: number of codes.
        num_classes: number of outputs.
        dim: width of a vector.
    """

    head_name = "head"

    def __init__(self, symbols: int, num_classes: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, dim)
        self.head = nn.Linear(dim, num_classes)
        nn.init.normal_(self.embed.weight, std=0.1)

    def features(self, x: Tensor) -> Tensor:
        """Return the input of the head, shape [N, dim]."""
        real = x > 0
        return _mean(self.embed(x.long()), real) * real.sum(1, keepdim=True).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape [N, classes]."""
        out: Tensor = self.head(self.features(x))
        return out


@model_card("text")
def word_bag(shape: Sequence[int] = (200,), num_classes: int = 20, symbols: int = 10000, dim: int = 64) -> nn.Module:
    """Return a bag-of-words classifier (fastText without n-grams): 641,300 parameters with 10,000 words and 20 classes.

    Args:
        shape: (T,), codes of a text.
        num_classes: number of outputs.
        symbols: number of codes.
        dim: width of a word's vector.

    Raises:
        ConfigError: the samples are no texts.
    """
    if len(shape) != 1 or dim < 1:
        raise ConfigError(f"model word_bag with dim={dim} requires texts [T], not {tuple(shape)}")
    return WordBag(symbols, num_classes, dim)


class TextEncoder(nn.Module):
    """Transformer encoder, mean over the positions, and a linear head.

    Args:
        symbols: number of codes.
        length: codes of a text.
        num_classes: number of outputs.
        dim, depth, heads: width, number of blocks, and attention heads.
    """

    head_name = "head"

    def __init__(self, symbols: int, length: int, num_classes: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, dim)
        self.position = nn.Parameter(0.02 * torch.randn(1, length, dim))
        self.blocks = nn.ModuleList([Block(dim, heads, 4 * dim) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        nn.init.normal_(self.embed.weight, std=0.1)

    def features(self, x: Tensor) -> Tensor:
        """Return the input of the head, shape [N, dim]."""
        real = x > 0
        seen = real[:, None].expand(-1, x.shape[1], -1)
        states = self.embed(x.long()) + self.position
        for block in self.blocks:
            states = block(states, seen)
        return _mean(self.norm(states), real)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape [N, classes]."""
        out: Tensor = self.head(self.features(x))
        return out


@model_card("text")
def text_encoder(
    shape: Sequence[int] = (256,), num_classes: int = 10, symbols: int = 256, dim: int = 64, depth: int = 2, heads: int = 4
) -> nn.Module:
    """Return a small transformer encoder for texts: 133,514 parameters for 256 bytes and 10 classes.

    Args:
        shape: (T,), codes of a text.
        num_classes: number of outputs.
        symbols: number of codes.
        dim, depth, heads: width, number of blocks, and attention heads.

    Raises:
        ConfigError: the samples are no texts, or `dim` is not a multiple of `heads`.
    """
    if len(shape) != 1 or min(dim, depth, heads) < 1 or dim % heads:
        given = f"text_encoder with dim={dim}, depth={depth}, heads={heads}"
        raise ConfigError(f"{given} does not fit samples of {tuple(shape)}; use texts [T], and a dim that is a multiple of heads")
    return TextEncoder(symbols, shape[0], num_classes, dim, depth, heads)
