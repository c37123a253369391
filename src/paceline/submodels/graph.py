"""Graph of a model's units: which axes of which tensors must be cut together.

`UnitGraph.trace` propagates an example input through the module (by `torch.fx`, with concrete shapes) and collects in
one *group* all neurons, channels or LSTM cells that must share an index set: layers that meet in a residual add, a
depthwise convolution and its input, a normalisation and its input. The network's inputs and outputs are never cut.
Unsupported modules and functions are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from paceline.core.errors import SubmodelError
from paceline.submodels.axes import Axes, Axis, Spaces
from paceline.submodels.flops import quiet
from paceline.submodels.functions import FUNCTIONS, is_shape, is_trusted, tensors_in
from paceline.submodels.rules import MODULES, SUPPORTED, Stacked, SymbolicTrace, TracedCall, Value

__all__ = ["AxisUnits", "UnitGraph"]


@dataclass(frozen=True)
class AxisUnits:
    """One axis of a tensor.

    Args:
        group: group of the positions' units; None if the axis is never cut.
        units: unit of each position, shape [length] (int64); without a group the positions themselves.
    """

    group: str | None
    units: Tensor

    def positions(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Return the remaining positions, in order, given the mask of remaining units of each group (bool, [n])."""
        if self.group is None:
            return self.units
        return torch.nonzero(masks[self.group][self.units]).flatten()


