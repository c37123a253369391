"""Adaptive pruning under churn and changing bandwidth: robust estimates and stable decisions.

A `Controller` contains only constants. Its estimates are a plain dict of floats and ints, so they can be stored in a
client's memory, included in checkpoints, and never need to be sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from paceline.core.errors import ConfigError
from paceline.submodels.policy import cutoff

__all__ = ["Controller", "Decision", "State"]

State = dict[str, float | int]
"""Estimates of one client: see `Controller.start`."""


class Decision(NamedTuple):
    """Action of a client in this round.

    Args:
        fraction: kept fraction p; 0 to skip this round.
        stretched: the client participates although it will be late; the deadline should wait for it.
    """

    fraction: float
    stretched: bool = False


@dataclass(frozen=True)
class Controller:
    """Chooses a client's kept fraction from its own measurements and its neighbours' records.

    Times are estimated at full size (a pruned round's training time is divided by c(p)), each as an exponentially weighted
    mean and mean deviation; planning uses mean + 2 deviations. A client switches to a smaller model immediately, and to a
    larger one after `patience` rounds that agree.

    Args:
        costs: c(p) by tier.
        shares: by tier, bytes sent over full-size bytes; None if uploads are padded.
        overhead: s, seconds of training that do not depend on the model.
        share: φ, fraction of clients regarded as slow.
        alpha, beta: weight of a new measurement in the mean, in the deviation.
        target_rate: weight of a new T* in the smoothed one.
        slack: a tier fits if its time is at most this multiple of T*.
        patience: number of rounds that must agree before a larger tier is used.
        warm_up: measured rounds before the first decision.
        window: rounds for which a neighbour's record is valid.
        forget: absences longer than this reset the estimates, one tier lower.
        most_out: maximum number of consecutive rounds that a client may skip.
    """

    costs: Mapping[float, float]
    shares: Mapping[float, float] | None = None
    overhead: float = 0.0
    share: float = 0.2
    alpha: float = 0.25
    beta: float = 0.25
    target_rate: float = 0.3
    slack: float = 1.05
    patience: int = 3
    warm_up: int = 2
    window: int = 5
    forget: int = 20
    most_out: int = 3

    @property
    def tiers(self) -> list[float]:
        """Kept fractions, largest first."""
        return sorted(self.costs, reverse=True)

    def start(self) -> State:
        """Return the state of a client without measurements.

        Keys: ``seen`` measured rounds, ``round`` of the last one, ``compute`` and ``transfer`` with their
        ``_dev``, the smoothed ``target``, the ``tier``, ``up`` rounds that agreed on a larger one and
        ``up_to``, ``out`` rounds skipped; ``total/u`` and ``heard/u`` of each neighbour u.
        """
        zeros = ("compute", "compute_dev", "transfer", "transfer_dev", "target", "up_to")
        return {"seen": 0, "round": 0, "up": 0, "out": 0, "tier": self.tiers[0], **dict.fromkeys(zeros, 0.0)}

    def observe(self, state: State, round: int, fraction: float, compute: float, transfer: float) -> State:
        """Return the state after a measured round.

        Args:
            state: state before; not modified.
            round: number of the round.
            fraction: the kept fraction that was trained.
            compute, transfer: measured seconds.

        Raises:
            ConfigError: `fraction` is not a tier.
        """
        if fraction not in self.costs:
            raise ConfigError(f"{fraction} is not one of the tiers {self.tiers}")
        state = self._aged(state, round)
        sent = 1.0 if self.shares is None else self.shares[fraction]
        full = {
            "compute": max(compute - self.overhead, 0.0) / self.costs[fraction],
            "transfer": transfer / sent,
        }
        for key, value in full.items():
            if state["seen"] == 0:
                state |= {key: value, f"{key}_dev": 0.0}
                continue
            error = value - state[key]
            state[f"{key}_dev"] = (1.0 - self.beta) * state[f"{key}_dev"] + self.beta * abs(error)
            state[key] += self.alpha * error
        return state | {"seen": int(state["seen"]) + 1, "round": round, "out": 0}

    def full_total(self, state: State) -> float:
        """Return the predicted full-size time, which a client sends to its neighbours.

        If times of pruned rounds were sent unscaled, they would lower the target round by round.
        """
        return state["compute"] + self.overhead + state["transfer"]

    def hear(self, state: State, round: int, totals: Mapping[int, float]) -> State:
        """Return the state after receiving full-size totals of neighbours (including the client's own).

        T* is the cut-off of the latest records of the last `window` rounds, smoothed.

        Args:
            state: previous state of the controller.
            round: current round.
            totals: predicted full-size seconds, by client.
        """
        state = dict(state)
        for peer, total in totals.items():
            state |= {f"total/{peer}": float(total), f"heard/{peer}": round}
        for key in [k for k in state if k.startswith("heard/") and round - state[k] >= self.window]:
            del state[key], state[f"total/{key.removeprefix('heard/')}"]
        known = [v for k, v in state.items() if k.startswith("total/")]
        if known:
            new, old = cutoff(known, self.share), state["target"]
            state["target"] = new if old == 0 else (1.0 - self.target_rate) * old + self.target_rate * new
        return state

    def seconds(self, state: State, fraction: float) -> float:
        """Return the planned time of a round with this kept fraction: means plus two deviations."""
        sent = 1.0 if self.shares is None else self.shares[fraction]
        compute = state["compute"] + 2.0 * state["compute_dev"]
        transfer = state["transfer"] + 2.0 * state["transfer_dev"]
        return compute * self.costs[fraction] + self.overhead + transfer * sent

    def decide(self, state: State, round: int) -> tuple[Decision, State]:
        """Return the decision for this round, and the state afterwards."""
        kept = self._restarted(state, round)
        if kept["seen"] < self.warm_up or kept["target"] == 0:
            return Decision(float(kept["tier"])), kept
        aged, limit = self._aged(kept, round), self.slack * kept["target"]
        wanted = next((p for p in self.tiers if self.seconds(aged, p) <= limit), 0.0)
        tier, least = float(kept["tier"]), self.tiers[-1]
        if wanted == 0.0:
            late = kept["out"] >= self.most_out
            kept |= {"tier": least, "up": 0, "out": 0 if late else int(kept["out"]) + 1}
            return Decision(least if late else 0.0, stretched=late), kept
        kept["out"] = 0
        if wanted > tier:
            agreed = int(kept["up"]) + 1
            goal = wanted if agreed == 1 else min(wanted, float(kept["up_to"]))
            kept |= {"up": agreed, "up_to": goal}
            if agreed >= self.patience:
                kept |= {"tier": goal, "up": 0}
        else:
            kept |= {"tier": wanted, "up": 0}
        return Decision(float(kept["tier"])), kept

    def _absent(self, state: State, round: int) -> int:
        return max(0, round - int(state["round"]) - 1) if state["seen"] else 0

    def _aged(self, state: State, round: int) -> State:
        """Widen the deviations by a tenth per round of absence, at most by a factor of two."""
        wider = min(2.0, 1.0 + 0.1 * self._absent(state, round))
        return state | {k: state[k] * wider for k in ("compute_dev", "transfer_dev")}

    def _restarted(self, state: State, round: int) -> State:
        """Reset the estimates after a long absence, and warm up again at the next smaller tier."""
        if self._absent(state, round) <= self.forget:
            return dict(state)
        lower = [p for p in self.tiers if p < state["tier"]]
        return state | {"seen": 0, "up": 0, "out": 0, "tier": lower[0] if lower else self.tiers[-1]}
