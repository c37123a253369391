"""Propagation of units through functions and tensor methods (``F.relu``, ``x + y``, ``x.flatten(1)``, ``x[:, -1]``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from paceline.submodels.axes import Axes, Axis
from paceline.submodels.rules import Stacked, TracedCall, Value, plain, pool, regroup

__all__ = ["FUNCTIONS", "is_shape", "is_trusted", "tensors_in"]

# fmt: off
_ELEMENTWISE = (
    "relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh",
    "hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "tanhshrink", "abs", "neg",
    "exp", "square", "sqrt", "clamp", "clip", "dropout", "dropout1d", "dropout2d", "alpha_dropout",
    "contiguous", "clone", "detach", "float", "double", "half", "to",
)
_BINARY = (
    "pow", "add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "truediv", "div", "div_",
    "itruediv", "maximum", "minimum",
)
# fmt: on


def is_trusted(function: Any) -> bool:
    """Return whether a function belongs to torch or Python itself, so that its name identifies its behaviour."""
    module = getattr(function, "__module__", None) or ""
    return module.split(".")[0] in {"torch", "_operator", "operator", "builtins", "math"}


def tensors_in(item: Any) -> list[Value]:
    """Return the tensor values in nested arguments."""
    if isinstance(item, Value):
        return [item] if isinstance(item.data, Tensor) else []
    if isinstance(item, tuple | list):
        return [v for part in item for v in tensors_in(part)]
    if isinstance(item, dict):
        return tensors_in(list(item.values()))
    return []


def _same(call: TracedCall) -> Axes:
    return call.axes()


def _binary(call: TracedCall) -> Axes:
    out: list[Axis | None] = []
    operands = [(v.data.shape, plain(call, v)) for v in tensors_in((call.args, call.kwargs))]
    for dim in range(-call.out.dim(), 0):
        size = call.out.shape[dim]
        met = [axes[dim] for shape, axes in operands if len(shape) >= -dim and shape[dim] == size]
        for axis in met[1:]:
            call.spaces.tie(met[0], axis, f"{call.where} combines it with an axis that is not cut")
        out.append(met[0])
    return tuple(out)


def _linear(call: TracedCall) -> Axes:
    axes, weight = call.axes(), call.axes(1, "weight")
    call.spaces.tie(axes[-1], weight[1], f"{call.where} reads it")
    if tensors_in(call.arg(2, "bias")):
        call.spaces.tie(weight[0], call.axes(2, "bias")[0], call.where)
    return (*axes[:-1], weight[0])


def _pool1(call: TracedCall) -> Axes:
    return pool(call, 1)


def _pool2(call: TracedCall) -> Axes:
    return pool(call, 2)


def _reshape(call: TracedCall) -> Axes:
    value = call.arg(0, "input")
    out = regroup(call, call.axes(), value.data.shape, call.out.shape)
    if call.name in {"view", "reshape"}:
        sizes = call.args[1:] or (call.kwargs.get("shape") or call.kwargs.get("size"),)
        if isinstance(sizes[0], tuple | list):
            sizes = tuple(sizes[0])
        for axis, size in zip(out, sizes, strict=False):
            if axis is not None and isinstance(size, int) and size != -1:
                call.trace.literals.append((axis, call.where, size))
    return tuple(out)


def _permute(call: TracedCall) -> Axes:
    dims = call.args[1:] or (call.kwargs["dims"],)
    if isinstance(dims[0], tuple | list):
        dims = tuple(dims[0])
    axes = call.axes()
    return tuple(axes[d] for d in dims)


def _transpose(call: TracedCall) -> Axes:
    axes = list(call.axes())
    a, b = call.arg(1, "dim0"), call.arg(2, "dim1")
    axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)


def _reduce(call: TracedCall) -> Any:
    axes = call.axes()
    dim, keep = call.arg(1, "dim"), bool(call.arg(2, "keepdim", False))
    dims = range(len(axes)) if dim is None else [dim] if isinstance(dim, int) else dim
    if tensors_in((dim, call.kwargs.get("other"))):
        return _binary(call)  # torch.max(a, b)
    gone = {d % max(len(axes), 1) for d in dims}
    call.whole([axes[d] for d in gone], "sums or compares over its units")
    left = tuple(None if d in gone else a for d, a in enumerate(axes) if keep or d not in gone)
    return left if isinstance(call.out, Tensor) else (left,) * len(call.out)


def _softmax(call: TracedCall) -> Axes:
    axes = list(call.axes())
    dim = call.arg(1, "dim")
    over = range(len(axes)) if dim is None else [dim]
    call.whole([axes[d] for d in over], "normalises over its units")
    for d in over:
        axes[d] = None
    return tuple(axes)


def _join(call: TracedCall) -> Axes:
    parts = [plain(call, v) for v in call.arg(0, "tensors")]
    dim: int = call.arg(1, "dim", 0)
    dim %= call.out.dim()
    stacked = call.out.dim() > len(parts[0])
    out: list[Axis | None] = []
    for d, column in enumerate(zip(*parts, strict=True)):
        if d == dim and not stacked:
            call.whole(column, "concatenates it")
            out.append(None)
        else:
            for axis in column[1:]:
                call.spaces.tie(column[0], axis, f"{call.where} joins it")
            out.append(column[0])
    return (*out[:dim], None, *out[dim:]) if stacked else tuple(out)


def _getitem(call: TracedCall) -> Any:
    value, index = call.args
    if isinstance(value.axes, Stacked) and isinstance(index, int):
        return value.axes.layers[index]
    if not isinstance(value.data, Tensor):  # a tuple, such as an LSTM's output
        return value.axes[index] if isinstance(value.axes, tuple) and value.axes else None
    return _index(call, plain(call, value), index if isinstance(index, tuple) else (index,))


def _index(call: TracedCall, axes: Axes, index: Sequence[Any]) -> Axes:
    taken = sum(1 for part in index if part is not None and part is not Ellipsis)
    if Ellipsis not in index:
        index = (*index, Ellipsis)
    left = list(axes)
    out: list[Axis | None] = []
    for part in index:
        if part is None:
            out.append(None)
        elif part is Ellipsis:
            count = len(axes) - taken
            out += left[:count]
            left = left[count:]
        else:
            axis = left.pop(0)
            if part != slice(None):
                call.whole([axis], "selects some of its units")
                axis = None
            if isinstance(part, slice):
                out.append(axis)
            elif not isinstance(part, int) and not (isinstance(part, Value) and isinstance(part.data, int)):
                raise call.refuse(f"its index is a {type(getattr(part, 'data', part)).__name__}")
    return tuple(out)


FUNCTIONS: dict[str, Callable[[TracedCall], Any]] = {
    **dict.fromkeys(_ELEMENTWISE, _same),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d"), _pool1),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"), _pool2),
    **dict.fromkeys(("flatten", "reshape", "view", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("transpose", "swapaxes"), _transpose),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min"), _reduce),
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    **dict.fromkeys(("cat", "concat", "stack"), _join),
    "permute": _permute,
    "linear": _linear,
    "getitem": _getitem,
}
"""Rules by the function's or method's name."""


def is_shape(value: Any) -> bool:
    """Whether a value holds no tensor (a size, a shape, a dtype), so that it carries no units."""
    parts = value if isinstance(value, tuple | list) else (value,)
    return not any(isinstance(part, Tensor) for part in parts)