@dataclass(frozen=True)
class UnitGraph:
    """Groups of units, and the mapping of a module's tensors to them.

    Args:
        groups: number of units of each group, by the name of the first layer that produces it.
        axes: for each parameter and buffer, one `AxisUnits` per axis.
        norms: for each GroupNorm, BatchNorm and LayerNorm, the axes it normalises or scales.
        equal: sets of groups that must keep equally many units (the layers of one LSTM).
        whole: groups that are never cut, with the reasons.
    """

    groups: dict[str, int]
    axes: dict[str, tuple[AxisUnits, ...]]
    norms: dict[str, tuple[AxisUnits, ...]]
    equal: tuple[tuple[str, ...], ...]
    whole: dict[str, str]

    @staticmethod
    def trace(module: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> UnitGraph:
        """Find the groups of a module.

        Supported are Linear, Conv1d/2d (plain, grouped, depthwise), BatchNorm1d/2d, GroupNorm, LayerNorm, LSTM
        and GRU (unidirectional), Embedding, activations, pooling, dropout, flatten/reshape/permute, residual adds. Concatenated
        features, reduced axes and split axes remain whole. In a grouped convolution a unit is one block: its input and output
        channels are cut together.

        Args:
            module: the module; it is not modified.
            example_input: one batch (axis 0 counts samples) of any values.

        Raises:
            SubmodelError: an unsupported module or function (such as attention), or a reshape that contains the width of a
                cut axis as a literal; the message names it.
        """
        inputs = example_input if isinstance(example_input, tuple) else (example_input,)
        try:
            graph = fx.Tracer().trace(module)
        except Exception as error:
            raise SubmodelError(
                f"{type(module).__name__} cannot be traced ({error}); its forward() must not branch on values "
                f"or loop over tensors; supported are: {SUPPORTED}"
            ) from error
        state = SymbolicTrace(Spaces(), _names(module))
        with quiet(module):
            _follow(module, graph, inputs, state)
        return _finish(module, state)


def _names(module: nn.Module) -> dict[int, str]:
    return {id(t): n for n, t in [*module.named_parameters(), *module.named_buffers()]}


def _follow(module: nn.Module, graph: fx.Graph, inputs: tuple[Tensor, ...], state: SymbolicTrace) -> None:
    env: dict[fx.Node, Value] = {}
    left = list(inputs)
    for node in graph.nodes:
        args, kwargs = _map(node.args, env), _map(node.kwargs, env)
        if node.op == "placeholder":
            data = left.pop(0) if left else _default(node)
            env[node] = Value(data, (None,) * data.dim() if isinstance(data, Tensor) else None)
        elif node.op == "get_attr":
            env[node] = _attribute(module, node, state)
        elif node.op == "output":
            for value in tensors_in(args):
                _keep_output(state, value.axes)
        else:
            env[node] = _call(module, node, args, kwargs, state)


def _map(item: Any, env: Mapping[fx.Node, Value]) -> Any:
    """Replace nodes by their computed values."""
    look_up: Any = env.__getitem__
    return fx.node.map_arg(item, look_up)


def _default(node: fx.Node) -> Any:
    if not node.args:
        raise SubmodelError(f"the module's input {node.name!r} is missing from example_input")
    return node.args[0]


def _attribute(module: nn.Module, node: fx.Node, state: SymbolicTrace) -> Value:
    data: Any = module
    for part in str(node.target).split("."):
        data = getattr(data, part)
    if not isinstance(data, Tensor):
        return Value(data, None)
    if id(data) not in state.names:
        return Value(data, (None,) * data.dim())
    axes = [state.produce(data, d, f"{node.target}:{d}" if data.dim() > 1 else str(node.target)) for d in range(data.dim())]
    return Value(data, tuple(axes))


def _keep_output(state: SymbolicTrace, axes: Any) -> None:
    if isinstance(axes, Stacked):
        axes = axes.layers
    for axis in axes or ():
        if axis is None or isinstance(axis, Axis):
            state.spaces.keep_whole(axis, "it is an output of the network")
        else:
            _keep_output(state, axis)


def _call(module: nn.Module, node: fx.Node, args: Any, kwargs: Any, state: SymbolicTrace) -> Value:
    raw = fx.node.map_aggregate((args, kwargs), lambda v: v.data if isinstance(v, Value) else v)
    raw_args, raw_kwargs = raw
    if node.op == "call_module":
        path = str(node.target)
        target = module.get_submodule(path)
        call = TracedCall(state, f"module {path!r} ({type(target).__name__})", args, kwargs)
        rule = MODULES.get(type(target))
        if rule is None:
            raise call.refuse("no rule says how it carries units")
        call.out = target(*raw_args, **raw_kwargs)
        return Value(call.out, rule(call, target, path))
    if node.op == "call_method":
        name = str(node.target)
        call = TracedCall(state, f"method {name!r}", args, kwargs, name=name)
        data = getattr(raw_args[0], name)(*raw_args[1:], **raw_kwargs)
    else:
        name = getattr(node.target, "__name__", str(node.target))
        call = TracedCall(state, f"function {name!r}", args, kwargs, name=name if is_trusted(node.target) else "")
        data = node.target(*raw_args, **raw_kwargs)  # type: ignore[operator]
    call.out = data
    given = tensors_in((args, kwargs))
    if is_shape(data) and call.name != "getitem":
        return Value(data, None)
    if call.name in FUNCTIONS:
        return Value(data, FUNCTIONS[call.name](call))
    if any(v.axes is None or any(a is not None for a in _leaves(v.axes)) for v in given):
        raise call.refuse("no rule says how it carries units")
    return Value(data, _uncut(data))  # depends on inputs only: never cut


def _leaves(axes: Any) -> list[Axis | None]:
    return [a for layer in axes.layers for a in layer] if isinstance(axes, Stacked) else list(axes)


def _uncut(data: Any) -> Any:
    if isinstance(data, Tensor):
        return (None,) * data.dim()
    return tuple(_uncut(part) for part in data) if isinstance(data, tuple) else None


def _finish(module: nn.Module, state: SymbolicTrace) -> UnitGraph:
    spaces = state.spaces
    for path, hidden in state.lstms.items():
        grains = {None if axis is None else spaces.find(axis).repeat for axis in hidden}
        if len(grains) > 1 or any(axis is None or spaces.is_whole(axis) for axis in hidden):
            for axis in hidden:
                spaces.keep_whole(axis, f"the layers of {path!r} must be equally wide, and one is whole")
    for axis, where, size in state.literals:
        if not spaces.is_whole(axis):
            raise SubmodelError(
                f"{where} writes the width {size} of a cut axis as a number, so a smaller model could not "
                f"run; write torch.flatten(x, 1), or -1 in its place"
            )

    def group(axis: Axis | None) -> str | None:
        return None if axis is None or spaces.is_whole(axis) else spaces.name(axis)

    def units(axis: Axis | None, length: int) -> AxisUnits:
        name = group(axis)
        if axis is None or name is None:
            return AxisUnits(None, torch.arange(length))
        groups[name] = spaces.size(axis)
        return AxisUnits(name, spaces.units(axis, length))

    groups: dict[str, int] = {}
    axes: dict[str, tuple[AxisUnits, ...]] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        axes[name] = tuple(units(state.bound.get((name, d)), n) for d, n in enumerate(tensor.shape))
    norms = {path: _norm_units(module, path, over, units) for path, over in state.norms.items()}
    order = {n: i for i, n in enumerate(dict.fromkeys(a.group for parts in axes.values() for a in parts))}
    equal = []
    for hidden in state.lstms.values():
        names = [n for n in (group(axis) for axis in hidden) if n is not None]
        if len(set(names)) > 1:
            equal.append(tuple(dict.fromkeys(names)))
    ordered = {n: groups[n] for n in sorted(groups, key=lambda n: order.get(n, len(order)))}
    return UnitGraph(ordered, axes, norms, tuple(equal), spaces.why_whole())


def _norm_units(module: nn.Module, path: str, over: Axes, units: Any) -> tuple[AxisUnits, ...]:
    target: Any = module.get_submodule(path)
    shape = getattr(target, "normalized_shape", None)
    if shape is None:
        shape = (getattr(target, "num_channels", None) or target.num_features,)
    return tuple(units(axis, n) for axis, n in zip(over, shape, strict=True))
