"""The character LSTM."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CharLSTM", "lstm"]


class CharLSTM(nn.Module):
    """Reads character codes [N, T] and predicts the next character, [N, symbols].

    Args:
        symbols: size of the alphabet; inputs are one-hot, so no embedding is learnt.
        hidden: cells of each layer.
        layers: number of LSTM layers.
    """

    head_name = "out"

    def __init__(self, symbols: int = 80, hidden: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.symbols = symbols
        self.lstm = nn.LSTM(symbols, hidden, num_layers=layers, batch_first=True)
        self.out = nn.Linear(hidden, symbols)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the next character; `x` holds codes of any integer type."""
        scores: Tensor = self.out(self.features(x))
        return scores

    def features(self, x: Tensor) -> Tensor:
        """Return the last state of the upper layer, [N, hidden]: what the head reads."""
        states, _ = self.lstm(F.one_hot(x.long(), self.symbols).float())
        last: Tensor = states[:, -1]
        return last


def lstm(shape: Sequence[int] = (80,), num_classes: int = 80, hidden: int = 128, layers: int = 2) -> nn.Module:
    """Return a `CharLSTM`: 249,936 parameters with 80 symbols and two layers of 128.

    The sheet's 248,912 counts one bias for each gate; PyTorch keeps two, 512 more in each layer.

    Args:
        shape: of one input, the sequence's length; any length will do.
        num_classes: size of the alphabet.
        hidden, layers: of the LSTM.
    """
    return CharLSTM(num_classes, hidden, layers)
