"""What a server computes itself: Adam that goes on, features, and training of the run's trainable part alone."""

import dataclasses

import pytest
import torch

import paceline as pl
from paceline.blocks.serving import ContinuedAdam, featured, rows_of, trained_at_server
from paceline.core.client import Hooks
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
    found = trained_at_server(run.fed, start, x, y, optimizer=SGD(0.1), steps=3, batch_size=50, hooks=Hooks())
    module = task.build(pl.core.random.derive(0, "init"))
    rule = torch.optim.SGD(module[4].parameters(), 0.1)
    for _ in range(3):
        rule.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        rule.step()
    assert list(found.layout.by_name) == ["4.weight", "4.bias"]
    torch.testing.assert_close(found["4.weight"], module[4].weight.detach())
    own = pl.blocks.architectures.architectures(run.fed).like(found)
    seen, scores = featured(own, found, x, batch_size=7)
    torch.testing.assert_close(seen, features(module, x).detach())
    torch.testing.assert_close(scores, module(x).detach())


def test_samples_that_are_read_one_by_one_are_refused():
    with pytest.raises(ConfigError, match="in memory"):
        rows_of(Sampled(None, 0), torch.arange(3), "fedka")
