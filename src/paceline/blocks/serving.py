"""What a server computes with the run's model on samples of its own: features, scores, and training by the one local loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from paceline.blocks.architectures import architectures
from paceline.core.client import ClientData
from paceline.core.columns import Samples, length, take
from paceline.core.errors import ConfigError
from paceline.core.federation import Federation
from paceline.core.hooks import Hooks
from paceline.core.optimizers import AdamW, Optimizer
from paceline.core.params import Params, Resident
from paceline.core.random import torch_rng
from paceline.core.reading import Sampled
from paceline.core.training import Job, train
from paceline.models.split import features, scored

__all__ = ["ContinuedAdam", "featured", "rows_of", "trained_at_server"]


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
def featured(model: Resident, params: Params, x: Samples, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Return features [N, d] and scores [N, C] of samples, in evaluation mode.

    Args:
        model: a module with a head.
        params: its parameters.
        x: inputs.
        batch_size: samples of a pass.
    """
    model.load(params.to(model.device))
    model.module.eval()
    rows = torch.split(torch.arange(length(x), device=model.device), batch_size)
    found = [features(model.module, take(x, some)) for some in rows]
    return torch.cat(found), torch.cat([scored(model.module, part) for part in found])


def trained_at_server(
    fed: Federation,
    params: Params,
    x: Samples,
    y: Any,
    *,
    optimizer: Optimizer,
    steps: int,
    batch_size: int,
    hooks: Hooks,
    name: str = "server",
) -> Params:
    """Return the run's model after a training on samples of the server.

    Args:
        fed: the federation.
        params: where to start, shape [d].
        x, y: inputs and targets.
        optimizer: with its learning rate.
        steps, batch_size: see `Client.sgd`.
        hooks: see `Client.sgd`.
        name: of the stream of the order of samples.
    """
    model = architectures(fed).like(params)
    rows = torch.arange(length(x), device=model.device)
    assert optimizer.lr is not None
    job = Job(
        model,
        ClientData(x, y, rows),
        params.to(model.device),
        hooks.loss or architectures(fed).task.loss,
        optimizer.lr,
        steps,
        batch_size,
        partial(torch_rng, fed.seed, name, fed.round),
        optimizer,
        hooks,
    )
    return train(job).params.to(params.vector.device)
