"""Which field of a run means what in a federation: the one table, which every field has to be in.

A field that only a simulation understands is refused at the start, by the server and by each client; none is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from paceline.core.config import RunConfig
from paceline.core.errors import PlanError

__all__ = ["FEDERATED_FIELDS", "FederatedField", "Reach", "check_federated", "misfits"]


class Reach(Enum):
    """Who acts on a field."""

    CLIENTS = "clients"
    """The server and every client build the same from it (`paceline.assembly`)."""
    SERVER = "server"
    """The server alone: whom it asks, how it sums, when it stops. What a client needs of it comes with each call."""
    PARTY = "party"
    """The server, for itself; each client has its own in its table [data]."""
    SIMULATION = "simulation"
    """Nobody: only a simulation has it."""


@dataclass(frozen=True)
class FederatedField:
    """What a field means in a federation.

    Args:
        reach: who acts on it.
        why: of `Reach.SIMULATION`: why a federation has no such thing, and what to do.
        fits: of `Reach.SIMULATION`: values beside the default that describe a federation as well.
    """

    reach: Reach
    why: str = ""
    fits: tuple[Any, ...] = ()


def _simulated(why: str, *fits: Any) -> FederatedField:
    return FederatedField(Reach.SIMULATION, why, fits)


_CLIENTS, _SERVER, _PARTY = FederatedField(Reach.CLIENTS), FederatedField(Reach.SERVER), FederatedField(Reach.PARTY)
_RAY = "Ray runs simulated clients; leave it out"
_STACK = "each client trains by itself; leave it out"

FEDERATED_FIELDS: dict[str, FederatedField] = {
    "method": _CLIENTS,
    "options": _CLIENTS,
    "task_options": _CLIENTS,
    "secure": _CLIENTS,
    "task": _CLIENTS,
    "model": _CLIENTS,
    "start_from": _SERVER,
    "partition": _CLIENTS,
    "clients": _CLIENTS,
    "client_test": _CLIENTS,
    "client_samples": _CLIENTS,
    "allow_empty": _CLIENTS,
    "cohort": _SERVER,
    "rounds": _SERVER,
    "seed": _CLIENTS,
    "checkpoint_every": _SERVER,
    "aggregation": _CLIENTS,
    "sum_bound": _SERVER,
    "quorum": _SERVER,
    "least_group": _SERVER,
    "on_error": _SERVER,
    "deadline": _SERVER,
    "fleet": _CLIENTS,
    "participation": _SERVER,
    "adversary": _simulated("real clients run their installed code; simulate attacks with `paceline run`"),
    "measured": _CLIENTS,
    "engine": _simulated("a federation runs on its clients; leave it out", "grpc"),
    "workers": _simulated("every client is a separate process; leave it out"),
    "threads": _PARTY,
    "ray_address": _simulated(_RAY),
    "ray_cpus": _simulated(_RAY),
    "ray_gpus": _simulated(_RAY),
    "device": _PARTY,
    "precision": _CLIENTS,
    "vectorize": _simulated(_STACK, "off"),
    "chunk": _simulated(_STACK, 1),
    "one_step": _simulated(_STACK),
    "kernels": _simulated(_STACK, "plain"),
    "memory_mib": _simulated("each client stores its memory itself; leave it out"),
    "evaluation": _SERVER,
    "metrics": _CLIENTS,
    "by_group": _simulated("groups of clients are known in simulations alone; leave it out"),
    "eval_every": _SERVER,
    "target_accuracy": _SERVER,
    "target_score": _SERVER,
    "stop_at_target": _SERVER,
    "patience": _SERVER,
}
"""Every field of `RunConfig`."""


def misfits(config: RunConfig) -> list[str]:
    """Return which fields of a configuration only a simulation understands, one sentence each."""
    found = []
    for name, field in FEDERATED_FIELDS.items():
        value = getattr(config, name)
        if field.reach is Reach.SIMULATION and value not in (RunConfig.model_fields[name].default, *field.fits):
            found.append(f"{name}={value!r} applies to simulations, not to a federation: {field.why}")
    return found


def check_federated(config: RunConfig) -> None:
    """Raise `PlanError` with every misfit where a federation cannot do what a configuration says."""
    if found := misfits(config):
        raise PlanError(found)
