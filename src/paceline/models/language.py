"""Pretrained language model from a folder; all modules of a process share its frozen weights."""

from __future__ import annotations

import copy
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.stacked import is_stacked
from paceline.data.sources.weights import transformers

__all__ = ["LanguageModel", "language_model"]

_MULTIPLE = 8
"""Batches are trimmed to a multiple of this many tokens."""


class LanguageModel(nn.Module):
    """Causal language model: tokens [N, T] to scores [N, symbols, T] of the next token at each position.

    Negative tokens are padding on the left: they are masked, and positions count from the first token. Positions that are
    padding in the whole batch are not computed; their scores are 0.
    """

    head_name = "lm.lm_head"

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape [N, symbols, T]."""
        if is_stacked(x):
            return self._uncropped(x)
        padded = int((x < 0).all(0).sum())
        cut = min(padded, x.shape[1] - 1) // _MULTIPLE * _MULTIPLE
        x = x[:, cut:]
        real = (x >= 0).long()
        place = (real.cumsum(1) - 1).clamp(min=0)
        out: Tensor = self.lm(x.clamp(min=0), attention_mask=real, position_ids=place, use_cache=False).logits.transpose(1, 2)
        return F.pad(out, (cut, 0)) if cut else out

    def _uncropped(self, x: Tensor) -> Tensor:
        """Return the scores of a batch whose values must not be read, so that neither crop nor mask may depend on them."""
        real = x >= 0
        place = (real.long().cumsum(1) - 1).clamp(min=0)
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril() & real[:, None, None]
        seen = seen | ~seen.any(-1, keepdim=True)  # a position of padding attends to all; its scores do not count
        out: Tensor = self.lm(x.clamp(min=0), attention_mask=seen, position_ids=place, use_cache=False).logits
        return out.transpose(1, 2)


def language_model(folder: str | Path) -> partial[nn.Module]:
    """Return a builder of the model in a folder in the layout of ``transformers``; raises `MissingExtraError`."""
    transformers()
    return partial(_build, str(folder))


def _build(folder: str) -> nn.Module:
    """Return a separate module that shares the tensors of the process's single copy."""
    base = _loaded(folder)
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in base.parameters()}
    shared |= {id(b): b for b in base.buffers()}
    return LanguageModel(copy.deepcopy(base, shared))


@lru_cache(maxsize=1)
def _loaded(folder: str) -> nn.Module:
    library = transformers()
    library.utils.logging.disable_progress_bar()
    model: nn.Module = library.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="float32")
    return model.eval()
