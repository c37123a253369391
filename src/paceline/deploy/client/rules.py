"""A client's policy and ledger, applied to the runs that a server offers and to its calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paceline.aggregation.secure.messages import session_of, survivors_of
from paceline.core.errors import PolicyError, ProtocolError
from paceline.core.tree import Tree
from paceline.deploy.client.ledger import Ledger
from paceline.deploy.client.policy import Policy
from paceline.deploy.plan import CallRequest, Plan
from paceline.network import protocol as p
from paceline.network.handshake import Welcome
from paceline.store.files import atomic_write

__all__ = ["PolicyRules"]


class PolicyRules:
    """Policy and ledger of a client, evaluated before every call.

    Args:
        policy: permissions and limits.
        ledger: usage so far.
        folder: folder in which each run's plan is stored, so that it cannot be changed during the run.
        clock: returns the current time.
    """

    def __init__(
        self, policy: Policy, ledger: Ledger, folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.policy, self.ledger, self.folder, self.clock = policy, ledger, folder, clock
        self._plan: Plan | None = None
        self._run = ""

    def admit(self, welcome: Welcome) -> None:
        """Evaluate the plan of a run.

        Raises:
            PolicyError: lists all reasons for a refusal.
            ProtocolError: the plan differs from the one accepted earlier.
        """
        plan = Plan.from_tree(welcome.plan.get("plan"))
        path = self.folder / welcome.run / "plan"
        if path.exists() and path.read_text() != plan.digest:
            raise ProtocolError("the server's plan differs from the one accepted for this run; start a new run")
        now = self.clock()
        closed = self.policy.closed(now)  # temporary, and reported separately
        lasting = [
            why for why in self.policy.check(plan, CallRequest(now, usage=self.ledger.usage(welcome.run, now))) if why not in closed
        ]
        if lasting:
            raise PolicyError(lasting)
        if not path.exists() and plan.data_schema is not None:  # for `paceline client --check`, also if the files do not fit it
            atomic_write(path.with_name("schema.json"), plan.data_schema.to_json().encode())

    def join(self, welcome: Welcome) -> None:
        """Store the plan of an admitted run, record the run in the ledger, and judge calls by this plan from now on."""
        plan, path = Plan.from_tree(welcome.plan.get("plan")), self.folder / welcome.run / "plan"
        if not path.exists():
            atomic_write(path, plan.digest.encode())
        self.ledger.join(welcome.run, plan)
        self._plan, self._run = plan, welcome.run

    def closed(self) -> list[str]:
        """Return the reasons why this client does not participate at present but will later; empty if it does."""
        return self.policy.closed(self.clock())

    def call(self, head: Mapping[str, Any], message: Tree) -> None:
        """Evaluate a call.

        Args:
            head: head of the call.
            message: what the client function receives.

        Raises:
            PolicyError: lists all reasons for a refusal.
            ProtocolError: the message does not say what the policy must know.
        """
        if self._plan is None:
            raise PolicyError(["call received before a plan was accepted"])
        now, program, size = self.clock(), p.field(head, "program", str), p.field(head, "size", int)
        used = self.ledger.usage(self._run, now)
        deferred = p.field(p.field(head, "channel", dict), "kind", str) == "held"  # work that is only started reveals nothing
        facts: dict[str, Any] = {
            "cohort": p.field(head, "cohort", int) if program in ("method", "nested") and not deferred else None
        }
        malformed: ProtocolError | None = None
        if program == "secagg":
            try:
                facts |= _secure_facts(p.field(head, "function", str), message)
            except ProtocolError as error:
                malformed = error
        request = CallRequest(
            now,
            round=p.field(head, "round", int),
            program=None if deferred else program,
            begun=deferred,
            message_bytes=size,
            usage=replace(used, bytes=used.bytes - size, day_bytes=max(used.day_bytes - size, 0)),  # `moved` has counted it
            **facts,
        )
        self.policy.demand(self._plan, request)
        if malformed is not None:
            raise malformed

    def done(self, head: Mapping[str, Any], sent: int, seconds: float) -> None:
        """Record an answer in the ledger, before it is sent."""
        self.ledger.note(self._run, p.field(head, "round", int), sent, seconds, self.clock())

    def moved(self, run: str, size: int) -> None:
        """Record bytes that were sent or received."""
        self.ledger.moved(run, size, self.clock())


def _secure_facts(function: str, message: Tree) -> dict[str, Any]:
    """Return the cohort, options or survivors that a step of secure aggregation reveals, read as the protocol reads them."""
    if function == "advertise":
        session = session_of(message)
        return {"cohort": len(set(session.clients)), "secure": asdict(session.config)}
    if function == "consistency":
        return {"survivors": len(set(survivors_of(message)[0]))}
    return {}
