"""Client policy, in `policy.toml`: the runs and calls that a client accepts, whatever the server requests.

The policy is enforced on the client, before a function runs and again when the protocol reveals more (the size
of a cohort, the list of survivors). Without a file the defaults apply: secure aggregation with a cohort of at
least 3, at any time, without further limits.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from paceline.core.errors import ConfigError, PolicyError
from paceline.deploy.plan import PRIVACY_MECHANISMS, CallRequest, Plan
from paceline.deploy.validation import Window, faults_of, size_of

__all__ = ["Policy", "load_policy", "policy_of"]

Size = Annotated[int, BeforeValidator(size_of), Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Allow(_Part):
    """Permitted methods and tasks."""

    methods: tuple[str, ...] = Field(
        default=("*",), description="permitted methods, as patterns such as fed*; module:Class needs a pattern with a colon"
    )
    tasks: tuple[str, ...] = Field(
        default=("*",), description="permitted tasks, as patterns such as mnist*; kind:/path needs a pattern with a colon"
    )


class Secure(_Part):
    """Requirements on secure aggregation. The numbers are lower bounds: a plan may exceed them."""

    required: bool = Field(default=True, description="reply only into a secure sum")
    active: bool = Field(default=True, description="require the checks against a malicious server")
    gamma: float = Field(default=0.1, ge=0, lt=1, description="minimum share of corrupt clients that the sum tolerates")
    delta: float = Field(default=0.0, ge=0, lt=1, description="minimum share of drop-outs that the graph tolerates")
    sigma: int = Field(
        default=40, ge=1, description="privacy fails with probability at most 2^-sigma, whatever k and t the plan sets"
    )
    eta: int = Field(default=1, ge=1, description="a round is lost with probability at most 2^-eta")
    complete_up_to: int = Field(default=0, ge=0, description="cohorts up to this size use the complete graph")
    least_contributors: int = Field(
        default=3,
        ge=1,
        description="minimum number of clients that train a coordinate, and that are in one tier, if clients send parts of a model",
    )
    named_clients: bool = Field(
        default=False,
        description="allow methods whose messages have an entry for each client, or that use the times of a simulated fleet",
    )
    begun_work: bool = Field(default=False, description="allow asynchronous methods, whose messages no session binds")
    accept_changed_keys: bool = Field(default=False, description="accept a new identity key of a known client without confirmation")


class Cohort(_Part):
    """Requirements on the number of other clients."""

    least: int = Field(default=3, ge=1, description="minimum number of clients in a sum")
    least_quorum: int = Field(default=3, ge=1, description="minimum number of clients whose replies are in the final sum")
    least_difference: int = Field(
        default=3,
        ge=1,
        description="minimum number of clients in which two different cohorts of sums differ; above 1, cohorts of nearly the same work "
        "are equal or disjoint; 1 for no limit",
    )
    difference_scope: Literal["model", "round", "always"] = Field(
        default="round",
        description="sums that are compared: over the same model; also of the same function in a round; or, for the difference, all sums",
    )


class PrivacyRule(_Part):
    """Requirements on differential privacy; any bound requires that the plan promises it."""

    required: bool = Field(default=False, description="refuse a plan without differential privacy")
    epsilon: float | None = Field(default=None, gt=0, description="maximum epsilon of a run")
    delta: float | None = Field(default=None, gt=0, lt=1, description="maximum delta of a run")
    total_epsilon: float | None = Field(default=None, gt=0, description="maximum sum of the epsilons of all runs joined")
    total_delta: float | None = Field(default=None, gt=0, lt=1, description="maximum sum of the deltas of all runs joined")

    @property
    def asked(self) -> bool:
        """Whether a plan must promise differential privacy."""
        return self.required or any(v is not None for v in (self.epsilon, self.delta, self.total_epsilon, self.total_delta))


class UsageLimits(_Part):
    """Limits on the resources that this client spends."""

    rounds: int | None = Field(default=None, ge=0, description="maximum rounds of a run")
    openings: int | None = Field(default=24, ge=1, description="maximum secure sums opened in one round, including repetitions")
    bytes: Size | None = Field(default=None, description="maximum bytes sent and received in a run")
    seconds: float | None = Field(default=None, ge=0, description="maximum seconds of work in a run")
    rounds_per_day: int | None = Field(default=None, ge=0, description="maximum rounds of all runs in a day")
    bytes_per_day: Size | None = Field(default=None, description="maximum bytes of all runs in a day")
    seconds_per_day: float | None = Field(default=None, ge=0, description="maximum seconds of work for all runs in a day")
    message_bytes: Size | None = Field(default=None, description="maximum bytes of one message")


class Hours(_Part):
    """Times of participation; days begin at midnight in this zone."""

    zone: str = Field(default="UTC", description="time zone, such as Europe/Zurich")
    windows: tuple[str, ...] = Field(default=(), description="times such as 'mon-fri 20:00-06:00'; empty: always")

    @field_validator("zone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"{value!r} is not a known time zone; write one such as 'Europe/Zurich' (if all are missing: pip install tzdata)"
            ) from None
        return value

    @field_validator("windows")
    @classmethod
    def _windows(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            Window.parse(text)
        return value


class Policy(_Part):
    """Rules of a client; each field is a table of `policy.toml`.

    Example:
        >>> Policy.build({"cohort": {"least": 5}}).cohort.least
        5
    """

    allow: Allow = Allow()
    secure_aggregation: Secure = Secure()
    cohort: Cohort = Cohort()
    privacy: PrivacyRule = PrivacyRule()
    limits: UsageLimits = UsageLimits()
    hours: Hours = Hours()

    @staticmethod
    def build(values: Mapping[str, Any], where: str = "the policy") -> Policy:
        """Validate a policy.

        Args:
            values: tables of the policy.
            where: source of the values, for error messages.

        Raises:
            ConfigError: lists every fault.
        """
        try:
            return Policy(**values)
        except (ValidationError, TypeError) as error:
            raise ConfigError(f"{where}: {'; '.join(faults_of(error, Policy))}") from None

    def check(self, plan: Plan, request: CallRequest | None = None) -> list[str]:
        """Return every reason for a refusal; an empty list means that the client participates.

        The result depends only on the arguments.

        Args:
            plan: plan offered by the server.
            request: the current request, or None to evaluate the plan alone.
        """
        reasons = [*self._plan(plan), *_beyond(plan, request), *self._secure(plan, request), *self._privacy(plan, request)]
        if request is not None:
            reasons += [*self._others(request), *self._limits(request), *self.closed(request.now)]
        return reasons

    def demand(self, plan: Plan, request: CallRequest | None = None) -> None:
        """Raise `PolicyError` with all reasons for a refusal, if there are any."""
        if reasons := self.check(plan, request):
            raise PolicyError(reasons)

    def _plan(self, plan: Plan) -> Iterator[str]:
        for what, name, patterns in (("method", plan.method, self.allow.methods), ("task", plan.task, self.allow.tasks)):
            if not any(_allows(pattern, name) for pattern in patterns):
                only = ", ".join(patterns) or "none"
                yield f"{what} {name!r} is not allowed; allowed: {only}{_way_out(what, name, patterns)} (allow.{what}s)"
        if plan.cohort < self.cohort.least:
            yield f"the plan's cohort of {plan.cohort} is below the minimum {self.cohort.least} (cohort.least)"
        if self.limits.rounds is not None and plan.rounds > self.limits.rounds:
            yield f"the plan's {plan.rounds} rounds exceed the maximum {self.limits.rounds} (limits.rounds)"

    def _secure(self, plan: Plan, request: CallRequest | None) -> Iterator[str]:
        rule, secure = self.secure_aggregation, plan.aggregation == "secure"
        least, options = plan.quorum, None
        if secure:
            chosen = request.secure if request is not None and request.secure is not None else plan.secure
            try:
                options = _secure_config(chosen)
                if request is not None and request.secure is not None and options != _secure_config(plan.secure):
                    yield "the options of the secure session differ from the plan"
            except ConfigError as error:
                yield str(error)
        if options is not None:
            least = max(least, options.least(plan.cohort))
        if least < self.cohort.least_quorum:
            yield f"the plan permits sums over {least} clients, below the minimum {self.cohort.least_quorum} (cohort.least_quorum)"
        if not rule.required:
            return
        if not secure:
            yield f"{plan.aggregation!r} aggregation reveals single replies to the server; secure is required (secure_aggregation.required)"
        if request is not None and request.program not in (None, "secagg"):
            yield "the server requested a reply outside a secure sum (secure_aggregation.required)"
        if options is not None and rule.active and not options.active:
            yield "the plan has no checks against a malicious server, which are required (secure_aggregation.active)"
        if request is not None and request.begun and not rule.begun_work:
            yield "the server requested asynchronous work, whose message no session binds (secure_aggregation.begun_work)"
        if options is not None:
            yield from _floors(rule, options, plan.cohort if request is None or request.cohort is None else request.cohort)

    def _privacy(self, plan: Plan, request: CallRequest | None) -> Iterator[str]:
        rule, offer = self.privacy, plan.privacy
        if offer is not None and not PRIVACY_MECHANISMS:
            yield "the plan promises differential privacy, but no mechanism for it is installed; remove the promise from the plan"
        if not rule.asked:
            return
        if offer is None:
            yield "the plan does not promise differential privacy, which is required (privacy)"
            return
        spent = request.usage if request is not None else None
        for name, value, bound, total, before in (
            ("epsilon", offer.epsilon, rule.epsilon, rule.total_epsilon, spent.epsilon if spent else 0.0),
            ("delta", offer.delta, rule.delta, rule.total_delta, spent.delta if spent else 0.0),
        ):
            if bound is not None and value > bound:
                yield f"the plan's {name} {value:g} exceeds the maximum {bound:g} (privacy.{name})"
            if total is not None and before + value > total * (1 + 1e-12):
                yield f"{name} {before:g} is spent, and {value:g} more would exceed {total:g} (privacy.total_{name})"

    def _others(self, request: CallRequest) -> Iterator[str]:
        if request.cohort is not None and request.cohort < self.cohort.least:
            yield f"the sum's cohort of {request.cohort} clients is below the minimum {self.cohort.least} (cohort.least)"
        if request.survivors is not None and request.survivors < self.cohort.least_quorum:
            yield (
                f"the sum's {request.survivors} remaining clients are below the minimum {self.cohort.least_quorum} "
                "(cohort.least_quorum)"
            )

    def _limits(self, request: CallRequest) -> Iterator[str]:
        limits, used = self.limits, request.usage
        size = request.message_bytes
        if limits.message_bytes is not None and size > limits.message_bytes:
            yield f"a message of {size} bytes exceeds the maximum {limits.message_bytes} (limits.message_bytes)"
        new = request.round is not None and request.round > used.last_round
        for name, before, more, most in (
            ("rounds", used.rounds, int(new), limits.rounds),
            ("bytes", used.bytes, size, limits.bytes),
            ("rounds_per_day", used.day_rounds, int(new), limits.rounds_per_day),
            ("bytes_per_day", used.day_bytes, size, limits.bytes_per_day),
        ):
            if most is not None and before + more > most:
                yield f"{before} {name.replace('_', ' ')} are used, and {more} more would exceed {most} (limits.{name})"
        for name, spent, longest in (
            ("seconds", used.seconds, limits.seconds),
            ("seconds_per_day", used.day_seconds, limits.seconds_per_day),
        ):
            if longest is not None and spent >= longest:
                yield f"{spent:.0f} of {longest:g} {name.replace('_', ' ')} are used (limits.{name})"

    def closed(self, now: datetime) -> list[str]:
        """Return the reasons why this client does not participate at this time of day; empty if it does."""
        zone = ZoneInfo(self.hours.zone)
        windows = [Window.parse(text) for text in self.hours.windows]
        if not windows or any(window.holds(now, zone) for window in windows):
            return []
        local = now.astimezone(zone)
        return [f"it is {local:%a %H:%M} in {self.hours.zone}; this client participates {', '.join(self.hours.windows)} (hours)"]


def _beyond(plan: Plan, request: CallRequest | None) -> Iterator[str]:
    if request is not None and request.round is not None and request.round > plan.rounds:
        yield f"round {request.round} exceeds the {plan.rounds} rounds of the accepted plan"


def _allows(pattern: str, name: str) -> bool:
    """Return whether a pattern permits a name.

    A name with a colon is a module to import or a file to read on this machine. ``*`` does not permit it: the pattern
    must contain a colon as well.
    """
    return fnmatchcase(name, pattern) and (":" not in name or ":" in pattern)


def _way_out(what: str, name: str, patterns: Sequence[str]) -> str:
    """Return a hint how to permit a name that is refused only because of its colon."""
    if ":" not in name or not any(fnmatchcase(name, pattern) for pattern in patterns):
        return ""
    does, more = ("reads a file", f"{name.partition(':')[0]}:*") if what == "task" else ("imports a module", name)
    return f"; a name with a colon {does} on this machine, so add {more!r} to allow.{what}s of the file client.policy to allow it"


def load_policy(path: str | Path) -> Policy:
    """Read a `policy.toml`.

    Raises:
        ConfigError: lists every fault, with close matches for unknown keys.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; name this client's policy file"
        ) from None
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return Policy.build(values, str(path))


