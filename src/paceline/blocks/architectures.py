"""Several architectures in one run: one resident module for each on a worker, built on first use.

Clients with different architectures share no parameters, so only what fits all of them is sent (a head, prototypes,
anchors); each client's own network is stored in its memory as `Params` of its own layout.

An architecture is specified as a reference model with options, ``mlp:hidden=64-32,end=batch`` (a dash between
numbers makes a list); the empty text is the task's own model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from paceline import registry
from paceline.core.client import Client
from paceline.core.errors import ConfigError
from paceline.core.generators import drawing
from paceline.core.layout import Layout
from paceline.core.params import Params, Resident
from paceline.core.random import derive
from paceline.core.services import Host
from paceline.models import build
from paceline.models.split import body_layout, head, head_name, with_second_head
from paceline.submodels.flops import flops

if TYPE_CHECKING:
    from paceline.core.federation import Federation

__all__ = ["Architectures", "architectures", "architectures_service", "frozen", "parse_architecture"]


def parse_architecture(text: str) -> tuple[str, dict[str, Any]]:
    """Parse ``mlp:hidden=64-32,end=batch`` into a model's name and its options.

    Raises:
        ConfigError: a part is not ``name=value``.

    Example:
        >>> parse_architecture("mlp:hidden=64-32,end=batch")
        ('mlp', {'hidden': (64, 32), 'end': 'batch'})
    """
    if not text.strip():
        return "", {}
    spec = registry.parse("model", text)
    options: dict[str, Any] = {}
    for key, value in spec.options.items():
        numbers = value.split("-") if isinstance(value, str) else []
        if value == "":
            raise ConfigError(f"model {text!r}: malformed or repeated option; write each one once, as {key}=VALUE")
        options[key] = tuple(map(int, numbers)) if len(numbers) > 1 and all(n.isdecimal() for n in numbers) else value
    return spec.name, options


def _whole(module: nn.Module) -> Layout:
    return Layout.of(module, lambda _: True)


def _with_own(layout: Layout, module: nn.Module) -> Layout:
    name, entries = head_name(module), [(e.name, e.shape, e.kind) for e in layout.entries]
    parts = [(f"{name}.{part}", value) for part, value in head(module).named_parameters() if part.startswith("own_")]
    own = [(part, tuple(value.shape), entries[0][2]) for part, value in parts]
    return Layout.build(sorted([*entries, *own], key=lambda entry: entry[2] != "param"))


class Architectures:
    """Builds and caches modules.

    Args:
        task: provides data shape, number of classes and the model of the empty text; an attribute.
        seed: seed of the run; clients with the same architecture have the same initial weights.
        device: device of the modules.
    """

    def __init__(self, task: Any, seed: int, device: torch.device | str = "cpu") -> None:
        self.task, self._seed, self._device = task, seed, device
        self._made: dict[tuple[Any, ...], tuple[Resident, Params]] = {}

    def build(self, text: str = "") -> nn.Module:
        """Return a new module of an architecture with the run's initial weights."""
        seed = derive(self._seed, "init")
        if not text:
            module: nn.Module = self.task.build(seed)
            return module
        name, options = parse_architecture(text)
        with drawing(derive(seed, text)):
            x, _ = self.task.train.tensors(f"model {text!r}")
            return build(name, shape=tuple(x.shape[1:]), num_classes=self.task.num_classes, **options)

    def resident(self, text: str = "") -> Resident:
        """Return the module of an architecture; its vector includes all parameters and running statistics."""
        return self._get(text)[0]

    def initial(self, text: str = "") -> Params:
        """Return an architecture's initial parameters."""
        return self._get(text)[1]

    def trained(self, text: str = "") -> tuple[Resident, Params]:
        """Return the module of an architecture, and the initial values of what a client with a network of its own trains.

        These are all tensors of a reference model, and of the task's model those that the task does not freeze.
        """
        return self._get(text) if text else self._get("", "trained", layout=lambda module: Layout.of(module, self.task.trainable))

    def body(self) -> Resident:
        """Return a module whose vector is the run's without the head, which remains unchanged."""
        layout = partial(body_layout, trainable=self.task.trainable, buffers=self.task.buffers)
        return self._get("", "body", layout=layout)[0]

    def two_headed(self, layout: Layout) -> tuple[Resident, Params]:
        """Return the task's model whose head also has an ``own_weight`` and an ``own_bias``, and its initial parameters.

        The model's output ignores them; an objective of the local loop can train them on the same features.

        Args:
            layout: of the task's model; the second head is added to it.
        """

        def extend(module: nn.Module) -> nn.Module:
            with drawing(derive(self._seed, "second head")):
                return with_second_head(module)

        return self._get("", "two heads", layout.digest, extend=extend, layout=partial(_with_own, layout))

    def extended(self, text: str, kind: Callable[..., nn.Module], *arguments: Any) -> tuple[Resident, Params]:
        """Return a module made from an architecture, and its initial parameters; both are cached.

        Args:
            text: the architecture.
            kind: called with a new module of the architecture, one batch of example inputs, and `arguments`.
            arguments: further hashable arguments.
        """

        def extend(module: nn.Module) -> nn.Module:
            with drawing(derive(self._seed, text, "extended")):
                return kind(module, self.task.train.example, *arguments)

        return self._get(text, kind, *arguments, extend=extend)

    def _get(
        self,
        text: str,
        *key: Any,
        extend: Callable[[nn.Module], nn.Module] | None = None,
        layout: Callable[[nn.Module], Layout] = _whole,
    ) -> tuple[Resident, Params]:
        if (text, *key) not in self._made:
            module = self.build(text)
            module = extend(module) if extend else module
            chosen = layout(module)
            initial = Params.of(module, chosen)
            resident = Resident(module, chosen, self._device)
            resident.flops = flops(self.build(text), self.task.train.example)
            self._made[text, *key] = (resident, initial)
        return self._made[text, *key]


def frozen(fed: Federation, method: str, parts: Sequence[str]) -> list[str]:
    """Return which of the ``head`` and the ``body`` of the task's model are frozen though a method trains them, one sentence each."""
    prefix = f"{head_name(architectures(fed).resident().module)}."
    trained = [e.name.startswith(prefix) for e in fed.init_params().layout.entries if e.kind == "param"]
    here = {"head": any(trained), "body": not all(trained)}
    return [
        f"{method} trains the model's {part}, which the task freezes; take it into trainable" for part in parts if not here[part]
    ]


def architectures_service(host: Host) -> Architectures:
    """Return the service for a worker; nothing is built before its first use."""
    return Architectures(host.task, host.seed, host.model.device)


def architectures(place: Client | Federation) -> Architectures:
    """Return the architectures of the worker that runs a client, or of a server's federation."""
    services = place.services if isinstance(place, Client) else place.engine.services
    return services[Architectures]
