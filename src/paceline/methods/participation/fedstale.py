"""FedStale (Rodio and Neglia, "FedStale: leveraging stale client updates in federated learning", ECAI 2024).

With D_u a participant's update, h_u each client's last one (0 at first), alpha_u its importance and S the participants:

    fresh = sum over S of alpha_u/p_u D_u
    stale = sum over all of alpha_u h_u  -  sum over S of alpha_u/p_u h_u
    w <- w + eta (fresh + beta stale);   h_u <- D_u for those in S

beta = 0 is FedAvg with inverse probabilities, beta = 1 FedVARP with them. More heterogeneous clients call for a higher
beta, rarer participation for a lower one. p_u is known, or estimated as in FedAU. A round without participants is skipped, or
(`empty`) makes the step of the formula, eta beta sum alpha_u h_u.

The paper's server stores all h_u and sees every update: `FedStaleTable`. In `FedStale` each client stores its h_u and
sends alpha/p (D - beta h) and alpha (D - h): the server sees their sums, stores H = sum alpha h, and makes the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from paceline.blocks.running import averaged, statistics, weights
from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, Share, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update
from paceline.methods.participation.rates import Asked, Rated


@node
class StaleState:
    """The model, H = N sum of alpha h, and the mean number of samples."""

    params: Params
    stale: Params
    samples: float | None = None


@dataclass(frozen=True)
class FedStale(Rated[Any]):
    """Unbiased fresh updates plus beta times a correction from all clients' last updates, from sums only.

    Args:
        beta: weight of stale updates, from 0 (unbiased FedAvg) to 1 (FedVARP).
        rates: p, "estimated" by each client from its own intervals, or "known" from the fleet.
        empty: in a round without participants: "skip" it, or "step" along the stale updates.
    """

    paper: ClassVar[str] = "Rodio and Neglia, ECAI 2024"
    headline: ClassVar[str] = "outperforms FedAvg and FedVARP in many settings with heterogeneous data and participation"
    reveals: ClassVar[str] = "sums of updates and of their changes"
    client_state: ClassVar[str] = "its last update (model size), participation intervals"

    lr: NonNegative[float] | None = 5e-3
    epochs: Positive[int] | None = 1
    batch_size: Positive[int] | None = 128
    importance: Literal["uniform", "samples"] = "samples"
    beta: Share = 0.5
    rates: Literal["estimated", "known"] = "estimated"
    empty: Literal["skip", "step"] = "skip"

    @property
    def known_rates(self) -> bool:
        """Whether the participation rates are known."""
        return self.rates == "known"

    def init(self, fed: Federation) -> Any:
        """Start with stale updates of 0."""
        params = fed.init_params()
        return StaleState(params=params, stale=params.zeros())

    def round(self, fed: Federation, state: Any) -> Any:
        """Step along the fresh updates, corrected by the stale ones."""
        cohort = fed.available(fed.cohort_size) if self.empty == "step" else fed.sample()
        if not cohort:
            return replace(state, params=state.params + (self.server_lr * self.beta / fed.num_clients) * self.remembered(state))
        return self.learn(fed, self.enrol(fed, state), cohort)

    def remembered(self, state: Any) -> Params:
        """Return N sum of alpha h."""
        stale: Params = state.stale
        return stale

    def learn(self, fed: Federation, state: Any, cohort: list[int]) -> Any:
        """Train the cohort and step."""
        mean = fed.mean(self.train, self.asked(fed, state, cohort), over=cohort)
        step = mean.weight * mean.step + self.beta * state.stale if self.beta else mean.weight * mean.step
        return StaleState(
            params=averaged(state.params + (self.server_lr / fed.num_clients) * step, mean),
            stale=state.stale + mean.weight * mean.change,
            samples=state.samples,
        )

    @on_client(bounds={"step": 4.0, "change": 2.0, "statistics": 100.0})
    def train(self, client: Client, message: Asked) -> Update:
        """Train; return this client's terms of the step and of H."""
        local, share = self.sgd(client, message.params), self.share(client, message)
        delta, stale = weights(local.params - message.params), client.memory.get("update", message.params.zeros())
        client.memory.stage("update", delta)
        step = delta - self.beta * stale if self.beta else delta
        fields = {"step": (share * self.inverse(client, message)) * step, "change": share * (delta - stale)}
        return Update(**fields, loss=local.loss, **statistics(local), weight=1)
