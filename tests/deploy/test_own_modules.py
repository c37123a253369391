"""What a server names may come from the modules that a client's own configuration names, and from no other."""

from __future__ import annotations

import sys

import pytest

from paceline.blocks.architectures import Architectures
from paceline.core.config import RunConfig
from paceline.core.errors import PolicyError
from paceline.core.importing import imports_from
from paceline.deploy.client.client import build_worker
from paceline.deploy.plan import Plan, offer
from paceline.deploy.settings import DataConfig
from paceline.network.handshake import Welcome
from paceline.run import prepare


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("method", "mylab:FedProx"),
        ("task", "mylab:task"),
        ("model", "mylab:Net"),
        ("fleet", "mylab:Trams"),
        ("options", "mylab:chain"),
    ],
)
def test_a_client_loads_own_names_only_from_its_own_modules(lab, field, text):

    values = {"method": "fedghsum", "options": {"models": (text,)}} if field == "options" else {field: text}
    config = RunConfig(**{"task": "digits", "clients": 2, "cohort": 2, "rounds": 1, **values})
    run = prepare(config)
    facts = offer(config, Plan.of(config), run.fed.init_params().layout)
    welcome = Welcome("probe", 1, 0, 0, 0, 0, 0, (), facts, 1.0)
    sys.modules.pop("mylab", None)

    def use(modules):
        worker = build_worker(DataConfig(own=False), 0, None, modules=modules)(welcome)
        if field == "options":  # built when it is first asked for: by then the runner guards each call
            with imports_from(modules):
                Architectures(worker.setup.task, 0).build(text)

    with pytest.raises(PolicyError, match="not registered on this client"):
        use(())
    assert "mylab" not in sys.modules
    use(("mylab",))
