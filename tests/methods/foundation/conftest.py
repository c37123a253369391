"""A small vision transformer on real digits, with few samples."""

import pytest

from paceline.run import RunConfig, prepare
from paceline.tasks import load_task


@pytest.fixture(scope="session")
def digits():
    return load_task("digits", model="vit", dim=8, depth=2, heads=2, patch=4, mlp=2, limit=160)


@pytest.fixture
def tuning(digits):
    """Return a function that prepares a run, and carries it out with `go`."""

    def make(go=True, task=digits, **changes):
        values = {"method": "fedpeft", "task": "digits", "clients": 6, "cohort": 4, "rounds": 3, "vectorize": "off", **changes}
        parts = {name: values.pop(name) for name in ("drop", "folder", "observer") if name in values}
        prepared = prepare(RunConfig.build(values), task=task, **parts)
        return prepared.go() if go else prepared

    return make
