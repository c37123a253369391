"""LSTM, GRU and RNN with one set of weights per client, unrolled over time with batched matrix products.

All tensors may have a leading dimension K. The hidden weights enter the loop as constants; their gradient is formed
afterwards by one product over all steps, where autograd would add up one matrix per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paceline.core.stacked import is_stacked
from paceline.engines.stacking.hooks import Unstackable
from paceline.engines.stacking.layers.batched import is_differentiated, together
from paceline.engines.stacking.layers.dropout import dropped

if TYPE_CHECKING:
    from paceline.engines.stacking.layers.mode import Handler, StackedLayers

__all__ = ["RECURRENT"]

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, Tensor, State], State]
"""One step: (product of the inputs, product of the hidden state, state) -> state; the first of a state is hidden."""


def _lstm_cell(inputs: Tensor, hidden: Tensor, state: State) -> State:
    i, f, g, o = (inputs + hidden).chunk(4, -1)
    memory = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory


def _gru_cell(inputs: Tensor, hidden: Tensor, state: State) -> State:
    (xr, xz, xn), (hr, hz, hn) = inputs.chunk(3, -1), hidden.chunk(3, -1)
    update = (xz + hz).sigmoid()
    new = (xn + (xr + hr).sigmoid() * hn).tanh()
    return (new + update * (state[0] - new),)


def _tanh_cell(inputs: Tensor, hidden: Tensor, state: State) -> State:
    return ((inputs + hidden).tanh(),)


def _relu_cell(inputs: Tensor, hidden: Tensor, state: State) -> State:
    return ((inputs + hidden).relu(),)


class _LstmStep(torch.autograd.Function):
    """`_lstm_cell` on the sum of both products, with half of autograd's operations in the backward pass."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, memory: Tensor) -> State:
        gates = total.sigmoid()
        i, f, _, o = gates.chunk(4, -1)
        g = total.chunk(4, -1)[2].tanh()
        new = torch.addcmul(f * memory, i, g)
        top = new.tanh()
        ctx.save_for_backward(gates, g, top, memory)
        return o * top, new

    @staticmethod
    def backward(ctx: Any, of_hidden: Tensor, of_memory: Tensor) -> State:
        gates, g, top, memory = ctx.saved_tensors
        i, f, _, o = gates.chunk(4, -1)
        slope = torch.ops.aten.tanh_backward(of_hidden * o, top) + of_memory
        through = torch.cat([slope * g, slope * memory, slope, of_hidden * top], -1)
        out = torch.ops.aten.sigmoid_backward(through, gates)
        size = g.shape[-1]
        out[..., 2 * size : 3 * size] = torch.ops.aten.tanh_backward(slope * i, g)
        return out, slope * f


_SUMMED: dict[Cell, Callable[[Tensor, State], State]] = {
    _lstm_cell: lambda total, state: _LstmStep.apply(total, state[1]),  # type: ignore[no-untyped-call]
    _tanh_cell: lambda total, state: (total.tanh(),),
    _relu_cell: lambda total, state: (total.relu(),),
}
"""The same steps from the sum of both products, which GRU needs apart."""


class _Later(torch.autograd.Function):
    """Pass the base of the hidden products through; form the gradient of the hidden weights from its own."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, weight: Tensor, seen: list[Tensor]) -> Tensor:
        ctx.seen = seen
        return base.view_as(base)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        if not ctx.needs_input_grad[1]:
            return slope, None, None
        hidden = torch.stack(ctx.seen, -3).flatten(-3, -2)
        return slope, slope.flatten(-3, -2).transpose(-1, -2) @ hidden, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x W^T + b``, shape [..., n, G]."""
    out = x @ weight.transpose(-1, -2)
    return out if bias is None else out + bias.unsqueeze(-2)


def _layer(cell: Cell, x: Tensor, state: State, weights: Sequence[Tensor], biased: bool, stacked: bool) -> tuple[Tensor, State]:
    """Return the outputs of one layer in one direction, shape [..., T, B, H], and its last state.

    Args:
        cell: one step.
        x: inputs, shape [..., T, B, I].
        state: initial state, each shape [..., B, H].
        weights: of input and hidden state, then their biases if `biased`, then LSTM's projection if it has one.
        stacked: whether all tensors have the dimension K.
    """
    of_input, of_hidden, rest = weights[0], weights[1], list(weights[2:])
    input_bias, hidden_bias = (rest.pop(0), rest.pop(0)) if biased else (None, None)
    project = rest[0].transpose(-1, -2) if rest else None
    products = _product(x.flatten(-3, -2), of_input, input_bias)
    products = products.view(*x.shape[:-1], products.shape[-1])
    matrix = of_hidden.transpose(-1, -2)
    outputs, seen, summed = [], list[Tensor](), _SUMMED.get(cell)
    bases: Any = [None] * x.shape[-3]
    if stacked:
        bias = products.new_zeros(()) if hidden_bias is None else hidden_bias[..., None, None, :]
        base = bias.expand_as(products) if summed is None else products + bias
        base = _Later.apply(base, of_hidden, seen)  # type: ignore[no-untyped-call]
        bases, matrix = base.unbind(-3), matrix.detach()
    for inputs, base in zip(products.unbind(-3), bases, strict=True):
        seen.append(state[0].detach())
        hidden = _product(state[0], of_hidden, hidden_bias) if base is None else torch.baddbmm(base, state[0], matrix)
        state = summed(hidden, state) if stacked and summed else cell(inputs, hidden, state)
        if project is not None:
            state = (state[0] @ project, *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs, -3), state


