"""FedBN (Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021).

    w <- mean(w_u) for all layers but batch normalisation, whose parameters and running statistics stay on the client

The server sees the sum of updates of the other layers. A client stores its normalisation layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import nn

from paceline.blocks.shared_part import SharedPart
from paceline.core.client import Client
from paceline.core.errors import ConfigError
from paceline.core.training import norms_in


@dataclass(frozen=True)
class FedBN(SharedPart):
    """FedAvg of everything but batch normalisation: for clients whose inputs look different.

    Args:
        layers: names of the modules that stay on the client, with wildcards, such as ``["norm*", "head"]``; batch normalisation
            by default.
    """

    paper: ClassVar[str] = "Li et al., ICLR 2021"
    headline: ClassVar[str] = "under shifted features faster and more accurate than FedAvg and FedProx"
    client_state: ClassVar[str] = "its batch normalisation layers"

    layers: tuple[str, ...] = ()

    def own(self, module: nn.Module) -> Callable[[str], bool]:
        """Select batch normalisation, or `layers`."""
        norms, modules = set(norms_in(module)), list(module.named_modules())
        if self.layers:
            names = [name for name, _ in modules if any(fnmatchcase(name, pattern) for pattern in self.layers)]
        else:
            names = [name for name, part in modules if part in norms]
        prefixes = tuple(f"{name}." for name in names)
        if prefixes:
            return lambda name: name.startswith(prefixes)
        if self.layers:
            known = ", ".join(name for name, _ in modules if name)
            raise ConfigError(f"fedbn: layers={list(self.layers)} matches no module of the model, which has {known}")
        raise ConfigError("fedbn needs a model with batch normalisation; set layers to other modules, or choose another model")

    def weight(self, client: Client) -> float:
        """Weight all clients with samples equally."""
        return min(client.num_samples, 1)
