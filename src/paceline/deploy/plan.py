"""Input of a client's policy: the server's plan, a call request, and the client's usage so far."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paceline.core.errors import ConfigError
from paceline.data.schema import Schema
from paceline.deploy.validation import faults_of

if TYPE_CHECKING:
    from paceline.core.layout import Layout
    from paceline.run import RunConfig

__all__ = ["PRIVACY_MECHANISMS", "CallRequest", "Plan", "Privacy", "Usage", "offer"]

PRIVACY_MECHANISMS: frozenset[str] = frozenset()
"""Installed mechanisms of differential privacy. There is none yet, so plans that promise it are refused."""


class Privacy(BaseModel):
    """Differential privacy promised for a whole run.

    Args:
        epsilon, delta: parameters of (epsilon, delta)-differential privacy.
        unit: unit of protection: a client, or a sample of a client.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epsilon: float = Field(ge=0)
    delta: float = Field(ge=0, lt=1)
    unit: str = Field("client", max_length=64)


class Plan(BaseModel):
    """Description of a run that the server offers to a joining client.

    Args:
        method, options: the method and its fields.
        task: task that defines data and model.
        rounds: number of rounds.
        cohort: clients per round.
        quorum: smallest number of replies in a sum.
        aggregation: plain, secure or secure-arithmetic.
        secure: options of secure aggregation.
        privacy: promised differential privacy, or None.
        data_schema: schema by which a client reads its own files, or None.
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
    data_schema: Schema | None = None

    @staticmethod
    def of(config: RunConfig, privacy: Privacy | None = None, schema: Schema | None = None) -> Plan:
        """Return the plan of a run configuration."""
        kept = {name: getattr(config, name) for name in Plan.model_fields if name not in ("privacy", "data_schema")}
        return Plan(**kept, privacy=privacy, data_schema=schema)

    @staticmethod
    def from_tree(tree: Any) -> Plan:
        """Parse a plan received over the network.

        Raises:
            ConfigError: the plan is malformed; the message lists every fault.
        """
        if not isinstance(tree, dict):
            raise ConfigError("the server's plan must be a table of options")
        try:
            return Plan(**tree)
        except (ValidationError, TypeError) as error:
            raise ConfigError(f"the server's plan: {'; '.join(faults_of(error, Plan))}") from None

    def to_tree(self) -> dict[str, Any]:
        """Return the plan as a tree of plain values."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """SHA-256 of the plan, used to detect a server that changes it during the run."""
        text = json.dumps(self.to_tree(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def offer(config: RunConfig, plan: Plan, layout: Layout) -> dict[str, Any]:
    """Return everything that a server sends about a run to a joining client, so that mismatches are detected at joining.

    Args:
        config: the run.
        plan: `Plan.of` the run.
        layout: parameter layout of the server's own model.
    """
    from paceline.aggregation.secure.task_hash import Agreement
    from paceline.registry import find_method

    method = Agreement.of(config, find_method(config.method), plan.data_schema).method
    facts = {"config": config.model_dump(mode="json", exclude_none=True), "plan": plan.to_tree()}
    return {**facts, "layout": layout.to_plain(), "method": method.hex()}


@dataclass(frozen=True)
class Usage:
    """Resources that a client has spent.

    Args:
        rounds, bytes, seconds: in this run: rounds of participation, bytes in both directions, seconds of work.
        last_round: the last counted round.
        day_rounds, day_bytes, day_seconds: in all runs, today.
        epsilon, delta: sums over all other runs joined.
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
    """Request of a server, as evaluated by the policy.

    Args:
        now: current time, with time zone.
        round: the round, or None at joining.
        program: program of the function: ``"method"``, ``"secagg"``, or None at joining.
        cohort: number of clients in the sum, once known.
        survivors: number of clients whose replies the sum will contain, once known.
        secure: options of the secure session, once known.
        begun: whether the call only starts work that a later call collects.
        message_bytes: size of the received message.
        usage: resources spent before.
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
