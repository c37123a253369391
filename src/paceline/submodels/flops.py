"""Cost of a forward pass in FLOPs, counted from the operators that torch executes.

A matrix product or convolution counts two FLOPs per multiply-add. Every other operator counts one FLOP per element of its
largest tensor, read or written (activations, sums, pooling, an elementwise parameter); normalisations count 5 (subtract,
square, scale, shift and their sums), softmax 3, and what only moves data (views, copies, look-ups, joins) none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from paceline.core.columns import Samples, call, length
from paceline.core.errors import ZeroCostError
from paceline.core.generators import drawing

__all__ = ["counted", "flops", "quiet"]

_CELL = {"LSTM": 21, "GRU": 17}
"""Elementwise FLOPs of one recurrent cell in one step: sums and biases of its gates, their activations, and the new state."""

_STEPS = {"batch_norm": 5, "group_norm": 5, "layer_norm": 5, "softmax": 3}
# fmt: off
_MOVES = frozenset(
    (
        "_reshape_copy", "_to_copy", "_unsafe_view", "arange", "as_strided_copy", "cat", "clone", "copy", "copy_",
        "detach", "embedding", "empty", "empty_like", "fill", "fill_", "flip", "full", "full_like", "gather", "index",
        "index_put", "index_put_", "index_select", "lift_fresh", "lift_fresh_copy", "masked_select", "new_empty",
        "new_full", "new_ones", "new_zeros", "ones", "ones_like", "repeat", "roll", "scalar_tensor", "scatter",
        "scatter_", "select_scatter", "slice_scatter", "split_with_sizes_copy", "stack", "unfold_copy", "zero_",
        "zeros", "zeros_like"
    )
)
# fmt: on
"""Operators that only move or create data."""
_RECURRENT = (nn.LSTM, nn.GRU)
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, *_RECURRENT, nn.Embedding)


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


def flops(module: nn.Module, example_input: Samples) -> float:
    """Return the forward FLOPs per sample of a module.

    Args:
        module: the module; its mode and the random state are restored.
        example_input: a batch whose axis 0 counts samples: a tensor, or a tuple or dict of tensors.

    Raises:
        ZeroCostError: the module executes no arithmetic, so a simulated round would take no time.

    Example:
        >>> flops(nn.Linear(4, 3), torch.zeros(2, 4)), flops(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(2, 4))
        (24.0, 27.0)
    """
    others = [m for m in module.modules() if not isinstance(m, _PLAIN)]
    hidden = any(p.dim() > 1 for m in others for p in m.parameters(recurse=False))
    with quiet(module), ExitStack() as stack:
        if hidden:
            stack.enter_context(_unfused())
        count = stack.enter_context(_Counter())
        handles = [] if hidden else _count_cells(module, count)
        try:
            call(module, example_input)
        finally:
            for handle in handles:
                handle.remove()
    if not count.total:
        raise ZeroCostError(
            f"a forward pass of {type(module).__name__} executes no arithmetic, so its training would take no virtual time; "
            "let forward() compute its scores from the parameters with torch operations"
        )
    return float(count.total / length(example_input))


def counted(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a function and the FLOPs of the operators that it executed."""
    with _Counter() as count:
        return work(), count.total


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every executed operator into `total`, unless it is `paused`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: torch then does not import its compiler, which takes seconds and writes a cache folder."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total, self.paused = 0.0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.paused:
            self.total += _cost(func, args, kwargs or {}, out)
        return out


def _cost(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> float:
    packet = func.overloadpacket
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=out))
    name = packet.__name__
    if func.is_view or name in _MOVES:
        return 0.0
    sizes = [t.numel() for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
    return float(next((n for part, n in _STEPS.items() if part in name), 1) * max(sizes, default=0))


def _count_cells(module: nn.Module, count: _Counter) -> list[Any]:
    """Count LSTMs and GRUs from the shapes that they pass, because fused kernels hide their products; return the hooks."""

    def enter(layer: Any, given: Any) -> None:
        count.paused = True

    def leave(layer: Any, given: tuple[Tensor, ...], out: Any) -> None:
        count.paused = False
        weights = sum(w.numel() for n, w in layer.named_parameters() if n.startswith("weight"))
        cells = _CELL[type(layer).__name__] * layer.hidden_size * layer.num_layers * (2 if layer.bidirectional else 1)
        inputs = given[0].data  # of a packed sequence its values, of a tensor the same
        count.total += (2.0 * weights + cells) * (inputs.numel() // inputs.shape[-1])

    layers = [m for m in module.modules() if isinstance(m, _RECURRENT)]
    before = [m.register_forward_pre_hook(enter) for m in layers]
    return before + [m.register_forward_hook(leave) for m in layers]


@contextmanager
def _unfused() -> Iterator[None]:
    """Context manager: switch off fused recurrent and attention kernels, which hide their matrix products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # reading the backends' flags may warn
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with (
                torch.backends.mkldnn.flags(enabled=False),
                torch.backends.cudnn.flags(enabled=False),
                sdpa_kernel(SDPBackend.MATH),
            ):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
