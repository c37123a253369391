"""Cost of a forward pass in FLOPs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from paceline.core.generators import drawing

__all__ = ["flops", "quiet"]

_COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LSTM, nn.Embedding)


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Context manager: evaluate a module without side effects: no gradients, modes and random state restored."""
    modes = {m: m.training for m in module.modules()}
    try:
        module.eval()
        with torch.no_grad(), drawing(0, next((p.device for p in module.parameters()), "cpu")):
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def flops(module: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> float:
    """Return the forward FLOPs per sample of a module.

    Every matrix product and convolution counts two FLOPs per multiply-add; an LSTM counts as the matrix products of its
    gates; embedding look-ups and elementwise functions count as zero.

    Args:
        module: the module; its mode and the random state are restored.
        example_input: a batch whose axis 0 counts samples.

    Example:
        >>> flops(nn.Linear(4, 3), torch.zeros(2, 4))
        24.0
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    others = [m for m in module.modules() if not isinstance(m, _COUNTED)]
    with quiet(module):
        if any(p.dim() > 1 for m in others for p in m.parameters(recurse=False)):
            total = _dispatched(module, inputs)
        else:
            total = _hooked(module, inputs)
    return total / inputs[0].shape[0]


def _hooked(module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Count from the shapes that pass known layers: fast, and exact with fused recurrent kernels."""
    total = 0.0

    def count(layer: Any, given: tuple[Tensor, ...], out: Any) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += 2.0 * out.numel() * layer.in_features
        elif isinstance(layer, nn.LSTM):
            weights = sum(w.numel() for n, w in layer.named_parameters() if n.startswith("weight"))
            total += 2.0 * weights * (given[0].numel() // given[0].shape[-1])
        elif not isinstance(layer, nn.Embedding):
            total += 2.0 * out.numel() * layer.weight[0].numel()

    handles = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, _COUNTED)]
    try:
        module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return total


def _dispatched(module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Count every executed operator: correct for any module, but slower."""
    # fused recurrent and attention kernels hide their matrix products, so they are switched off here
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
        warnings.simplefilter("ignore", UserWarning)  # reading the backends' flags may warn
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with (
                torch.backends.mkldnn.flags(enabled=False),
                torch.backends.cudnn.flags(enabled=False),
                sdpa_kernel(SDPBackend.MATH),
            ):
                module(*inputs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
    return float(counter.get_total_flops())
