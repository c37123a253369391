"""How a client follows a `Controller` from round to round: its memory stores estimates, the planned time, and the part that it trained.

Keys of the memory: ``pace``, the estimates; ``budget``, the seconds after which a training ends; ``done``, the part of the last
training that was carried out. The method stores ``fraction`` and ``trained``, the fraction of the last trained round and its number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from paceline.core.client import Client
from paceline.core.failures import Declined
from paceline.core.limits import StepLimit
from paceline.submodels.controller import Controller, State
from paceline.submodels.policy import steps_within

__all__ = ["adapted_fraction", "note_done", "pace", "planned_limit"]


def pace(client: Client, controller: Controller, asked: bool = True) -> State:
    """Return the client's estimates, including its last training.

    Args:
        client: the client.
        controller: its rules.
        asked: raise `Declined` if the client sits this round out.
    """
    memory = client.memory
    state: State = memory.get("pace", controller.start())
    last = float(memory.get("fraction", 0.0))
    if client.times is not None and memory.get("trained", 0) > state["round"] and last in controller.costs:
        state = controller.observe(state, memory["trained"], last, *client.times, done=memory.get("done", 1.0))
    if asked and controller.sits_out(state, client.round):
        raise Declined
    return state


def adapted_fraction(client: Client, controller: Controller, totals: Mapping[int, float], heard: int, asked: bool = True) -> float:
    """Return p for this round, from estimates that are robust to churn and changing links; raise `Declined` to sit it out.

    Args:
        client: the client.
        controller: its rules.
        totals: full-size seconds of other clients, by client.
        heard: round in which they were received.
        asked: as for `pace`.
    """
    state = controller.hear(pace(client, controller, asked), client.round, totals, heard)
    decision, client.memory["pace"] = controller.decide(state, client.round)
    client.memory["budget"] = controller.budget(state, decision)
    return decision.fraction


def planned_limit(client: Client) -> StepLimit | None:
    """Return the rule that ends a training early if it takes longer than planned; None without a plan."""
    budget = client.memory.get("budget", math.inf)
    return partial(steps_within, budget=budget) if math.isfinite(budget) else None


def note_done(client: Client, planned: int) -> None:
    """Store which part of the `planned` samples the last training processed."""
    if planned and client.job is not None:
        client.memory["done"] = client.job.samples() / planned
