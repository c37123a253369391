"""`RunConfig` raises Paceline's errors, however it is made, and its fields are the typed keywords of `paceline.run`."""

import copy
import pickle
from collections.abc import Sequence
from typing import Any, get_type_hints

import pytest

from paceline.core.config import RunConfig
from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.run_fields import ConfigFields, RunFields

MAKERS = [
    lambda values: RunConfig(**values),
    RunConfig.build,
    RunConfig.model_validate,
    lambda values: RunConfig.model_validate_json(str(values).replace("'", '"')),
]


@pytest.mark.parametrize("make", MAKERS)
def test_unknown_fields_have_the_nearest_names(make):
    with pytest.raises(UnknownNameError, match="did you mean rounds") as caught:
        make({"round": 3})
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("make", MAKERS)
def test_wrong_values_are_all_named(make):
    with pytest.raises(ConfigError, match=r"clients=-1: .*; rounds=0: ") as caught:
        make({"rounds": 0, "clients": -1})
    assert type(caught.value) is ConfigError


def test_what_is_no_configuration_is_named():
    with pytest.raises(ConfigError, match=r"configuration='\{'"):
        RunConfig.model_validate_json("{")


def test_the_keywords_are_the_fields():
    fields = {name: spec.annotation for name, spec in RunConfig.model_fields.items()}
    assert fields["metrics"] == tuple[str, ...]  # by keyword also as text or as objects
    assert get_type_hints(ConfigFields) == fields | {"metrics": str | Sequence[Any]}
    assert set(get_type_hints(ConfigFields)) - set(get_type_hints(RunFields)) == {"method", "task", "model"}


def test_copies_are_equal():
    config = RunConfig(rounds=3, options={"lr": 0.1})
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert config.model_copy(update={"rounds": 4}).rounds == 4
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
