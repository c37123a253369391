"""FedZO (Fang et al., "Communication-Efficient Stochastic Zeroth-Order Optimization for Federated Learning", 2022), with
the corrections to which FZooS (arXiv 2308.04077) is compared.

With q orthonormal random directions u:
    g(x) = 1/q sum_u ((f_i(x + mu u) - f_i(x)) / mu) u;   x <- Adam(g);   x_{r+1} = x_r + mean (x_i - x_r)
    prox: g + rho (x - x_r)     diff: g + mean_j g_j(x_r) - g_i(x_r)     scaf: g + mean_j of last round's g_j - own

The server sees sums of points (and of estimates). A client stores the mean of its last estimates if the correction needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from paceline.blocks.blackbox import BlackBoxMethod, Queries, coordinates, directions, located
from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, on_client
from paceline.core.optimizers import AdamW
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update


@node
class FedZoState:
    """The point, the number of queries so far, and the mean estimate of the last round (0 at the start)."""

    params: Params
    queries: int
    estimate: Params


@dataclass(frozen=True)
class FedZO(BlackBoxMethod[FedZoState]):
    """Finite differences along random directions, with averaged points; clients run one at a time.

    Args:
        lr: learning rate of the local Adam.
        steps: T, local iterations.
        directions: q; a step costs q + 1 queries.
        smoothing: mu, the finite-difference step.
        correction: of client drift in local steps, or ``none``.
        rho: strength of the proximal term.
    """

    paper: ClassVar[str] = "Fang et al., IEEE TSP 2022"
    headline: ClassVar[str] = "converges on non-convex objectives without gradients; speeds up with local steps and clients"
    reveals: ClassVar[str] = "sums of points"
    client_state: ClassVar[str] = "a mean estimate (model size) for diff and scaf"

    lr: NonNegative[float] = 0.01
    steps: Positive[int] = 10
    directions: Positive[int] = 20
    smoothing: Positive[float] = 0.01
    correction: Literal["none", "prox", "diff", "scaf"] = "none"
    rho: NonNegative[float] = 1.0

    def init(self, fed: Federation) -> FedZoState:
        """Start from the task's initial point."""
        params = fed.init_params()
        return FedZoState(params=params, queries=0, estimate=params.zeros())

    def round(self, fed: Federation, state: FedZoState) -> FedZoState:
        """Run local steps and average the resulting points."""
        cohort, phases, common = fed.sample(), [], state.estimate
        if self.correction == "diff":
            phases.append(fed.mean(self.estimate, state.params, over=cohort))
            common = phases[0].estimate
        phases.append(mean := fed.mean(self.walk, (state.params, common), over=cohort))
        queries = state.queries + self.count_queries(fed, *phases)
        fed.last.notes["queries"] = float(queries)
        return FedZoState(params=state.params + mean.move, queries=queries, estimate=mean.estimate)

    @on_client(bounds={"estimate": 64.0})
    def estimate(self, client: Client, message: Params) -> Update:
        """Return the estimate at the server's point, which `walk` subtracts."""
        ask = Queries(client, message)
        found = located(self._gradient(client, ask, coordinates(message), 0), message.zeros())
        client.memory["estimate"] = found
        return Update(estimate=found, queries=ask.count, weight=1)

    @on_client(bounds={"estimate": 64.0})
    def walk(self, client: Client, message: tuple[Params, Params]) -> Update:
        """Run the local steps; return the displacement and the mean estimate."""
        start, common = message
        own = client.memory.get("estimate", start.zeros()) if self.correction in ("diff", "scaf") else start.zeros()
        ask, first = Queries(client, start), coordinates(start)
        x, total, rule, moments = first, torch.zeros_like(first), AdamW(), AdamW().state(first)
        for step in range(self.steps):
            g = self._gradient(client, ask, x, step + 1)
            total += g / self.steps
            if self.correction == "prox":
                g = g + self.rho * (x - first)
            elif self.correction != "none":
                g = g + coordinates(common - own)
            x = x - self.lr * rule.direction(step, g, x, moments)
        mean, move = located(total, start.zeros()), located(x - first, start.zeros())
        if self.correction == "scaf":
            client.memory["estimate"] = mean
        return Update(move=move, estimate=mean, queries=ask.count, weight=1)

    def _gradient(self, client: Client, ask: Queries, x: Tensor, step: int) -> Tensor:
        here, along = ask(x), directions(self.directions, len(x), client.stream("directions", step))
        rises = (ask.all(x + self.smoothing * along) - here) / self.smoothing
        return rises @ along / len(along)
