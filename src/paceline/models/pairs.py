"""A model with two inputs: does a text belong to a picture?"""

from __future__ import annotations

from torch import Tensor, nn

from paceline.models.text import WordBag

__all__ = ["PairNet"]


class PairNet(nn.Module):
    """Two towers, for pictures and for words, whose features are multiplied and scored by a linear head.

    Args:
        symbols: number of words' codes.
        dim: width of the features.
    """

    head_name = "head"

    def __init__(self, symbols: int, dim: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(4, b), nn.ReLU(), nn.MaxPool2d(2)]
        self.see = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, dim))
        self.words = WordBag(symbols, dim, dim)
        self.head = nn.Linear(dim, 2)

    def features(self, picture: Tensor, words: Tensor) -> Tensor:
        """Return the input of the head, shape [N, dim]."""
        out: Tensor = self.see(picture) * self.words(words)
        return out

    def forward(self, picture: Tensor, words: Tensor) -> Tensor:
        """Return scores of "does not belong" and "belongs", shape [N, 2]."""
        out: Tensor = self.head(self.features(picture, words))
        return out