def _network(
    layers: StackedLayers,
    cell: Cell,
    x: Tensor,
    state: State,
    weights: Sequence[Tensor],
    biased: bool,
    depth: int,
    dropout: float,
    both: bool,
    batch_first: bool,
    stacked: bool,
) -> tuple[Tensor, ...]:
    """Return the outputs of all layers, and each last state, shape [..., layers * directions, B, H]."""
    directions = 1 + both
    each = len(weights) // (depth * directions)
    x = x.transpose(-2, -3) if batch_first else x
    last: list[State] = []
    for level in range(depth):
        outputs = []
        for way in range(directions):
            place = level * directions + way
            own = weights[place * each : (place + 1) * each]
            begin = tuple(s.select(-3, place) for s in state)
            out, end = _layer(cell, x.flip(-3) if way else x, begin, own, biased, stacked)
            outputs.append(out.flip(-3) if way else out)
            last.append(end)
        x = torch.cat(outputs, -1) if both else outputs[0]
        if dropout and level < depth - 1:
            x = dropped(layers, x, dropout) if stacked else layers.call(torch.dropout, x, dropout, True)
    ends = tuple(torch.stack(parts, -3) for parts in zip(*last, strict=True))
    return (x.transpose(-2, -3) if batch_first else x, *ends)


def _recurrent(cell: Cell) -> Handler:
    def handle(layers: StackedLayers, func: Any, x: Tensor, *args: Any) -> Any:
        state, weights = args[0], args[1]
        if isinstance(weights, Tensor) or (cell is _lstm_cell and isinstance(state, Tensor)):
            raise Unstackable("it packs sequences, whose lengths differ between clients")
        biased, depth, dropout, training, both, batch_first = args[2:]
        dropout = dropout if training else 0.0
        if dropout and depth > 1 and x.device.type == "cuda":
            raise Unstackable("the dropout between the layers of a recurrent network has cuDNN's own stream on a GPU")
        state = tuple(state) if isinstance(state, tuple | list) else (state,)
        weights, count = list(weights), len(state)

        def network(x: Tensor, *tensors: Tensor, stacked: bool = True) -> tuple[Tensor, ...]:
            own = tensors[:count], tensors[count:]
            return _network(layers, cell, x, *own, biased, depth, dropout, both, batch_first, stacked)

        if is_differentiated(x, *state, *weights):
            return network(x, *state, *weights, stacked=False)
        if not dropout and not any(map(is_stacked, weights)):
            return _shared(layers, func, x, state, *args[1:])
        return together(network, layers.slot, x, *state, *weights)

    return handle


def _shared(layers: StackedLayers, func: Any, x: Tensor, state: State, weights: Any, *options: Any) -> Any:
    """Return the results of a network whose weights all clients share: one large batch."""
    at = 0 if options[-1] else 1  # where the samples are: batch_first

    def call(x: Tensor, *state: Tensor) -> Any:
        size = x.shape[0]
        x, begin = x.movedim(0, at).flatten(at, at + 1), [s.movedim(0, 1).flatten(1, 2) for s in state]
        out, *ends = func(x, begin if len(begin) > 1 else begin[0], weights, *options)
        return (_apart(out, at, size), *(_apart(end, 1, size) for end in ends))

    return together(call, layers.slot, x, *state)


def _apart(x: Tensor, dim: int, size: int) -> Tensor:
    """Return one large batch in dimension `dim` as the batches of each client, shape [K, ...]."""
    return x.view(*x.shape[:dim], size, -1, *x.shape[dim + 1 :]).movedim(dim, 0)


def _single(cell: Cell) -> Handler:
    def handle(
        layers: StackedLayers,
        func: Any,
        x: Tensor,
        state: Any,
        of_input: Tensor,
        of_hidden: Tensor,
        input_bias: Tensor | None = None,
        hidden_bias: Tensor | None = None,
    ) -> Any:
        state = tuple(state) if isinstance(state, tuple | list) else (state,)
        out = cell(_product(x, of_input, input_bias), _product(state[0], of_hidden, hidden_bias), state)
        return out if len(out) > 1 else out[0]

    return handle


RECURRENT: dict[Any, Handler] = {
    torch.lstm: _recurrent(_lstm_cell),
    torch.gru: _recurrent(_gru_cell),
    torch.rnn_tanh: _recurrent(_tanh_cell),
    torch.rnn_relu: _recurrent(_relu_cell),
    torch.lstm_cell: _single(_lstm_cell),
    torch.gru_cell: _single(_gru_cell),
    torch.rnn_tanh_cell: _single(_tanh_cell),
    torch.rnn_relu_cell: _single(_relu_cell),
}
