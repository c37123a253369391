"""Features and scores of samples that a server sends or uses itself, and Adam that goes on from round to round."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from paceline.core.client import Client
from paceline.core.columns import Samples, length, take
from paceline.core.errors import ConfigError
from paceline.core.optimizers import AdamW
from paceline.core.params import Params
from paceline.core.reading import Sampled
from paceline.models.split import features, scored

__all__ = ["ContinuedAdam", "featured", "rows_of"]


@dataclass(frozen=True)
class ContinuedAdam(AdamW):
    """Adam that goes on from the moments of an earlier training.

    Args:
        lr, betas, eps, weight_decay, schedule: see `AdamW`.
        moments: first and second moments, shape [d] both; changed in place by a training.
        taken: steps taken before.
    """

    moments: tuple[Tensor, Tensor] = field(kw_only=True)
    taken: int = field(default=0, kw_only=True)

    def state(self, weights: Tensor) -> list[Tensor]:
        """Return the moments."""
        return list(self.moments)

    def direction(self, step: int, gradient: Tensor, weights: Tensor, state: list[Tensor]) -> Tensor:
        """Return the direction of Adam at a later step."""
        return super().direction(step + self.taken, gradient, weights, state)


def rows_of(samples: Samples, rows: Tensor, what: str) -> Samples:
    """Return samples at `rows` as a batch.

    Raises:
        ConfigError: the samples are not in memory.
    """
    if isinstance(samples, Sampled):
        raise ConfigError(f"{what} requires samples in memory; those of this task are read one by one")
    return take(samples, rows)


@torch.no_grad()
def featured(client: Client, params: Params, x: Samples, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Return features [N, d] and scores [N, C] of samples, in evaluation mode, with the client's own running statistics if it has any.

    Args:
        client: a client, or samples of a server (`paceline.blocks.server_data`); its model has a head.
        params: of the model.
        x: inputs, on the model's device.
        batch_size: samples of a pass.
    """
    model = client.model
    client.load(params).eval()
    rows = torch.split(torch.arange(length(x), device=model.device), batch_size)
    found = [features(model.module, take(x, some)) for some in rows]
    client.flops += model.flops * length(x)
    return torch.cat(found), torch.cat([scored(model.module, part) for part in found])
