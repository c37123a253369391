"""FedLEx ("Federated Loss Exploration for Improved Convergence on Non-IID Data", IJCNN 2024, arXiv 2506.18640): how far each parameter
moves in an exploration before training scales its gradient afterwards.

    exploration:  client i trains from theta_b to theta_i^x;   D = mean_i (theta_i^x - theta_b)^2
    guidance:     G = (D - min D) / (max D - min D), in each tensor
    client:       every gradient g becomes G o g, before the optimizer
    server:       v <- beta v + (1 - beta) sum_i n_i (theta - theta_i) / sum_i n_i;   theta <- theta - v

The server sees sums of updates and of squared displacements. A client stores its squared displacement where G follows the cohort.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from paceline.blocks.exploration import Exploration
from paceline.blocks.saliency import scaled_saliency
from paceline.core.client import Client, Hooks
from paceline.core.federation import Federation
from paceline.core.method import Positive, State, on_client
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
class FedLEx(Exploration[FedLExState]):
    """Loss exploration before training, whose result scales gradients.

    Args:
        guide: G follows each ``round``'s cohort (it is used from the next round on), or is ``fixed`` after the exploration;
            ``auto`` follows the cohort if all clients explore.
        base: theta_b: the ``initial`` model, the mean of one pass of a ``cohort``, or one pass of one ``client`` (as published).
        start_from: federated training begins with the ``base`` or with the ``initial`` model.
        unit_mean: divide G by its mean in each tensor, so that steps keep their size.
        most: with scale=robust, G is clamped to 0..most; None leaves negative factors.
        apply_to: G scales each ``gradient`` or the whole ``update``.
    """

    paper: ClassVar[str] = "arXiv 2506.18640 (IJCNN 2024)"
    headline: ClassVar[str] = "improves federated algorithms under realistic non-IID splits with a few epochs of exploration"
    differs: ClassVar[str] = "exploration starts from the initial model, not from one client's, which a secure sum could not hide"
    reveals: ClassVar[str] = "sums of updates and of squared displacements"
    client_state: ClassVar[str] = "its squared displacement (model size)"

    guide: Literal["auto", "round", "fixed"] = "auto"
    base: Literal["initial", "cohort", "client"] = "initial"
    start_from: Literal["base", "initial"] = "base"
    unit_mean: bool = False
    most: Positive[float] | None = 10.0
    apply_to: Literal["gradient", "update"] = "gradient"

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
        params, momentum = self.served(state.params, state.momentum, mean.delta)
        guidance = self.scaled(mean.square) if self.follows else state.guidance
        return replace(state, params=params, momentum=momentum, guidance=guidance)

    def explore(self, fed: Federation, state: FedLExState) -> FedLExState:
        """Find the base and, unless it follows the cohorts, the guidance."""
        base = state.params
        if self.base != "initial":
            base = base + fed.mean(self.warm, base, over=fed.available()[:1] if self.base == "client" else fed.sample()).change
        displacement = self.explored(fed, base)
        guidance = state.guidance if self.follows else self.scaled(displacement)
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
