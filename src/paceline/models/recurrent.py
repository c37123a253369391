"""The character LSTM."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from paceline.models.card import model_card

__all__ = ["CharLSTM", "lstm"]


class CharLSTM(nn.Module):
    """Maps character codes [N, T] to scores of the next character, [N, symbols], or of classes.

    Args:
        symbols: size of the alphabet; inputs are one-hot encoded, without an embedding.
        hidden: cells of each layer.
        layers: number of LSTM layers.
        outputs: number of outputs; by default one for each symbol.
    """

    head_name = "out"

    def __init__(self, symbols: int = 80, hidden: int = 128, layers: int = 2, outputs: int | None = None) -> None:
        super().__init__()
        self.symbols = symbols
        self.lstm = nn.LSTM(symbols, hidden, num_layers=layers, batch_first=True)
        self.out = nn.Linear(hidden, outputs or symbols)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the next character; `x` contains codes of any integer type."""
        scores: Tensor = self.out(self.features(x))
        return scores

    def features(self, x: Tensor) -> Tensor:
        """Return the last state of the upper layer, [N, hidden]: the input of the head."""
        states, _ = self.lstm(F.one_hot(x.long(), self.symbols).float())
        last: Tensor = states[:, -1]
        return last


@model_card("text")
def lstm(
    shape: Sequence[int] = (80,), num_classes: int = 80, symbols: int | None = None, hidden: int = 128, layers: int = 2
) -> nn.Module:
    """Return a `CharLSTM`: 249,936 parameters with 80 symbols and two layers of 128.

    The published 248,912 count one bias per gate; PyTorch has two, 512 more in each layer.

    Args:
        shape: shape of one input, the sequence's length; any length is supported.
        num_classes: number of outputs.
        symbols: size of the alphabet; by default the number of outputs, which are then those of the next character.
        hidden, layers: of the LSTM.
    """
    return CharLSTM(symbols or num_classes, hidden, layers, num_classes)
