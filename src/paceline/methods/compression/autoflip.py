"""AutoFLIP ("AutoFLIP: Federated Hybrid Model Pruning through Loss Landscape Exploration", arXiv 2405.10271, 2024): parameters that move
little in an exploration before training are masked; only the others are trained and sent.

    exploration:  client i trains from w_0 to w_i^x;   D = mean_i (w_i^x - w_0)^2;   G = (D - min D) / (max D - min D), in each tensor
    mask:         M = 1[G > the quantile T_p of all G];   w <- w_0 * M
    client:       gradients are multiplied by M, before the optimizer
    server:       v <- beta v + (1 - beta) sum_i n_i (w - w_i) / sum_i n_i;   w <- (w - v) * M

With mask_update=agreement, G <- gamma G + (1 - gamma) |sum_i sign(w_i - w)| / |S| every few rounds, and M follows from it.

The server sees sums of updates, of squared displacements and of signs. A client stores its squared displacement where M follows the
cohort.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from paceline.blocks.architectures import architectures
from paceline.blocks.exploration import Exploration
from paceline.blocks.pruning import Protected, PrunedModel, prunable, spread, without_dead_units
from paceline.blocks.saliency import quantile_mask, scaled_saliency
from paceline.core.client import Client, Hooks
from paceline.core.errors import SubmodelError
from paceline.core.federation import Federation
from paceline.core.method import Positive, Share, State, on_client
from paceline.core.params import Params
from paceline.core.random import torch_rng
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.submodels.service import submodels


@node
class AutoFLIPState(State):
    """The model, the server's momentum v, the guidance G, and the mask M: 1 for what survives."""

    momentum: Params
    guidance: Params
    mask: Params


