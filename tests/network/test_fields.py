"""Every field of a configuration and of a policy is read by the code that acts on it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from paceline.core.errors import SchemaError
from paceline.deploy import settings
from paceline.deploy.client import policy as policies
from paceline.deploy.client.own import own_task, refusal
from paceline.deploy.plan import CallRequest, Plan, Privacy
from paceline.deploy.processes import _watchers
from paceline.run import RunConfig
from paceline.tasks import make_schema

UNREAD = {"ServerConfig.run", "ClientConfig.logging", "ServerConfig.logging", "ServerPart.state", "ServerPart.track"}
"""What the command's process reads, beside the parties that this test starts in its own; see `run_server`."""


def parts(kind: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the tables below a configuration, itself among them."""
    found = {kind.__name__: kind}
    for field in kind.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= parts(field.annotation)
    return found


def fields(*kinds: type[BaseModel]) -> set[str]:
    return {f"{name}.{field}" for kind in kinds for name, part in parts(kind).items() for field in part.model_fields}


@pytest.fixture
def read(monkeypatch):
    """The fields that are read from now on, but not by what only takes configurations apart."""
    seen: set[str] = set()

    def spy(self: Any, name: str) -> Any:
        kind = type(self)
        if name in kind.__pydantic_fields__:
            seen.add(f"{kind.__name__}.{name}")
        return BaseModel.__getattribute__(self, name)

    for base in (settings._Part, policies._Part):
        monkeypatch.setattr(base, "__getattribute__", spy, raising=False)
    return seen


def test_every_field_of_a_configuration_is_read(loopback, read, tmp_path):
    server = {"ca": loopback.root / "ca", "enrol": "127.0.0.1:0"}
    loopback.task = None  # the clients find theirs by their configuration
    loopback.serve({"task": "digits", "model": "logreg", "clients": 2, "cohort": 2, "rounds": 1}, server)
    for number in range(2):
        loopback.client(number)
    assert loopback.finish().rounds == 1
    _watchers("client", settings.Logging())
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{i / 3:.2f},{'pq'[i % 2]}\n" for i in range(20)))
    own = settings.DataConfig(task=f"csv:{tmp_path / 't.csv'}")
    own_task(own, RunConfig(), make_schema(own.task)[0])
    refusal(SchemaError("t.csv", [], []), own)
    assert fields(settings.ServerConfig, settings.ClientConfig) - read == UNREAD


def test_every_field_of_a_policy_is_read(loopback, read):
    loopback.serve({"clients": 1, "cohort": 1, "rounds": 1})
    loopback.client(0)
    rules = policies.Policy.build({"privacy": {"required": True}, "secure_aggregation": {"gamma": 0.1}})
    plan = Plan.of(RunConfig.build({"aggregation": "secure"}), Privacy(epsilon=1.0, delta=1e-6))
    rules.check(plan, CallRequest(datetime.now(UTC), cohort=3, survivors=3, begun=True))
    assert fields(policies.Policy) - read == set()
