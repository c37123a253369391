"""Adaptive pruning under churn and changing bandwidth: robust estimates and stable decisions.

A `Controller` contains only constants. Its estimates are a plain dict of floats and ints, so they can be stored in a
client's memory, included in checkpoints, and never need to be sent.
"""

from __future__ import annotations

import math
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
        fraction: kept fraction p.
        stretched: the client will be late even with the smallest model; the round should wait for it.
    """

    fraction: float
    stretched: bool = False


@dataclass(frozen=True)
class Controller:
    """Chooses a client's kept fraction from its own measurements and its neighbours' records.

    Times are estimated at full size (a pruned round's training time is divided by c(p)), each as an exponentially weighted
    mean and mean deviation; planning uses mean + 2 deviations, much as TCP's retransmission timer does (Jacobson, 1988). After
    `most_out` missed rounds a measurement replaces them, so that a client that has recovered is back at once. A client switches
    to a smaller model immediately, and to a larger one after `patience` rounds that agree.

    Every ``most_out + 1`` rounds is *open*: known to all without a message, nobody sits it out and no deadline applies. So
    all clients that are too slow delay the same rounds, and none misses more than `most_out` in a row.

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

        Keys: ``seen`` measured rounds, ``round`` of the last one, ``compute`` and ``transfer`` with their ``_dev``, the smoothed
        ``target``; ``cutoff``, the latest T*, and ``own``, the client's total in the records from which it follows; the
        ``tier``, ``up`` rounds that agreed on a larger one and ``up_to``; ``total/u`` and ``heard/u`` of each neighbour u.
        """
        zeros = ("compute", "compute_dev", "transfer", "transfer_dev", "target", "cutoff", "own", "up_to")
        return {"seen": 0, "round": 0, "up": 0, "tier": self.tiers[0], **dict.fromkeys(zeros, 0.0)}

    def observe(self, state: State, round: int, fraction: float, compute: float, transfer: float, done: float = 1.0) -> State:
        """Return the state after a measured round.

        Args:
            state: state before; not modified.
            round: number of the round.
            fraction: the kept fraction that was trained.
            compute, transfer: measured seconds.
            done: part of the training that was carried out.

        Raises:
            ConfigError: `fraction` is not a tier.
        """
        if fraction not in self.costs:
            raise ConfigError(f"{fraction} is not one of the tiers {self.tiers}")
        missed, state = self._absent(state, round), self._aged(state, round)
        sent = 1.0 if self.shares is None else self.shares[fraction]
        full = {
            "compute": max(compute - self.overhead, 0.0) / (self.costs[fraction] * done),
            "transfer": transfer / sent,
        }
        for key, value in full.items():
            if state["seen"] == 0 or missed >= self.most_out:
                state |= {key: value, f"{key}_dev": 0.0}
                continue
            error = value - state[key]
            state[f"{key}_dev"] = (1.0 - self.beta) * state[f"{key}_dev"] + self.beta * abs(error)
            state[key] += self.alpha * error
        return state | {"seen": int(state["seen"]) + 1, "round": round}

    def full_total(self, state: State) -> float:
        """Return the predicted full-size time, which a client sends to its neighbours.

        If times of pruned rounds were sent unscaled, they would lower the target round by round.
        """
        return state["compute"] + self.overhead + state["transfer"]

    def hear(self, state: State, round: int, totals: Mapping[int, float], heard: int | None = None) -> State:
        """Return the state after receiving full-size totals of neighbours.

        T* is the cut-off of the client's own total and of the latest records of the last `window` rounds, smoothed.

        Args:
            state: previous state of the controller.
            round: current round.
            totals: predicted full-size seconds, by client.
            heard: round in which they were received; the current one by default.
        """
        state = state | {"own": self.full_total(state)}
        for peer, total in totals.items():
            state |= {f"total/{peer}": float(total), f"heard/{peer}": round if heard is None else heard}
        for key in [k for k in state if k.startswith("heard/") and round - state[k] >= self.window]:
            del state[key], state[f"total/{key.removeprefix('heard/')}"]
        new = cutoff([state["own"], *(v for k, v in state.items() if k.startswith("total/"))], self.share)
        old = state["target"]
        return state | {"cutoff": new, "target": new if old == 0 else (1.0 - self.target_rate) * old + self.target_rate * new}

    def seconds(self, state: State, fraction: float) -> float:
        """Return the planned time of a round with this kept fraction: means plus two deviations."""
        sent = 1.0 if self.shares is None else self.shares[fraction]
        compute = state["compute"] + 2.0 * state["compute_dev"]
        transfer = state["transfer"] + 2.0 * state["transfer_dev"]
        return compute * self.costs[fraction] + self.overhead + transfer * sent

    def is_open(self, round: int) -> bool:
        """Return whether nobody sits out this round, and it waits for everybody."""
        return round % (self.most_out + 1) == 0

    def sits_out(self, state: State, round: int) -> bool:
        """Return whether the client leaves this round to the others.

        It does if no tier fits, and its own total was among the slowest in the records that it last received: if all slow down
        together, all take part. It takes part in every open round, and after `most_out` rounds without it in any.
        """
        if self.is_open(round) or self._absent(state, round) >= self.most_out or not self._settled(state):
            return False
        return state["own"] > state["cutoff"] and not self._largest(state, round)

    def decide(self, state: State, round: int) -> tuple[Decision, State]:
        """Return the decision for a round in which the client takes part, and the state afterwards."""
        kept = self._restarted(state, round)
        if not self._settled(kept):
            return Decision(float(kept["tier"])), kept
        wanted, tier = self._largest(kept, round), float(kept["tier"])
        if wanted > tier:
            agreed = int(kept["up"]) + 1
            goal = wanted if agreed == 1 else min(wanted, float(kept["up_to"]))
            kept |= {"up": agreed, "up_to": goal}
            if agreed >= self.patience:
                kept |= {"tier": goal, "up": 0}
        else:
            kept |= {"tier": wanted or self.tiers[-1], "up": 0}
        return Decision(float(kept["tier"]), stretched=not wanted), kept

    def budget(self, state: State, decision: Decision) -> float:
        """Return the seconds after which a training should end early; infinite without an estimate, or if the round waits."""
        if decision.stretched or not self._settled(state):
            return math.inf
        sent = 1.0 if self.shares is None else self.shares[decision.fraction]
        return self.slack * state["target"] - state["transfer"] * sent

    def _settled(self, state: State) -> bool:
        return state["seen"] >= self.warm_up and state["target"] > 0

    def _largest(self, state: State, round: int) -> float:
        """Return the largest tier that fits; 0 if none does."""
        aged, limit = self._aged(state, round), self.slack * state["target"]
        return next((p for p in self.tiers if self.seconds(aged, p) <= limit), 0.0)

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
        return state | {"seen": 0, "up": 0, "tier": lower[0] if lower else self.tiers[-1]}
