"""A pretrained language model from a folder, whose frozen weights all modules of a process share."""

from __future__ import annotations

import copy
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from paceline.data.sources.weights import transformers

__all__ = ["LanguageModel", "language_model"]

_MULTIPLE = 8
"""Batches are cut to a multiple of this many tokens."""


class LanguageModel(nn.Module):
    """A causal language model: tokens [N, T] to scores [N, symbols, T] of what comes next at each place.

    Negative tokens are padding, on the left: they are masked, and places are counted from the first token on. What is
    padding in the whole batch is not computed; its scores are 0.
    """

    head_name = "lm.lm_head"
    not_stackable = "a batch is cut to its longest text, so its shape depends on its values"

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape [N, symbols, T]."""
        padded = int((x < 0).all(0).sum())
        cut = min(padded, x.shape[1] - 1) // _MULTIPLE * _MULTIPLE
        x = x[:, cut:]
        real = (x >= 0).long()
        place = (real.cumsum(1) - 1).clamp(min=0)
        out: Tensor = self.lm(x.clamp(min=0), attention_mask=real, position_ids=place, use_cache=False).logits.transpose(1, 2)
        return F.pad(out, (cut, 0)) if cut else out


def language_model(folder: str | Path) -> partial[nn.Module]:
    """Return what builds the model of a folder in the layout of ``transformers``; raises `MissingExtraError`."""
    transformers()
    return partial(_build, str(folder))


def _build(folder: str) -> nn.Module:
    """Return a module of its own whose tensors are those of the process's one copy."""
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
