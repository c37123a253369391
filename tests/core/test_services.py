"""Services by class: made once, when they are first asked for, from what all clients of a worker share."""

from dataclasses import fields

import pytest

from paceline.blocks.architectures import Architectures
from paceline.core.errors import ConfigError
from paceline.core.services import Host, Services
from paceline.run import prepare
from paceline.submodels.service import Submodels, submodels


class Counter:
    made = 0

    def __init__(self, host):
        Counter.made += 1
        self.host = host


def test_a_service_is_made_once_when_it_is_asked_for(task, config):
    Counter.made = 0
    worker = prepare(config(), task=task).fed.engine.here
    host = Host(worker.model, worker.layout, worker.example, task, 3)
    services = Services(host, {Counter: Counter})
    assert Counter.made == 0
    assert services[Counter] is services[Counter]
    assert services[Counter].host is host
    assert Counter.made == 1


def test_what_is_not_there_is_named_with_what_is():
    with pytest.raises(ConfigError, match=r"Submodels is not registered \(registered: none"):
        Services()[Submodels]
    with pytest.raises(ConfigError, match=r"int is not registered \(registered: Submodels"):
        Services(None, {Submodels: lambda host: None})[int]


def test_clients_and_the_server_use_those_of_their_worker(task, config):
    fed = prepare(config(), task=task).fed
    assert submodels(fed) is fed.engine.here.services[Submodels]
    assert isinstance(fed.engine.services[Architectures], Architectures)
    assert {field.name for field in fields(Host)} == {"model", "layout", "example", "task", "seed"}  # nothing of a client
