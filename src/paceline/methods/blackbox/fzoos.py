"""FZooS (Shu et al., "Federated Zeroth-Order Optimization using Trajectory-Informed Surrogate Gradients", 2023).

A client fits a Gaussian process to all its past queries, and a vector nu_i of random Fourier features, which is additive:
    g = grad mean_i(x) + gamma_t (grad F^(x) - grad f^_i(x)),   gamma_t = 1 / (t + 1);   x <- Adam(g);  x_{r+1} = mean x_i
with F^ the surrogate of nu = mean nu_i and f^_i that of nu_i, both of the last round. Clients query more points where
the surrogate's gradient is most uncertain: of candidates around x, those of largest variance.

The server sees sums of points and of surrogates (which partly reveal the objectives). A client stores its queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paceline.blocks.blackbox import BlackBoxMethod, Queries, coordinates, located
from paceline.blocks.surrogates import Features, GaussianProcess, Kernel, nearest, rescaled
from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import NonNegative, Positive, on_client
from paceline.core.optimizers import AdamW
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update


@node
class FZooSState:
    """The point, the number of queries so far, and the common surrogate (None before the first one)."""

    params: Params
    queries: int
    nu: Tensor | None


@dataclass(frozen=True)
class FZooS(BlackBoxMethod[FZooSState]):
    """Surrogate gradients from all past queries, corrected by a common surrogate; clients run one at a time.

    Args:
        lr: learning rate of the local Adam.
        steps: T, local iterations.
        features: M, the number of random features; a surrogate is uploaded as M values.
        length: length scale of the kernels; None uses sqrt(dimension) / 2.
        kernel: of the Gaussian process's mean; its uncertainty always uses ``rbf``.
        jitter, ridge: s^2 of the Gaussian process and of the features.
        fitted, surveyed: maximum number of points (the nearest) to fit the process and the features to.
        candidates, active: points drawn around each step, and how many of them are queried.
        survey_candidates, survey_active: the same around the server's new point.
        initial: points queried before the first step.
        radius: half the side of the cube from which candidates are drawn.
        correct: use gamma = 1 / (t + 1); False sets gamma = 0.
    """

    paper: ClassVar[str] = "Shu et al., arXiv 2308.04077"
    reveals: ClassVar[str] = "sums of points and of surrogates"
    client_state: ClassVar[str] = "all its queries"
    headline: ClassVar[str] = "fewer queries and rounds than finite differences with FedAvg, FedProx or SCAFFOLD"

    lr: NonNegative[float] = 0.01
    steps: Positive[int] = 10
    features: Positive[int] = 10_000
    length: Positive[float] | None = None
    kernel: Kernel = "rbf"
    jitter: NonNegative[float] = 1e-6
    ridge: NonNegative[float] = 1e-5
    fitted: Positive[int] = 150
    surveyed: Positive[int] = 500
    candidates: Positive[int] = 100
    active: NonNegative[int] = 5
    survey_candidates: Positive[int] = 200
    survey_active: NonNegative[int] = 50
    initial: NonNegative[int] = 10
    radius: Positive[float] = 0.01
    correct: bool = True

    def init(self, fed: Federation) -> FZooSState:
        """Start from the task's initial point, without a surrogate."""
        return FZooSState(params=fed.init_params(), queries=0, nu=None)

    def round(self, fed: Federation, state: FZooSState) -> FZooSState:
        """Run local steps, average the points, and average the surrogates around the new point."""
        cohort, basis = fed.sample(), fed.seed
        moved = fed.mean(self.walk, (state.params, state.nu, basis), over=cohort)
        params = state.params + moved.move
        known = fed.mean(self.survey, (params, basis), over=cohort)
        queries = state.queries + self.count_queries(fed, moved, known)
        fed.last.notes["queries"] = float(queries)
        return FZooSState(params=params, queries=queries, nu=known.nu)

    @on_client
    def walk(self, client: Client, message: tuple[Params, Tensor | None, int]) -> Update:
        """Run the local steps; return the displacement."""
        start, nu, basis = message
        first, diary = coordinates(start), _Diary(client, start)
        if not len(diary.values):
            diary.ask(_around(first, self.initial, self.radius, client.stream("initial")))
        x, own, features = first, _stored(client, "nu"), self._features(len(first), basis)
        common = nu if self.correct and client.memory.get("surveyed") == client.round - 1 else None
        rule, moments = AdamW(), AdamW().state(first)
        diary.ask(first[None])
        for t in range(self.steps):
            g = self._gradient(diary, x)
            if common is not None and own is not None:
                g = g + features.gradient(common.cpu().double() - own, x) / (t + 1)
            x = x - self.lr * rule.direction(t, g, x, moments)
            diary.ask(x[None])
            if t < self.steps - 1:
                drawn = _around(x, self.candidates, self.radius, client.stream("candidates", t))
                diary.ask(self._unsure(diary, x, drawn, self.active))
        client.memory["stand"] = [client.round, x]
        return Update(move=located(x - first, start.zeros()), queries=diary.close(), weight=1)

    @on_client(bounds={"nu": 64.0})
    def survey(self, client: Client, message: tuple[Params, int]) -> Update:
        """Query points around the server's new point; return the surrogate fitted to the nearest ones."""
        x, diary = coordinates(message[0]), _Diary(client, message[0])
        when, stand = client.memory.get("stand", [0, x])
        radius = float((x - stand.cpu()).abs().mean()) / 2 if when == client.round else self.radius
        diary.ask(x[None])
        drawn = _around(x, self.survey_candidates, radius, client.stream("survey"))
        diary.ask(self._unsure(diary, x, drawn, self.survey_active))
        points, values = nearest(diary.points, diary.values, x, self.surveyed)
        scaled, spread = rescaled(values)
        nu = (spread * self._features(len(x), message[1]).fit(points, scaled, self.ridge)).float()
        client.memory["nu"], client.memory["surveyed"] = nu.double(), client.round
        return Update(nu=nu, queries=diary.close(), weight=1)

    def _length(self, dim: int) -> float:
        return 0.5 * dim**0.5 if self.length is None else self.length

    def _features(self, dim: int, basis: int) -> Features:
        return Features(self.features, dim, self._length(dim), basis)

    def _gradient(self, diary: _Diary, x: Tensor) -> Tensor:
        points, values = nearest(diary.points, diary.values, x, self.fitted)
        scaled, spread = rescaled(values)
        return spread * GaussianProcess(points, scaled, self._length(len(x)), self.jitter, self.kernel).gradient(x)

    def _unsure(self, diary: _Diary, x: Tensor, drawn: Tensor, count: int) -> Tensor:
        """Return the `count` drawn points where the gradient is most uncertain."""
        points, values = nearest(diary.points, diary.values, x, self.fitted)
        variance = GaussianProcess(points, rescaled(values)[0], self._length(len(x)), self.jitter).uncertainty(drawn)
        return drawn[torch.argsort(variance, descending=True, stable=True)[:count]]


class _Diary:
    """All queries and values of a client; `close` stores them in the client's memory and returns the number of new queries."""

    def __init__(self, client: Client, like: Params) -> None:
        self._client, self._ask = client, Queries(client, like)
        none = torch.zeros(0, dtype=torch.float64)
        self.points, self.values = (none if (held := _stored(client, key)) is None else held for key in ("points", "values"))

    def ask(self, xs: Tensor) -> None:
        values = self._ask.all(xs)
        self.points = torch.cat([self.points.view(-1, xs.shape[1]), xs.double()])
        self.values = torch.cat([self.values, values])

    def close(self) -> int:
        self._client.memory["points"], self._client.memory["values"] = self.points, self.values
        return self._ask.count


def _stored(client: Client, key: str) -> Tensor | None:
    """Return a tensor of the client's memory, on the CPU, where points are chosen; None if there is none."""
    found = client.memory.get(key)
    return None if found is None else found.cpu()


def _around(x: Tensor, count: int, radius: float, rng: torch.Generator) -> Tensor:
    """Return points drawn uniformly from the cube around x."""
    return x + radius * (2 * torch.rand(count, len(x), generator=rng, dtype=torch.float64) - 1)
