"""FedPer (Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv 1912.00818).

    a client trains base and head together;   base <- sum_u n_u base_u / sum_u n_u;   the head stays on the client

The server sees the weighted sum of updates of the base. A client stores its head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from paceline.blocks.shared_part import SharedPart
from paceline.models.split import head_name


@dataclass(frozen=True)
class FedPer(SharedPart):
    """FedAvg of everything but the last linear layer."""

    paper: ClassVar[str] = "Arivazhagan et al., arXiv 1912.00818"
    headline: ClassVar[str] = "personalisation layers overcome statistical heterogeneity that FedAvg does not cope with"
    client_state: ClassVar[str] = "its head"

    def own(self, module: nn.Module) -> Callable[[str], bool]:
        """Select the head."""
        prefix = f"{head_name(module)}."
        return lambda name: name.startswith(prefix)
