"""Shared fixtures: a small separable task that needs no data set, and the one way to those that do."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from paceline.data.sources import Source, find_source
from paceline.run import RunConfig, prepare
from paceline.tasks import Arrays, Task
from tests.lab import LAB
from tests.methods.forms import fitted
from tests.postgres import Postgres


def small_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def make_task(samples: int = 240, model=small_mlp, name: str = "blobs") -> Task:
    generator = torch.Generator().manual_seed(7)
    centres = torch.randn(4, 12, generator=generator) * 1.5
    y = torch.arange(samples + 80) % 4
    x = centres[y] + torch.randn(samples + 80, 12, generator=generator)
    train, test = Arrays(x[:samples], y[:samples]), Arrays(x[samples:], y[samples:])
    return Task(name, train, test, model, num_classes=4, lr=0.1, batch_size=10)


def fetched(name: str) -> Source:
    """Return a source whose data are here; skip the test, and say how to get them, where they are not.

    No test fetches: `make test` and `make test-slow` do, before.
    """
    source = find_source(name)
    if not source.ready():
        pytest.skip(f"needs: paceline data fetch {name}")
    return source


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Start a PostgreSQL server of our own, or skip where there is none."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Return the name of a user's module, which is on the path."""
    (tmp_path / "mylab.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)
    yield "mylab"
    sys.modules.pop("mylab", None)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Return a folder of installed packages, which is on the path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def task(request: pytest.FixtureRequest) -> Task:
    """Return the small task; in a test of many methods, in the form that the method needs."""
    given = getattr(getattr(request.node, "callspec", None), "params", {})
    return fitted(given.get("name", given.get("method")), make_task())


@pytest.fixture
def config():
    """Return a maker of small configurations."""

    def make(**changes) -> RunConfig:
        return RunConfig.build(
            {"method": "fedavg", "task": "blobs", "clients": 6, "cohort": 5, "rounds": 3, "vectorize": "off", **changes}
        )

    return make


@pytest.fixture
def federate(task, config):
    """Return a function that prepares and carries out a small run."""

    def go(task=task, drop=None, folder=None, observer=None, **changes):
        return prepare(config(**changes), task=task, drop=drop, folder=folder, observer=observer).go()

    return go