@dataclass(frozen=True)
class AutoFLIP(Exploration[AutoFLIPState]):
    """Prune what an exploration leaves in place, and train and send the rest.

    Args:
        patience: stop exploring if the mean loss has not fallen for this many passes.
        prune: T_p, share of the parameters to mask.
        criterion: mask what has the smallest ``displacement``, or ``random`` parameters, as a baseline without exploration.
        mask_update: M is ``fixed`` after the exploration, follows the displacements of each ``round``'s cohort, or the ``agreement``
            of the signs of updates.
        floor: least share of survivors in each tensor.
        dead: a unit is removed with its bias and the weights that read it if at most this share of its incoming weights survives.
        protected: what is never masked, beside normalisations: the bias of the head (``last-bias``), all ``biases``, these and the whole
            ``head``, or ``nothing``.
        every: rounds between two masks by agreement.
        gamma: share of the previous G that remains there.
        regrow: share of the masked parameters that come back with each mask by agreement, drawn at random; they restart from 0.
    """

    family: ClassVar[str] = "compression"
    paper: ClassVar[str] = "arXiv 2405.10271 (2024)"
    headline: ClassVar[str] = "52 % fewer operations and more than 65 % less traffic on average, at an accuracy above FedAvg's"
    differs: ClassVar[str] = (
        "one mask for a run; explorers begin with the initial model, and with Adam anew in each pass; a tensor keeps 5 % at least"
    )
    reveals: ClassVar[str] = "sums of updates, of squared displacements and of signs"
    client_state: ClassVar[str] = "nothing, or its squared displacement"

    patience: Positive[int] = 40
    prune: Share = 0.3
    criterion: Literal["displacement", "random"] = "displacement"
    mask_update: Literal["fixed", "round", "agreement"] = "fixed"
    floor: Share = 0.05
    dead: Share = 0.0
    protected: Protected = "last-bias"
    every: Positive[int] = 10
    gamma: Share = 0.9
    regrow: Share = 0.0

    @property
    def follows(self) -> bool:
        """Whether M follows the cohort of each round."""
        return self.mask_update == "round"

    def check(self, fed: Federation) -> list[str]:
        """Require that all clients explore for mask_update=round, and an agreement for regrow."""
        found = []
        if self.follows and (self.explorers < 1 or self.criterion == "random"):
            found.append(
                "autoflip with mask_update=round needs all clients to explore; "
                "use explorers=1 and criterion=displacement, or mask_update=fixed"
            )
        if self.regrow and self.mask_update != "agreement":
            found.append("autoflip: regrow applies to masks by agreement; set mask_update=agreement or regrow=0")
        return found

    def init(self, fed: Federation) -> AutoFLIPState:
        """Start with the whole model; exploration precedes the first round."""
        params = fed.init_params()
        return AutoFLIPState(params=params, momentum=params.zeros(), guidance=params.zeros() + 1.0, mask=params.zeros() + 1.0)

    def round(self, fed: Federation, state: AutoFLIPState) -> AutoFLIPState:
        """Explore before the first round; train what survives, and step along the server's momentum."""
        cohort = fed.sample()
        guidance = self.explore(fed, state.params) if fed.round == 1 else state.guidance
        if self.follows:
            guidance = scaled_saliency(fed.mean(self.recall, None, over=cohort).square, self.scale)
        if self.follows or fed.round == 1:
            state = self.masked(fed, state, guidance)
        votes, kept, layout = (
            self.mask_update == "agreement" and fed.round % self.every == 0,
            state.mask.vector > 0,
            state.mask.layout,
        )
        mean = fed.mean(self.train, (PrunedModel.of(state.params, state.mask), votes), over=cohort)
        fed.last.notes["kept"] = float(state.mask.vector[: layout.num_params].mean())
        params, momentum = self.served(state.params, state.momentum, spread(mean.change, kept, layout))
        state = replace(state, params=params * state.mask, momentum=momentum)
        if votes:
            agreement = spread(mean.signs.abs(), kept, layout)
            state = self.masked(fed, state, self.gamma * state.guidance + (1 - self.gamma) * agreement, self.regrow)
        return state

    def explore(self, fed: Federation, params: Params) -> Params:
        """Return the guidance G, [d], from an exploration that begins with the initial model."""
        if self.criterion == "random":
            return Params(torch.rand(params.layout.size, generator=torch_rng(fed.seed, "mask")), params.layout)
        return scaled_saliency(self.explored(fed, params), self.scale)

    def masked(self, fed: Federation, state: AutoFLIPState, guidance: Params, regrow: float = 0.0) -> AutoFLIPState:
        """Return the state with the mask that follows from a guidance, without a share of it that comes back."""
        module = architectures(fed).resident().module
        mask = quantile_mask(guidance, self.prune, prunable(module, guidance.layout, self.protected), self.floor)
        if regrow:
            drawn = torch.rand(mask.layout.size, generator=torch_rng(fed.seed, "regrow", fed.round)) < regrow
            mask = mask.map(lambda kept: torch.maximum(kept, drawn.to(kept)))
        with contextlib.suppress(SubmodelError):  # units that are not known are not removed
            mask = without_dead_units(mask, module, submodels(fed).cutter.graph, self.dead)
        return replace(state, params=state.params * mask, guidance=guidance, mask=mask)

    @on_client(bounds={"square": 4.0})
    def recall(self, client: Client, message: None) -> Update:
        """Return the squared displacement of this client's exploration."""
        own = client.memory.get("square")
        empty = Params(torch.zeros(client.model.layout.size, device=client.device), client.model.layout)
        return Update(square=empty if own is None else own, weight=0 if own is None else min(client.num_samples, 1))

    @on_client(bounds={"signs": 1.0})
    def train(self, client: Client, message: tuple[PrunedModel, bool]) -> Update:
        """Train what survives; return its change and, where they are asked for, the signs of it."""
        pruned, votes = message
        start, mask = pruned.opened(client.model.layout)
        hooks = Hooks(correct=lambda gradient, at: mask * gradient)
        local = client.sgd(start, optimizer=self.rule(client.round), epochs=self.epochs, batch_size=self.batch_size, hooks=hooks)
        change = (local.params - start).vector[mask.vector > 0]
        fields, count = {"change": change}, {"change": client.num_samples}
        if votes:
            fields["signs"], count["signs"] = change.sign(), min(client.num_samples, 1)
        return Update(**fields, weight=count)
