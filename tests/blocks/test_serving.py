"""What a server computes itself: Adam that goes on, features, and training of the run's trainable part alone."""

import dataclasses

import pytest
import torch

import paceline as pl
from paceline.blocks.server_data import as_client
from paceline.blocks.serving import ContinuedAdam, featured, rows_of
from paceline.core.errors import ConfigError
from paceline.core.optimizers import SGD, AdamW
from paceline.core.reading import Sampled
from paceline.models.split import features
from paceline.run import RunConfig, prepare
from tests.conftest import make_task


def test_adam_goes_on_where_it_stopped():
    whole, first, second = AdamW(0.1), torch.zeros(3), torch.zeros(3)
    w, state = torch.ones(3), whole.state(torch.ones(3))
    v, taken = torch.ones(3), 0
    for length in (2, 3):
        rule = ContinuedAdam(0.1, moments=(first, second), taken=taken)
        own = rule.state(v)
        for step in range(length):
            gradient = torch.sin(torch.arange(3.0) + taken + step)
            w = w - whole.lr * whole.direction(taken + step, gradient, w, state)
            v = v - rule.lr * rule.direction(step, gradient, v, own)
        taken += length
    torch.testing.assert_close(w, v)


def test_only_the_trainable_part_moves():
    task = dataclasses.replace(make_task(), trainable=["4.*"])
    run = prepare(RunConfig.build({"task": "own", "clients": 3, "cohort": 3, "rounds": 1}), task=task)
    start = run.fed.init_params()
    x, y = task.test.x[:20], task.test.y[:20]
    server = as_client(run.fed, x, y)
    found = server.sgd(start, optimizer=SGD(0.1), steps=3, batch_size=50, alone=True).params
    module = task.build(pl.core.random.derive(0, "init"))
    rule = torch.optim.SGD(module[4].parameters(), 0.1)
    for _ in range(3):
        rule.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        rule.step()
    assert list(found.layout.by_name) == ["4.weight", "4.bias"]
    torch.testing.assert_close(found["4.weight"], module[4].weight.detach())
    seen, scores = featured(server, found, x, batch_size=7)
    torch.testing.assert_close(seen, features(module, x).detach())
    torch.testing.assert_close(scores, module(x).detach())


@pytest.mark.parametrize("kept", [True, False])
def test_features_are_those_of_the_client_s_own_statistics(kept):
    """What another client left in the module does not count."""
    task = make_task(model=lambda: torch.nn.Sequential(torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 4)))
    run = prepare(
        RunConfig.build({"task": "own", "clients": 3, "cohort": 3, "rounds": 1}), task=dataclasses.replace(task, buffers="local")
    )
    client = as_client(run.fed, task.test.x, task.test.y)
    mean = torch.full((12,), 3.0)
    if kept:
        client.memory["_buffers"] = client.model.local_buffers() | {"0.running_mean": mean}
    client.model.load_buffers({"0.running_mean": torch.full((12,), 9.0)})
    seen, _ = featured(client, run.fed.init_params(), task.test.x)
    torch.testing.assert_close(seen, (task.test.x - (mean if kept else 0.0)) / (1 + 1e-5) ** 0.5)
    assert client.flops == client.model.flops * len(task.test.x) > 0


def test_samples_that_are_read_one_by_one_are_refused():
    with pytest.raises(ConfigError, match="in memory"):
        rows_of(Sampled(None, 0), torch.arange(3), "fedka")
