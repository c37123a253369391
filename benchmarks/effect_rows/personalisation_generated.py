"""Effects of what is generated for clients whose pictures look different: features (FRAug), and prompts (pFedPG)."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from effect_rows.personalisation import KINDS
from effect_study.rows import Row, Side
from paceline.assembly import build_method, reload
from paceline.core.client import Client
from paceline.core.federation import Federation, WithOwn
from paceline.core.method import on_client
from paceline.core.random import derive
from paceline.methods.personalisation.fraug import DISTANCES, FRAug
from paceline.methods.personalisation.pfedpg import PFedPG, PromptState
from paceline.models.split import features

__all__ = ["ROWS"]

_AUGMENTED: dict[str, Any] = {"lr": 0.1, "epochs": 2, "batch_size": 32, "steps": None, "gamma": 0.05, "horizon": 60}

_FROZEN: dict[str, Any] = {
    "task": "vit-tuning",
    "task_options": {"of": "four-digits", "limit": 16000, "dim": 32, "depth": 2, "epochs": 15},
    "partition": "domains",
    "client_samples": 80,
    "client_test": 0.5,
    "evaluation": "clients",
    "clients": 8,
    "cohort": 8,
    "rounds": 60,
    "eval_every": 60,
}
"""A transformer that was pretrained on five digits; eight clients with 40 training pictures of all ten, of one kind each.

On their other pictures the loss rises, by 18 % on a seed of the search, as heads overfit 40 pictures; accuracy does not fall.
"""

_PROMPTS: dict[str, Any] = {"tokens": 4, "epochs": 3, "batch_size": 64, "lr": 0.1, "server_optimizer": "adam"}


@dataclass(frozen=True)
class Watched(PFedPG):
    """pFedPG that notes the loss of the prompts that it generates, with the clients' heads, before they are tuned."""

    def round(self, fed: Federation, state: PromptState) -> PromptState:
        """Run a round and note the mean loss over clients before it."""
        prompts = {client: own for own, (client,) in self.personal(state, fed.available())}
        losses = fed.each(self.before, None, over=sorted(prompts), each_message=prompts)
        new = super().round(fed, state)
        last = fed.last
        last.notes["before"] = statistics.fmean(losses.values())
        fed.last = last
        return new

    @on_client(each=True)
    def before(self, client: Client, message: WithOwn[None, Tensor]) -> float:
        """Return the loss on the client's training samples."""
        sums = client.evaluate(self.personal_start(client, message["own"]), client.train)
        return float(sums["loss"]) / max(int(sums["count"]), 1)


def transform_distance(summary: Any) -> float:
    """Return D_T(T(G(z, y), f, y), f) for the clients' trained T, over that for the T that they began with.

    f are the features of a client's training pictures; both T normalise over all of them, as in training over a batch.
    """
    method = cast(FRAug, build_method(summary.config))
    task, split = reload(summary.config, method)
    first: Any = task.build(derive(summary.config.seed, "init"))
    apart = DISTANCES[method.transform_distance]
    found = []
    for client in range(split.num_clients):
        module: Any = summary.model(client)
        rows = split(client)[0]
        x, y = task.train.x[rows], task.train.y[rows]
        with torch.no_grad():
            f = features(module.model, x)
            z = torch.rand(len(y), module.generator.noise, generator=torch.Generator().manual_seed(client))
            v = module.generator(z, y)
            found.append([float(apart(transform.train()(v, f, y), f)) for transform in (module.transform, first.transform)])
    trained, untrained = map(sum, zip(*found, strict=True))
    return trained / untrained


def first_loss(summary: Any) -> float:
    """Return the mean loss of generated prompts in rounds 2 to 6; in the first round heads are not trained."""
    return statistics.fmean(record["note_before"] for record in summary.history[1:6])


def last_loss(summary: Any) -> float:
    """Return the mean loss of generated prompts in the last five rounds."""
    return statistics.fmean(record["note_before"] for record in summary.history[-5:])


def fallen_loss(summary: Any) -> float:
    """Return the loss of generated prompts before local training, of the last five rounds over that of rounds 2 to 6."""
    return last_loss(summary) / first_loss(summary)


def _generated(name: str, server_lr: float) -> Side:
    """Return pFedPG whose generator has a learning rate."""
    return Side("effect_rows.personalisation_generated:Watched", {}, _PROMPTS | {"server_lr": server_lr}, name=name)


def _falls(name: str, claim: str, side: Side, config: dict[str, Any], metric: Any) -> Row:
    """Return a row on a ratio that is below 1, at the sheet's settings."""
    return Row(f"personalisation/{name}", claim, side, 1.0, config, metric, better="lower", margin=0.0, ratio=True, trials=1)


ROWS: list[Row] = [
    _falls(
        "fraug-transform",
        "a client's trained transformer changes its features less than an untrained one (MMD)",
        Side("fraug", {}, _AUGMENTED),
        KINDS,
        transform_distance,
    ),
    _falls(
        "pfedpg-loss",
        "the loss of generated prompts on training pictures, before local training, falls over 60 rounds",
        _generated("pfedpg", 1e-3),
        _FROZEN,
        fallen_loss,
    ),
    Row(
        "personalisation/pfedpg-generator",
        "after 60 rounds the loss of generated prompts on training pictures is lower than with a generator that stays as it was",
        _generated("pfedpg", 1e-3),
        _generated("pfedpg with a constant generator", 0.0),
        _FROZEN,
        last_loss,
        better="lower",
        margin=0.0,
        ratio=True,
        trials=1,
    ),
]
