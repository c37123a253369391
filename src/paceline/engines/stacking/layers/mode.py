"""Layers that need more than ``torch.func.vmap``: own random streams, statistics of a batch, recurrence, attention."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from paceline.core.training import Job
from paceline.engines.stacking.hooks import Unstackable
from paceline.engines.stacking.layers.attention import ATTENTION
from paceline.engines.stacking.layers.dropout import DRAWS
from paceline.engines.stacking.layers.embeddings import EMBEDDINGS
from paceline.engines.stacking.layers.norms import NORMS
from paceline.engines.stacking.layers.recurrent import RECURRENT
from paceline.engines.stacking.layers.streams import Streams

__all__ = ["HANDLERS", "Handler", "StackedLayers"]

Handler = Callable[..., Any]
"""Replacement of a function of torch: (mode, function, *its arguments) -> its result."""

HANDLERS: dict[Any, Handler] = {**DRAWS, **NORMS, **RECURRENT, **ATTENTION, **EMBEDDINGS}


class StackedLayers(TorchFunctionMode):
    """Context of one client's forward pass under ``vmap``, in which such layers are computed for all clients of the stack.

    Args:
        jobs: the clients' jobs, in stacking order.
        changing: names of buffers that the module changes in place.
    """

    def __init__(self, jobs: Sequence[Job], changing: Sequence[str] = ()) -> None:
        super().__init__()
        self.streams = Streams(jobs)
        self.clients: Sequence[int] = ()
        """Positions in the stack of the clients that are computed now."""
        self.slot = torch.zeros(())
        """Position of the client among them: a value of ``vmap``."""
        self._changing = changing
        self._more: Mapping[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._named: dict[int, tuple[str, Tensor]] = {}
        self._moved: dict[str, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the calls of `HANDLERS`; forward all others."""
        handler = HANDLERS.get(func)
        return func(*args, **(kwargs or {})) if handler is None else handler(self, func, *args, **(kwargs or {}))

    def call(self, func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function from within a handler, with the calls in it replaced as well."""
        with self:
            return func(*args, **options)

    def begin(self, slot: Tensor, more: Mapping[str, Tensor], counts: dict[str, int]) -> None:
        """Begin with one client.

        Args:
            slot: its position, a value of ``vmap``.
            more: tensors that replace those of the module, beside those in the vector.
            counts: values of BatchNorm's counters, by name; updated by the forward passes.
        """
        self.slot, self._more, self._counts, self._moved = slot, more, counts, {}

    @contextlib.contextmanager
    def around(self, named: dict[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """Context of one forward pass with the tensors `named`, as `Functional` uses it."""
        counters = {name: torch.tensor(count) for name, count in self._counts.items()}
        given = named | dict(self._more)
        own = {name: given[name].detach().clone() for name in self._changing}  # to be changed in place
        self._named = {id(tensor): (name, tensor) for name, tensor in (given | own).items()}
        self._moved = {}
        with self:
            yield {**self._more, **own, **counters}
        self._moved = own | self._moved
        self._counts.update({name: int(counter) for name, counter in counters.items()})

    def running(self, statistic: Tensor | None) -> Tensor | None:
        """Return the present value of a running statistic, from the tensor that the module has."""
        if statistic is None or id(statistic) not in self._named:
            return statistic
        name, tensor = self._named[id(statistic)]
        return self._moved.get(name, tensor).detach()

    def move(self, statistic: Tensor, value: Tensor, momentum: float) -> None:
        """Move a running statistic towards a value: ``(1 - momentum) * statistic + momentum * value``."""
        if id(statistic) not in self._named:
            raise Unstackable("it has running statistics that are no buffers of the module")
        name, tensor = self._named[id(statistic)]
        before = self._moved.get(name, tensor).detach()
        self._moved[name] = before + momentum * (value.to(before.dtype) - before)

    def moved(self) -> dict[str, Tensor]:
        """Return the running statistics that the last forward pass moved, by name."""
        return {name: value.detach() for name, value in self._moved.items()}

    def keep(self, moved: dict[str, Tensor]) -> None:
        """Let `moved` return other values: those of an earlier forward pass."""
        self._moved = moved
