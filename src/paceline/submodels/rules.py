"""Propagation of units through modules: the rules of the symbolic trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from paceline.core.errors import SubmodelError
from paceline.submodels.axes import Axes, Axis, Spaces

__all__ = ["MODULES", "SUPPORTED", "Stacked", "SymbolicTrace", "TracedCall", "Value", "plain", "regroup"]

SUPPORTED = (
    "Linear, Conv1d/2d (plain, grouped, depthwise), BatchNorm1d/2d, GroupNorm, LayerNorm, LSTM, GRU, Embedding, "
    "activations, pooling, upsampling, dropout, flatten, reshape, permute, mean/sum, add/mul of tensors, cat"
)


@dataclass(frozen=True)
class Stacked:
    """Axes of an LSTM's final states: one per layer, stacked along axis 0."""

    layers: tuple[Axes, ...]


@dataclass(frozen=True)
class Value:
    """Result of one node of the trace: the concrete value and, for tensors, its axes."""

    data: Any
    axes: Any


@dataclass
class SymbolicTrace:
    """State of the trace: spaces, and the tensor axes bound to them."""

    spaces: Spaces
    names: dict[int, str]
    bound: dict[tuple[str, int], Axis | None] = field(default_factory=dict)
    norms: dict[str, Axes] = field(default_factory=dict)
    lstms: dict[str, list[Axis | None]] = field(default_factory=dict)
    literals: list[tuple[Axis, str, int]] = field(default_factory=list)

    def bind(self, tensor: Tensor | None, dim: int, axis: Axis | None, why: str) -> None:
        """Bind axis `dim` of a parameter or buffer to the index set of `axis`."""
        if tensor is None:
            return
        key = (self.names[id(tensor)], dim)
        if key in self.bound:
            self.spaces.tie(self.bound[key], axis, why)
        else:
            self.bound[key] = axis

    def produce(self, tensor: Tensor, dim: int, name: str, units: int | None = None) -> Axis | None:
        """Return the axis that a layer's weight produces: a new space, or that of an earlier call."""
        key = (self.names[id(tensor)], dim)
        if key not in self.bound:
            length = tensor.shape[dim]
            size = units or length
            self.bound[key] = self.spaces.new(size, name)._replace(repeat=length // size)
        return self.bound[key]


@dataclass
class TracedCall:
    """One node of the trace: its location, arguments and result."""

    trace: SymbolicTrace
    where: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any = None
    name: str = ""

    @property
    def spaces(self) -> Spaces:
        """Spaces of the trace."""
        return self.trace.spaces

    def axes(self, position: int = 0, name: str = "input") -> Axes:
        """Return the axes of a tensor argument."""
        return plain(self, self.arg(position, name))

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def whole(self, axes: Sequence[Axis | None], why: str) -> None:
        """Mark these axes as never cut."""
        for axis in axes:
            self.spaces.keep_whole(axis, f"{self.where} {why}")

    def refuse(self, why: str) -> SubmodelError:
        """Return the error for an operation that cannot be cut."""
        return SubmodelError(f"{self.where} cannot be cut into sub-models: {why}; supported are: {SUPPORTED}")


def plain(call: TracedCall, value: Any) -> Axes:
    """Return a value's axes as those of one tensor; final states of several layers then share one index set."""
    if not isinstance(value, Value) or not isinstance(value.data, Tensor):
        raise call.refuse("its argument is not a tensor")
    if isinstance(value.axes, Stacked):
        first, *rest = value.axes.layers
        for other in rest:
            call.spaces.tie(first[-1], other[-1], f"{call.where} reads the final states of all layers")
        return (None, *first)
    axes: Axes = value.axes
    return axes


def regroup(call: TracedCall, axes: Axes, before: Sequence[int], after: Sequence[int]) -> list[Axis | None]:
    """Propagate axes through a reshape from shape `before` to shape `after`.

    A cut axis may be preserved, or merged with uncut ones (which increases its repeat). Splitting it, or merging two cut
    axes, keeps the units whole.
    """
    out: list[Axis | None] = [None] * len(after)
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0, a, b = i, j, 1, 1
        if i < len(before):
            a, i = before[i], i + 1
        if j < len(after):
            b, j = after[j], j + 1
        while a != b:
            if a < b:
                a, i = a * before[i], i + 1
            else:
                b, j = b * after[j], j + 1
        live = [k for k in range(i0, i) if axes[k] is not None]
        targets = [k for k in range(j0, j) if after[k] > 1]
        if not live:
            continue
        if len(live) > 1 or len(targets) != 1:
            call.whole([axes[k] for k in live], "splits or interleaves its units")
            continue
        axis = axes[live[0]]
        assert axis is not None
        for size in before[live[0] + 1 : i]:
            axis = axis._replace(repeat=axis.repeat * size)
        out[targets[0]] = axis
    return out


def _same(call: TracedCall, module: nn.Module, path: str) -> Any:
    return call.axes()


def _linear(call: TracedCall, module: nn.Linear, path: str) -> Axes:
    axes = call.axes()
    call.trace.bind(module.weight, 1, axes[-1], f"{call.where} reads it")
    out = call.trace.produce(module.weight, 0, path)
    call.trace.bind(module.bias, 0, out, call.where)
    return (*axes[:-1], out)


def _conv(call: TracedCall, module: nn.Conv1d | nn.Conv2d, path: str) -> Axes:
    axes, spatial = call.axes(), len(module.kernel_size)
    call.whole(axes[-spatial:], "slides over its units")
    given = axes[-1 - spatial]
    if module.groups == 1:
        call.trace.bind(module.weight, 1, given, f"{call.where} reads it")
        out = call.trace.produce(module.weight, 0, path)
    else:  # a block of inputs and its block of outputs are one unit
        out = call.trace.produce(module.weight, 0, path, module.groups)
        unit = None if out is None else out._replace(repeat=module.in_channels // module.groups)
        call.spaces.tie(given, unit, f"{call.where} reads it in blocks")
    call.trace.bind(module.bias, 0, out, call.where)
    return (*axes[: -1 - spatial], out, *([None] * spatial))


def _channel_norm(call: TracedCall, module: nn.modules.batchnorm._BatchNorm | nn.GroupNorm, path: str) -> Axes:
    axes = call.axes()
    call.whole(axes[2:], "normalises over its units")
    for name in ("weight", "bias", "running_mean", "running_var"):
        call.trace.bind(getattr(module, name, None), 0, axes[1], call.where)
    return _norm(call, path, axes, (axes[1],))


def _layer_norm(call: TracedCall, module: nn.LayerNorm, path: str) -> Axes:
    axes, depth = call.axes(), len(module.normalized_shape)
    for tensor in (module.weight, module.bias):
        for dim, axis in enumerate(axes[-depth:]):
            call.trace.bind(tensor, dim, axis, call.where)
    return _norm(call, path, axes, axes[-depth:])


def _norm(call: TracedCall, path: str, axes: Axes, over: Axes) -> Axes:
    for known, axis in zip(call.trace.norms.setdefault(path, over), over, strict=True):
        call.spaces.tie(known, axis, f"{call.where} is used twice")
    return axes


def _prelu(call: TracedCall, module: nn.PReLU, path: str) -> Axes:
    axes = call.axes()
    if module.num_parameters > 1:
        call.trace.bind(module.weight, 0, axes[1], call.where)
    return axes


def _embedding(call: TracedCall, module: nn.Embedding, path: str) -> Axes:
    return (*call.axes(), call.trace.produce(module.weight, 1, path))


def _lstm(call: TracedCall, module: nn.LSTM, path: str) -> tuple[Axes, tuple[Stacked, Stacked]]:
    axes, last = _recurrent(call, module, path)
    return axes, (last, last)


def _recurrent(call: TracedCall, module: nn.LSTM | nn.GRU, path: str) -> tuple[Axes, Stacked]:
    if module.bidirectional:
        raise call.refuse("it is bidirectional, so its output has two index sets")
    if module.proj_size:
        raise call.refuse("its hidden state is projected (proj_size)")
    if call.arg(1, "hx") is not None:
        raise call.refuse("its initial state has a fixed width; call it without an initial state")
    axes, hidden = call.axes(), []
    call.whole(axes[:-1], "steps through its units")
    below = axes[-1]
    for k in range(module.num_layers):
        w_ih, w_hh = getattr(module, f"weight_ih_l{k}"), getattr(module, f"weight_hh_l{k}")
        call.trace.bind(w_ih, 1, below, f"{call.where} reads it")
        unit = call.trace.produce(w_hh, 1, f"{path}.l{k}" if module.num_layers > 1 else path)
        call.trace.bind(w_hh, 0, unit, call.where)  # rows j, j + H, j + 2H, and of an LSTM j + 3H
        call.trace.bind(w_ih, 0, unit, call.where)
        if module.bias:
            for name in ("bias_ih", "bias_hh"):
                call.trace.bind(getattr(module, f"{name}_l{k}"), 0, unit, call.where)
        hidden.append(unit)
        below = unit
    call.trace.lstms[path] = hidden
    batch = axes[:-2] if len(axes) == 2 else (axes[0] if module.batch_first else axes[1],)
    last = Stacked(tuple((*batch, unit) for unit in hidden))
    return (*axes[:-1], below), last


def _pool(call: TracedCall, module: nn.Module, path: str) -> Axes:
    return pool(call, 2 if type(module).__name__.endswith("2d") else 1)


def pool(call: TracedCall, spatial: int) -> Axes:
    """Propagate axes through pooling over the last `spatial` axes."""
    axes = call.axes()
    call.whole(axes[-spatial:], "pools over its units")
    return (*axes[:-spatial], *([None] * spatial))


def _upsample(call: TracedCall, module: nn.Upsample, path: str) -> Axes:
    return pool(call, len(call.axes()) - 2)


def _flatten(call: TracedCall, module: nn.Flatten, path: str) -> Axes:
    value = call.arg(0, "input")
    return tuple(regroup(call, call.axes(), value.data.shape, call.out.shape))


def _softmax(call: TracedCall, module: nn.Module, path: str) -> Axes:
    axes = call.axes()
    call.whole(axes, "normalises over its units")
    return (None,) * len(axes)


Rule = Callable[[TracedCall, Any, str], Any]
MODULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.BatchNorm1d: _channel_norm,
    nn.BatchNorm2d: _channel_norm,
    nn.GroupNorm: _channel_norm,
    nn.LayerNorm: _layer_norm,
    nn.PReLU: _prelu,
    nn.Embedding: _embedding,
    nn.LSTM: _lstm,
    nn.GRU: _recurrent,
    nn.Upsample: _upsample,
    nn.Flatten: _flatten,
    nn.Softmax: _softmax,
    nn.LogSoftmax: _softmax,
}
# fmt: off
for _type in (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink,
    nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    nn.AlphaDropout,
):
    MODULES[_type] = _same
# fmt: on
for _name in ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "LPPool"):
    MODULES[getattr(nn, f"{_name}1d")] = _pool
    MODULES[getattr(nn, f"{_name}2d")] = _pool
