"""FedLEx ("Federated Loss Exploration for Improved Convergence on Non-IID Data", IJCNN 2024, arXiv 2506.18640): how far each parameter
moves in an exploration before training scales its gradient afterwards.

    exploration:  client i trains from theta_b to theta_i^x;   D = mean_i (theta_i^x - theta_b)^2
    guidance:     G = (D - min D) / (max D - min D), in each tensor
    client:       every gradient g becomes G o g, before the optimizer
    server:       v <- beta v + (1 - beta) sum_i n_i (theta - theta_i) / sum_i n_i;   theta <- theta - v

The server sees sums of updates and of squared displacements. A client stores its squared displacement where G follows the cohort.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from paceline.blocks.local_training import LocalTraining
from paceline.blocks.running import weights
from paceline.blocks.saliency import SaliencyScale, scaled_saliency
from paceline.core.client import AdamW, Client, Hooks
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, PositiveShare, Share, State, on_client
from paceline.core.optimizers import SGD, Optimizer
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update


@node
class FedLExState(State):
    """The model, the server's momentum v, the base theta_b of exploration, and the guidance G."""

    momentum: Params
    base: Params
    guidance: Params


@dataclass(frozen=True)
class FedLEx(LocalTraining[FedLExState]):
    """Loss exploration before training, whose result scales gradients.

    Args:
        explore_epochs: E_x, passes of the exploration.
        patience: stop exploring if the mean loss has not fallen for this many passes. Below `explore_epochs`, every pass has a
            fresh optimizer.
        explorers: p_x, share of clients that explore.
        guide: G follows each ``round``'s cohort (it is used from the next round on), or is ``fixed`` after the exploration;
            ``auto`` follows the cohort if all clients explore.
        base: theta_b: the ``initial`` model, the mean of one pass of a ``cohort``, or one pass of one ``client`` (as published).
        start_from: federated training begins with the ``base`` or with the ``initial`` model.
        scale: of the guidance, see `scaled_saliency`.
        unit_mean: divide G by its mean in each tensor, so that steps keep their size.
        most: with scale=robust, G is clamped to 0..most; None leaves negative factors.
        apply_to: G scales each ``gradient`` or the whole ``update``.
        optimizer: of the clients, ``adam`` or ``sgd``.
        lr_decay: factor of lr in each round.
        server_momentum: beta.
    """

    paper: ClassVar[str] = "arXiv 2506.18640 (IJCNN 2024)"
    headline: ClassVar[str] = "improves federated algorithms under realistic non-IID splits with a few epochs of exploration"
    differs: ClassVar[str] = "exploration starts from the initial model, not from one client's, which a secure sum could not hide"
    reveals: ClassVar[str] = "sums of updates and of squared displacements"
    client_state: ClassVar[str] = "its squared displacement (model size)"

    lr: NonNegative[float] | None = 3e-4
    epochs: Positive[int] = 5
    batch_size: Positive[int] | None = 350
    explore_epochs: Positive[int] = 150
    patience: Positive[int] = 150
    explorers: PositiveShare = 1.0
    guide: Literal["auto", "round", "fixed"] = "auto"
    base: Literal["initial", "cohort", "client"] = "initial"
    start_from: Literal["base", "initial"] = "base"
    scale: SaliencyScale = "minmax"
    unit_mean: bool = False
    most: Positive[float] | None = 10.0
    apply_to: Literal["gradient", "update"] = "gradient"
    optimizer: Literal["adam", "sgd"] = "adam"
    lr_decay: PositiveShare = 0.99
    server_momentum: Share = 0.9

    def check(self, fed: Federation) -> list[str]:
        """Require that one client's model may be seen for base=client, and that all clients explore for guide=round."""
        found = []
        if self.base == "client" and not fed.aggregation.sees_each:
            found.append(
                "fedlex with base=client needs one client's own model, which the aggregation hides; use base=initial or cohort"
            )
        if self.guide == "round" and self.explorers < 1:
            found.append("fedlex with guide=round needs all clients to explore; use explorers=1 or guide=fixed")
        return found

    @property
    def follows(self) -> bool:
        """Whether G follows the cohort of each round."""
        return self.guide == "round" or (self.guide == "auto" and self.explorers == 1)

    def init(self, fed: Federation) -> FedLExState:
        """Start without guidance; exploration precedes the first round."""
        params = fed.init_params()
        return FedLExState(params=params, momentum=params.zeros(), base=params, guidance=params.zeros() + 1.0)

    def round(self, fed: Federation, state: FedLExState) -> FedLExState:
        """Explore before the first round; train with the guidance, and step along the server's momentum."""
        cohort = fed.sample()
        if fed.round == 1:
            state = self.explore(fed, state)
        mean = fed.mean(self.train, (state.params, state.guidance), over=cohort)
        beta = self.server_momentum
        momentum = beta * state.momentum - (1 - beta) * weights(mean.delta)
        params = state.params - momentum + (mean.delta - weights(mean.delta))  # statistics are averaged
        guidance = self.scaled(mean.square) if self.follows else state.guidance
        return replace(state, params=params, momentum=momentum, guidance=guidance)

    def explore(self, fed: Federation, state: FedLExState) -> FedLExState:
        """Find the base and, unless it follows the cohorts, the guidance."""
        everyone = fed.available()
        base = state.params
        if self.base != "initial":
            base = base + fed.mean(self.warm, base, over=everyone[:1] if self.base == "client" else fed.sample()).change
        count = max(1, round(self.explorers * len(everyone)))
        mean = fed.mean(self.scout, base, over=fed.sample(count) if count < len(everyone) else everyone)
        guidance = state.guidance if self.follows else self.scaled(mean.square)
        return replace(state, params=base if self.start_from == "base" else state.params, base=base, guidance=guidance)

    def scaled(self, displacement: Params) -> Params:
        """Return the guidance G of mean squared displacements D, [d]."""
        found = scaled_saliency(displacement, self.scale, self.unit_mean)
        return found if self.scale == "minmax" or self.most is None else found.map(lambda v: v.clamp(0, self.most))

    @on_client
    def warm(self, client: Client, message: Params) -> Update:
        """Return the change of one pass over the data."""
        local = client.sgd(message, optimizer=self.rule(1), batch_size=self.batch_size)
        return Update(change=local.params - message, weight=client.num_samples)

    @on_client(bounds={"square": 4.0})
    def scout(self, client: Client, message: Params) -> Update:
        """Explore from the base; return the squared displacement, and store it where later rounds need it."""
        rule, size, at = self.rule(1), self.batch_size, message
        if self.patience >= self.explore_epochs:
            at = client.sgd(message, optimizer=rule, batch_size=size, epochs=self.explore_epochs).params
        else:
            best, waited = math.inf, 0
            for _ in range(self.explore_epochs):
                local = client.sgd(at, optimizer=rule, batch_size=size)
                at, waited = local.params, 0 if local.loss < best else waited + 1
                best = min(best, local.loss)
                if waited >= self.patience:
                    break
        square = weights(at - message) ** 2
        if self.follows:
            client.memory["square"] = square
        return Update(square=square, weight=min(client.num_samples, 1))

    @on_client(bounds={"square": 4.0})
    def train(self, client: Client, message: tuple[Params, Params]) -> Update:
        """Train with scaled gradients; return the change and, where it is needed, the squared displacement."""
        start, guidance = message
        hooks = Hooks(correct=lambda grad, at: guidance * grad) if self.apply_to == "gradient" else self.hooks(client, start)
        local = client.sgd(start, optimizer=self.rule(client.round), epochs=self.epochs, batch_size=self.batch_size, hooks=hooks)
        delta = local.params - start
        fields = {"delta": delta if self.apply_to == "gradient" else guidance * delta}
        count = {"delta": client.num_samples}
        if self.follows:
            fields["square"], count["square"] = client.memory.get("square", start.zeros()), int("square" in client.memory)
        return Update(**fields, weight=count)

    def rule(self, round: int) -> Optimizer:
        """Return the clients' optimizer in a round."""
        lr = None if self.lr is None else self.lr * self.lr_decay ** (round - 1)
        decay = self.weight_decay
        return AdamW(lr, weight_decay=decay) if self.optimizer == "adam" else SGD(lr, self.momentum, weight_decay=decay)
