"""What a server offers, what it asks, and what a client has given already: what a policy judges."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paceline.core.errors import ConfigError
from paceline.deploy.validation import faults_of

if TYPE_CHECKING:
    from paceline.core.params import Layout
    from paceline.run import RunConfig

__all__ = ["PRIVACY_MECHANISMS", "CallRequest", "Plan", "Privacy", "Usage", "offer"]

PRIVACY_MECHANISMS: frozenset[str] = frozenset()
"""Mechanisms that can keep a plan's promise of differential privacy. There is none yet, so such plans are refused."""


class Privacy(BaseModel):
    """The differential privacy that a whole run promises.

    Args:
        epsilon, delta: of (epsilon, delta)-differential privacy.
        unit: what one change is: a client, or a sample of a client.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epsilon: float = Field(ge=0)
    delta: float = Field(ge=0, lt=1)
    unit: str = Field("client", max_length=64)


class Plan(BaseModel):
    """A run as the server offers it to a client that joins.

    Args:
        method, options: the method and its fields.
        task: whose data and model.
        rounds: how many.
        cohort: clients in each round.
        quorum: least number of replies in a sum.
        aggregation: plain, secure or secure-arithmetic.
        secure: options of secure aggregation.
        privacy: the promise, or None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str = Field(max_length=200)
    task: str = Field(max_length=1000)
    rounds: int = Field(ge=1)
    cohort: int = Field(ge=1)
    quorum: int = Field(1, ge=1)
    aggregation: str = Field("plain", max_length=64)
    secure: dict[str, Any] = Field(default_factory=dict)
    privacy: Privacy | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @staticmethod
    def of(config: RunConfig, privacy: Privacy | None = None) -> Plan:
        """Return the plan of a run's configuration."""
        kept = {name: getattr(config, name) for name in Plan.model_fields if name != "privacy"}
        return Plan(**kept, privacy=privacy)

    @staticmethod
    def from_tree(tree: Any) -> Plan:
        """Return the plan that came over the wire; raises `ConfigError` that names every fault."""
        if not isinstance(tree, dict):
            raise ConfigError("the server's plan is no table of options")
        try:
            return Plan(**tree)
        except (ValidationError, TypeError) as error:
            raise ConfigError(f"the server's plan: {'; '.join(faults_of(error, Plan))}") from None

    def to_tree(self) -> dict[str, Any]:
        """Return the plan as a tree that can be sent."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """SHA-256 of the plan, to notice a server that changes it under way."""
        text = json.dumps(self.to_tree(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def offer(config: RunConfig, plan: Plan, layout: Layout) -> dict[str, Any]:
    """Return all that a server sends of a run to a client that joins: what can be refused early is compared then.

    Args:
        config: the run.
        plan: `Plan.of` it.
        layout: of the server's own model.
    """
    from paceline.aggregation.secure.task_hash import Agreement
    from paceline.registry import find_method

    method = Agreement.of(config, find_method(config.method)).method
    facts = {"config": config.model_dump(mode="json", exclude_none=True), "plan": plan.to_tree()}
    return {**facts, "layout": layout.to_plain(), "method": method.hex()}


@dataclass(frozen=True)
class Usage:
    """What a client has given.

    Args:
        rounds, bytes, seconds: to this run: rounds taken part in, bytes both ways, seconds of work.
        last_round: the last round that was counted.
        day_rounds, day_bytes, day_seconds: to all runs, today.
        epsilon, delta: of all other runs that were joined, summed up.
    """

    rounds: int = 0
    bytes: int = 0
    seconds: float = 0.0
    last_round: int = 0
    day_rounds: int = 0
    day_bytes: int = 0
    day_seconds: float = 0.0
    epsilon: float = 0.0
    delta: float = 0.0


@dataclass(frozen=True)
class CallRequest:
    """One thing that a server asks of a client.

    Args:
        now: the time, with its zone.
        round: which round, or None where the client is only asked to join.
        program: whose function is to run: ``"method"``, ``"secagg"``, or None at joining.
        cohort: clients in this sum, once it is known.
        survivors: clients whose replies the sum will hold, once it is known.
        secure: the secure session's options, once they are known.
        begun: whether work is only begun, to be handed over in a later call.
        message_bytes: size of the message that came.
        usage: what was given before.
    """

    now: datetime
    round: int | None = None
    program: str | None = None
    cohort: int | None = None
    survivors: int | None = None
    secure: Mapping[str, Any] | None = None
    begun: bool = False
    message_bytes: int = 0
    usage: Usage = field(default_factory=Usage)
