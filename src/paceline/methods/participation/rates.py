"""Shared parts of methods for unequal participation: participation rates (estimated or known), and local SGD.

The estimate of 1 / p_u is omega, the mean length of all intervals between a client's participations; intervals longer
than a cut-off K are cut there and counted as complete (Wang and Ji, ICLR 2024). It is 1 before the first complete
interval. The interval that ends in a round counts from the next round on, so that the weights of a round do not depend on
its participants. A client derives its own intervals from the round number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from paceline.core.client import SGD, Client, Trained
from paceline.core.federation import Federation
from paceline.core.method import Method, NonNegative, Positive, S, on_client
from paceline.core.params import Params
from paceline.core.tree import node
from paceline.core.update import Update

__all__ = ["Asked", "Intervals", "Rated", "Unequal"]


@node
class Intervals:
    """The participation intervals of one client so far.

    Args:
        count: M, number of complete intervals.
        weight: omega, their mean length in rounds; 1 if there are none.
        since: the round after which the current interval began.
    """

    count: int = 0
    weight: float = 1.0
    since: int = 0

    def before(self, round: int, cutoff: int | None) -> Intervals:
        """Return the intervals before `round`, with no participation in between: long ones are cut."""
        cuts = 0 if cutoff is None else (round - self.since - 1) // cutoff
        return self._with(cuts, cuts * (cutoff or 0), self.since + cuts * (cutoff or 0)) if cuts else self

    def after(self, round: int) -> Intervals:
        """Return the intervals including the one that ends with participation in `round`; call `before` first."""
        return self._with(1, round - self.since, round)

    def _with(self, count: int, length: int, since: int) -> Intervals:
        total = self.count + count
        return Intervals(count=total, weight=(self.count * self.weight + length) / total, since=since)


@node
class Asked:
    """Message to participants.

    Args:
        params: the model.
        rates: p of each participant if known, otherwise None.
        samples: mean number of samples of a client; None if all clients are equally important.
    """

    params: Params
    rates: dict[int, float] | None = None
    samples: float | None = None


@dataclass(frozen=True)
class Unequal(Method[S]):
    """Base of methods for unequal participation: local SGD and client importance.

    Args:
        lr: client learning rate; None uses the task's.
        steps: local steps.
        epochs: local passes instead of `steps`; None uses `steps`.
        batch_size: local batch size; None uses the task's.
        server_lr: eta, the server's step.
        importance: weight of a client in the objective: ``uniform``, or by ``samples``.
    """

    family: ClassVar[str] = "participation"

    lr: NonNegative[float] | None = None
    steps: Positive[int] = 5
    epochs: Positive[int] | None = None
    batch_size: Positive[int] | None = 16
    server_lr: NonNegative[float] = 1.0
    importance: Literal["uniform", "samples"] = "uniform"

    def enrol(self, fed: Federation, state: Any) -> Any:
        """Return the state with the mean number of samples, which is requested once from all clients."""
        if self.importance == "uniform" or state.samples is not None:
            return state
        mean = fed.mean(self.count, None, over=range(fed.num_clients))
        return replace(state, samples=max(float(mean.samples), 1.0))

    def asked(self, fed: Federation, state: Any, cohort: Sequence[int]) -> Asked:
        """Return the message to the cohort."""
        return Asked(params=state.params, samples=state.samples)

    @on_client
    def count(self, client: Client, message: Any) -> Update:
        """Return the number of samples."""
        return Update(samples=float(client.num_samples), weight=1)

    def share(self, client: Client, message: Asked) -> float:
        """Return alpha N: this client's importance, 1 on average."""
        return 1.0 if message.samples is None else client.num_samples / message.samples

    def sgd(self, client: Client, start: Params) -> Trained:
        """Train with this method's hyperparameters."""
        steps = self.steps if self.epochs is None else None
        return client.sgd(start, optimizer=SGD(self.lr), epochs=self.epochs or 1, steps=steps, batch_size=self.batch_size)


@dataclass(frozen=True)
class Rated(Unequal[S]):
    """Base of methods that weight updates by 1 / p, estimated by each client or known.

    Args:
        cutoff: K, rounds after which an interval is cut; an upper limit of the weights. None disables the cut.
    """

    cutoff: Positive[int] | None = None

    @property
    def known_rates(self) -> bool:
        """Whether the participation rates are known."""
        return False

    def names_each_client(self) -> bool:
        """Return whether the message has a line for each client: its known rate. A client derives an estimate from its own intervals."""
        return self.known_rates

    def check(self, fed: Federation) -> list[str]:
        """Known rates are rates of availability, so every available client must be asked."""
        if self.known_rates and fed.cohort_size < fed.num_clients:
            return [f"known rates are the fleet's: ask everybody who is there, with a cohort of {fed.num_clients}"]
        return []

    def asked(self, fed: Federation, state: Any, cohort: Sequence[int]) -> Asked:
        """Return the message to the cohort."""
        rates = {c: fed.fleet.rate(c) for c in cohort} if self.known_rates else None
        return replace(super().asked(fed, state, cohort), rates=rates)

    def inverse(self, client: Client, message: Asked) -> float:
        """Return 1 / p, known or estimated from this client's intervals; record this participation."""
        if message.rates is not None:
            return 1.0 / message.rates[client.id]
        intervals: Intervals = client.memory.get("intervals", Intervals()).before(client.round, self.cutoff)
        client.memory.stage("intervals", intervals.after(client.round))
        return float(intervals.weight)
