"""Sub-models for client functions: one cutter per worker, built on first use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

from torch import Tensor, nn

from paceline.core.client import Client, Hooks, LocalOptions, Trained
from paceline.core.columns import place, positional
from paceline.core.params import Params, Resident
from paceline.core.services import Host
from paceline.submodels.cut import Cutter, SubModel
from paceline.submodels.graph import UnitGraph
from paceline.submodels.scores import Scorer

if TYPE_CHECKING:
    from paceline.core.federation import Federation

__all__ = ["Rescaled", "Submodels", "fit_submodel", "own_resident", "submodel_service", "submodels", "train_submodel"]


class Submodels:
    """Cuts sub-models of a worker's model.

    Args:
        build: creates the cutter; called once.
    """

    def __init__(self, build: Callable[[], Cutter]) -> None:
        self._build = build

    @cached_property
    def cutter(self) -> Cutter:
        """Cutter of the worker; raises `SubmodelError` for a model that cannot be cut."""
        return self._build()

    @cached_property
    def scorer(self) -> Scorer:
        """Scorer for the units of the worker's model."""
        return Scorer(self.cutter.graph, self.cutter.layout)

    def cost(self, fraction: float, up: bool = False) -> float:
        """Return c(p), the fraction of the FLOPs of a sub-model that keeps the fraction p of each layer's units."""
        return self.cutter.cost(fraction, up)

    def cut(self, kept: Mapping[str, Tensor]) -> SubModel:
        """Return the sub-model of the given units, by group."""
        return self.cutter.cut(kept)


def submodel_service(host: Host) -> Submodels:
    """Return the service for a worker; nothing is traced before its first use."""

    def build() -> Cutter:
        inputs = positional(host.model.module, place(host.example, host.model.device))
        cutter = Cutter(host.model.module, host.layout, inputs)
        cutter.mixed = host.model.mixed
        return cutter

    return Submodels(build)


def submodels(place: Client | Federation) -> Submodels:
    """Return the sub-models of the worker that runs a client, or those of a server's federation."""
    services = place.services if isinstance(place, Client) else place.engine.services
    return services[Submodels]


def train_submodel(
    client: Client,
    params: Params,
    sub: SubModel,
    rescale: float = 1.0,
    hooks: Hooks | None = None,
    **local: Unpack[LocalOptions],
) -> Params:
    """Train a sub-model on this client's data; return the full-size update, zero where nothing was trained.

    Args:
        client: the client.
        params: the full model.
        sub: which part of it.
        rescale: factor on the outputs of Linear and Conv layers that are cut, in training; 1/p is HeteroFL's scaler.
        hooks: of the local loop; their parameters and gradients are those of the sub-model.
        **local: options of the local loop.
    """
    start = sub.extract(params)
    return sub.scatter(fit_submodel(client, start, sub, rescale, hooks, **local).params - start)


def fit_submodel(
    client: Client,
    start: Params,
    sub: SubModel,
    rescale: float = 1.0,
    hooks: Hooks | None = None,
    **local: Unpack[LocalOptions],
) -> Trained:
    """Train a sub-model from its own parameters `start`, and return them; the arguments are those of `train_submodel`."""
    resident = own_resident(client, sub)
    prepare = None if rescale == 1.0 else Rescaled(sub.cutter.graph, rescale)
    trained = client.sgd(start, model=resident, alone=sub.cutter.has_frozen, hooks=hooks, prepare=prepare, **local)
    if client.model.stateful:
        client.memory["_buffers"] = sub.merge_tensors(client.local_buffers, resident.local_buffers())
    return trained


def own_resident(client: Client, sub: SubModel) -> Resident:
    """Return a sub-model's module with the client's own running statistics, if they stay local."""
    resident = sub.resident()
    if client.model.stateful:
        resident.load_buffers(sub.cut_tensors(client.local_buffers))
    return resident


@dataclass(frozen=True)
class Rescaled:
    """Context in which layers that are cut scale their outputs in training: ``with Rescaled(graph, 2.0)(module): ...``.

    Args:
        graph: units of the full model; not compared, because a module is cut from one full model.
        factor: factor on the outputs of Linear and Conv layers.
    """

    graph: UnitGraph = field(compare=False)
    factor: float

    @contextmanager
    def __call__(self, module: nn.Module) -> Iterator[None]:
        """Return the context for a sub-model's module."""
        hooks = []
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
                group = self.graph.axes[f"{name}.weight"][0].group
                if group is not None:
                    hooks.append(layer.register_forward_hook(_scaler(self.factor)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _scaler(factor: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda layer, _, out: out * factor if layer.training else out
