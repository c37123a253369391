"""Three networks with features of one width, and access to what clients keep and send."""

import pytest

from paceline.core.federation import Federation
from paceline.run import RunConfig, prepare

MODELS = ("mlp:hidden=16-8", "mlp:hidden=8", "mlp:hidden=12-10-8")


@pytest.fixture
def networks(task):
    """Return a function that carries out a run and returns it with its clients' networks."""

    def go(method, models=MODELS, **changes):
        values = {"task": "blobs", "clients": 6, "cohort": 6, "rounds": 3, "vectorize": "off", "partition": "dirichlet:0.5"}
        options = {"models": models, **changes.pop("options", {})}
        run = prepare(RunConfig.build(values | {"method": method, "options": options} | changes), task=changes.pop("task", task))
        summary = run.go()
        return summary, run, {c: run.store[c]["network"] for c in range(6)}

    return go


@pytest.fixture
def told(monkeypatch):
    """Return a list that grows by (message, replies) of each round."""
    seen, ask = [], Federation.each

    def spy(self, fn, message, over, **options):
        replies = ask(self, fn, message, over, **options)
        seen.append((message, replies))
        return replies

    monkeypatch.setattr(Federation, "each", spy)
    return seen
