"""Every method that is simulated deploys unchanged: over the network it ends with the bits of a simulation."""

import pytest
import torch

from paceline.blocks.architectures import Architectures
from tests.methods.test_every_method import NAMES, NEEDS_EACH, SMALL
from tests.network.conftest import OPEN

POLICY = OPEN.replace("named_clients = true", "named_clients = true\nbegun_work = true")

SUMMED = ["clip", "fedavgm", "fedghsum", "fedproto", "fedsa", "fjord", "frl", "localonly", "scaffoldm"]
"""Under masks: own architectures, sub-models, told records, memories, votes. What is begun under masks follows measured times."""


def values(name, **changes):
    common = {"method": name, "options": SMALL.get(name, {}), "clients": 4, "cohort": 3, "rounds": 3}
    return common | {"fleet": "stragglers", "partition": "dirichlet:0.5", "client_test": 0.2} | changes


def compare(networked, federate, run):
    there, here = networked(run, policy=POLICY), federate(vectorize="off", **run)
    assert there.model_sha256 == here.model_sha256
    assert there.rounds == here.rounds == run["rounds"]
    assert (there.accuracy, there.loss) == (here.accuracy, here.loss)
    return there, here


@pytest.mark.parametrize("name", NAMES)
def test_every_method_runs_over_the_network(networked, federate, name):
    there, here = compare(networked, federate, values(name))
    assert there.total_seconds == here.total_seconds
    assert (there.bytes_up, there.bytes_down) == (here.bytes_up, here.bytes_down)


@pytest.mark.parametrize("name", SUMMED)
def test_methods_run_over_the_network_under_masks(networked, federate, name):
    assert name not in NEEDS_EACH
    there, here = compare(networked, federate, values(name, aggregation="secure", cohort=4, rounds=2))
    assert (there.bytes_up, there.bytes_down) == (here.bytes_up, here.bytes_down)


def test_a_secret_seed_changes_draws_but_not_what_all_begin_with(loopback):
    """Frozen layers and own architectures are not sent, so they have to be the same on every client."""
    loopback.serve(values("fedpeft", clients=2, cohort=2, rounds=1, partition="iid"))
    nodes = [loopback.client(number, policy=POLICY, private_rounding=True) for number in range(2)]
    loopback.finish()
    home, workers = loopback.server.engine.home, [node.runner.worker for node in nodes]
    trained = set(home.layout.by_name)
    for worker in workers:
        there, here = worker.model.module.state_dict(), home.model.module.state_dict()
        frozen = there.keys() - trained
        assert frozen
        assert all(torch.equal(there[name], here[name]) for name in frozen)
        zoo, ours = worker.services[Architectures], home.services[Architectures]
        assert torch.equal(zoo.initial("mlp:hidden=8").vector, ours.initial("mlp:hidden=8").vector)
    assert len({worker.setup.client_seed for worker in workers} | {home.setup.seed}) == 3
