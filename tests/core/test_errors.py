import inspect
import pickle

import pytest

from paceline.core import errors
from paceline.core.errors import (
    ClientError,
    DiskFullError,
    MissingExtraError,
    PacelineError,
    PlanError,
    PolicyError,
    UnknownNameError,
)

MADE = [
    UnknownNameError("engine", "lokal", ["local"]),
    PlanError(["one", "two"]),
    MissingExtraError("Ray", "ray"),
    ClientError(3, "train", 2, "ValueError: no", 5),
    PolicyError(["too many rounds"]),
    DiskFullError("no room"),
]


@pytest.mark.parametrize("error", MADE, ids=lambda e: type(e).__name__)
def test_an_error_crosses_between_processes_whole(error):
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)


def test_the_tree_lists_every_error():
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, PacelineError)}
    assert classes <= set(errors.__all__)
