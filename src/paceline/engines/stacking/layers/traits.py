"""What a module's layers require of the stacked computation, from one forward pass on two samples."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from paceline.core.columns import Samples, spread
from paceline.core.generators import GeneratorWatch, drawing
from paceline.core.layout import float_buffers
from paceline.core.params import Resident
from paceline.core.samples import ClientData
from paceline.core.training import norms_in
from paceline.engines.stacking.layers.mode import HANDLERS
from paceline.engines.stacking.layers.norms import NORMS

__all__ = ["Traits", "traits_of"]


@dataclass(frozen=True)
class Traits:
    """What a module's layers require.

    Args:
        special: calls have to be replaced, see `StackedLayers`; also if an objective alone may call the module's BatchNorm.
        exact: a batch must hold a client's own samples and no padding, and no other client's: its statistics or its random
            numbers depend on its size.
        norms: it has BatchNorm, which uses its running statistics for a batch of one sample.
        changing: names of other float buffers that it changes in training.
    """

    special: bool
    exact: bool
    norms: bool
    changing: tuple[str, ...] = ()


_KNOWN: WeakKeyDictionary[Resident, Traits] = WeakKeyDictionary()


def traits_of(model: Resident, data: ClientData) -> Traits:
    """Return the traits of a resident module; each module is examined once.

    Args:
        model: the module.
        data: samples of a client, of which two are read.
    """
    found = _KNOWN.get(model)
    if found is None:
        found = _KNOWN[model] = _examine(model, data.at(data.index[:2])[0])
    return found


def _examine(model: Resident, samples: Samples) -> Traits:
    module = model.module.train()
    norms, calls = bool(norms_in(module)), _Calls()
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    layers = {name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._NormBase)}
    known = {name for name in buffers if name.rpartition(".")[0] in layers}
    with drawing(0, model.device), torch.no_grad():
        watch = GeneratorWatch(model.device)
        failed = True
        with contextlib.suppress(Exception), calls:  # after a failure: the method calls the module differently
            functional_call(module, buffers, *spread(samples))
            failed = False
        drew = watch.advanced()
    if failed:
        return Traits(True, True, norms)
    changing = tuple(name for name, buffer in float_buffers(module) if not buffer.equal(buffers[name]) and name not in known)
    exact = drew or norms or calls.counts or bool(changing) or not NORMS.keys().isdisjoint(calls.seen)
    return Traits(bool(calls.seen or changing or norms), exact, norms, changing)


class _Calls(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()
        self.counts = False
        """Whether gradients depend on how often a word occurs in a batch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in HANDLERS:
            self.seen.add(func)
            self.counts |= bool((kwargs or {}).get("scale_grad_by_freq"))
        return func(*args, **(kwargs or {}))
