"""How `paceline.run` reads its arguments."""

import pytest
import torch
from torch import nn

import paceline as pl
from paceline.aggregation import Plain
from paceline.results.arguments import arguments
from tests.conftest import make_task

DATA = (torch.randn(20, 3), torch.arange(20) % 2), (torch.randn(6, 3), torch.arange(6) % 2)


def config(method, task=None, model=None, **fields):
    return arguments(method, task, model, fields).config


@pytest.mark.parametrize(
    "method",
    [pl.methods.FedProx(mu=0.5), "fedprox:mu=0.5", pl.RunConfig(method="fedprox", options={"mu": 0.5})],
)
def test_forms_of_a_method(method):
    found = config(method, "digits", rounds=3)
    assert (found.method, found.options, found.task, found.rounds) == ("fedprox", {"mu": 0.5}, "digits", 3)


def test_a_class_has_its_defaults():
    assert config(pl.methods.FedProx).options == {}


def test_values_are_those_of_a_resumed_run():
    found = arguments(pl.methods.FedProx(mu=1), None, None, {})
    assert type(found.method.mu) is float
    with pytest.raises(pl.errors.ConfigError, match="FedProx field mu='much'"):
        arguments(pl.methods.FedProx(mu="much"), None, None, {})


def test_scalars_of_other_libraries_are_plain():
    assert config(pl.methods.FedProx(mu=torch.tensor(0.5))).options == {"mu": 0.5}


def test_forms_of_a_task():
    assert config("fedavg", "digits", "logreg").model == "logreg"
    assert config("fedavg").task == pl.RunConfig().task
    assert arguments("fedavg", make_task(), None, {}).config.task == "blobs"
    pair = arguments("fedavg", DATA, lambda: nn.Linear(3, 2), {})
    assert (pair.config.task, len(pair.task.train)) == ("data", 20)


def test_the_cohort_is_at_most_everybody():
    assert config("fedavg", clients=5).cohort == 5
    assert config("fedavg", clients=50).cohort == 20
    assert config("fedavg", clients=5, cohort=3).cohort == 3
    assert config(pl.RunConfig(clients=5)).cohort == 20  # said in full


def test_a_configuration_is_the_base():
    found = config(pl.RunConfig(method="fedprox", options={"mu": 0.5}, rounds=9), "digits", options={"lr": 0.1}, seed=4)
    assert (found.rounds, found.seed, found.options) == (9, 4, {"mu": 0.5, "lr": 0.1})


FAULTS = {
    "unknown": (lambda: config("fedavg", round=1), pl.errors.UnknownNameError, "unknown option 'round'; did you mean rounds"),
    "of the method": (lambda: config("fedprox", mu=1), pl.errors.ConfigError, r"mu is a field of the method.*FedProx\(mu=1\)"),
    "of the object": (lambda: config(pl.methods.FedProx(), mu=1), pl.errors.ConfigError, r"write FedProx\(mu=1\)"),
    "options": (lambda: config(pl.methods.FedProx(), options={"mu": 1}), pl.errors.ConfigError, r"write FedProx\(mu=1\)"),
    "method": (lambda: config("fedprxo"), pl.errors.UnknownNameError, "did you mean fedprox"),
    "no method": (lambda: config(3), pl.errors.ConfigError, "an object of type int is not a method"),
    "swapped": (
        lambda: config(make_task(), "fedavg"),
        pl.errors.ConfigError,
        "^an object of type Task is not a method.*comes first",
    ),
    "class": (lambda: config("fedavg", nn.Linear), pl.errors.ConfigError, "^the class Linear is not a task"),
    "aggregation": (lambda: config("fedavg", aggregation=Plain()), pl.errors.ConfigError, "of type Plain; pass a name.*prepare"),
    "no task": (lambda: config("fedavg", 3), pl.errors.ConfigError, "an object of type int is not a task"),
    "value": (lambda: config("fedavg", rounds=0), pl.errors.ConfigError, "rounds=0"),
    "no model": (lambda: config("fedavg", DATA), pl.errors.ConfigError, r"\(train, test\) requires model="),
    "model twice": (lambda: config("fedavg", make_task(), nn.Linear), pl.errors.ConfigError, "part of the task"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(fault):
    call, kind, words = FAULTS[fault]
    with pytest.raises(kind, match=words):
        call()