def policy_of(policy: Path | None, folder: Path) -> Policy:
    """Return a client's policy: of the file that its configuration names, or the defaults.

    Args:
        policy: ``client.policy``.
        folder: ``client.folder``, in which a file that nothing names would be a policy that is not enforced.

    Raises:
        ConfigError: there is such a file, or as `load_policy`.
    """
    if policy is not None:
        return load_policy(policy)
    found = folder / "policy.toml"
    if found.exists():
        raise ConfigError(f"{found} exists, but client.policy is not set; set it to this file in [client], or remove the file")
    return Policy()


def _floors(rule: Secure, options: Any, cohort: int) -> Iterator[str]:
    """Yield the options of a plan that are below a policy's lower bounds, and reasons why its k and t do not meet them."""
    from paceline.aggregation.secure.graph import shortfall
    from paceline.aggregation.secure.session import sizes

    for name in ("gamma", "delta", "sigma", "eta", "complete_up_to", "least_contributors"):
        if (value := getattr(options, name)) < (floor := getattr(rule, name)):
            yield f"the plan's {name}={value:g} is below the minimum {floor:g} (secure_aggregation.{name})"
    try:
        k, t = sizes(cohort, options)
    except ConfigError as error:
        yield str(error)
        return
    active = rule.active or options.active
    if k < cohort - 1 and cohort <= rule.complete_up_to:
        yield f"the plan has {k} neighbours in a cohort of {cohort}; the complete graph is required (secure_aggregation.complete_up_to)"
    if cohort >= 3 and (why := shortfall(cohort, k, t, rule.gamma, max(rule.delta, options.delta), active, rule.sigma)):
        yield f"{why} (secure_aggregation.gamma, sigma)"


def _secure_config(options: Mapping[str, Any]) -> Any:
    from paceline.aggregation.secure.program import secure_config

    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise ConfigError("the options of the secure session must be a table of named values")
    return secure_config(options)
