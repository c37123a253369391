"""The hook `augment`: random numbers in a step that depend on client, round and step alone."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

import paceline as pl
from paceline.core.client import Hooks
from paceline.core.method import on_client
from paceline.core.update import Update
from paceline.data import Partition
from paceline.engines.stacking import Solver
from paceline.run import RunConfig, prepare
from tests.conftest import make_task

SEEN = []


@dataclass(frozen=True)
class Noisy(pl.methods.FedAvg):
    """Add noise to the inputs: in place of them, or beside them for an objective."""

    kind: str = "inputs"

    @on_client
    def train(self, client, message):
        size = 0.3 + 0.01 * client.round

        def augment(x, y, stream):
            SEEN.append(stream.step if self.kind == "numbers" else stream.initial_seed())
            drawn = size * torch.randn(x.shape, generator=stream)
            if self.kind == "mixed":
                return x + drawn, (F.one_hot(y, 4).float() + F.one_hot(y.flip(0), 4).float()) / 2
            return (x + drawn, y) if self.kind in ("inputs", "numbers") else ((x, drawn), y)

        def objective(module, given, y):
            x, drawn = given
            return F.cross_entropy(module(x + drawn), y)

        hooks = Hooks(augment=augment, objective=objective if self.kind == "pair" else None)
        local = client.sgd(message, hooks=hooks, **self.local(client))
        return Update(delta=local.params - message, weight=client.num_samples)


def ragged():
    sizes = torch.tensor([24, 10, 7, 0, 31, 24])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return Partition("ragged", torch.arange(int(sizes.sum())), offsets, offsets[1:].clone())


def end(kind="inputs", **changes):
    values = {
        "method": f"{__name__}:Noisy",
        "options": {"kind": kind, "epochs": 2},
        "task": "blobs",
        "clients": 6,
        "cohort": 6,
        "rounds": 2,
    }
    run = prepare(RunConfig.build(values | changes), task=make_task(), split=ragged())
    run.go()
    return run.method.model(run.state).vector


@pytest.mark.parametrize("kind", ["inputs", "pair", "mixed"])
def test_stacked_and_single_clients_draw_the_same(kind, monkeypatch):
    stacked, whole = [], Solver._whole

    def counted(self, key, jobs, watch):
        solved = whole(self, key, jobs, watch)
        stacked.append(solved is not None)
        return solved

    monkeypatch.setattr(Solver, "_whole", counted)
    alone = end(kind, vectorize="off", chunk=3)
    assert not stacked
    together = end(kind, vectorize="on", chunk=3)
    assert all(stacked)
    assert len(stacked) >= 2
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    plain = pl.run("fedavg:epochs=2", make_task(), clients=6, rounds=2, progress=False)
    assert plain.rounds == 2


def test_every_client_round_and_step_has_its_own_stream():
    SEEN.clear()
    end(vectorize="off")
    steps = 2 * (3 + 1 + 1 + 4 + 3)
    assert len(SEEN) == 2 * steps == len(set(SEEN))
    first = list(SEEN)
    SEEN.clear()
    end(vectorize="off")
    assert first == SEEN


@pytest.mark.parametrize("vectorize", ["off", "on"])
def test_steps_are_numbered(vectorize):
    SEEN.clear()
    end("numbers", vectorize=vectorize, chunk=3)
    assert sorted(SEEN) == sorted([step for steps in (6, 2, 2, 8, 6) for step in range(steps)] * 2)


def test_two_workers_draw_the_same():
    assert torch.equal(end(vectorize="on", chunk=2, workers=1), end(vectorize="on", chunk=2, workers=2))


def test_the_order_of_samples_does_not_depend_on_the_hook():
    """With noise of 0, the result is that without a hook."""
    values = {
        "method": "fedavg",
        "options": {"epochs": 2},
        "task": "blobs",
        "clients": 6,
        "cohort": 6,
        "rounds": 1,
        "vectorize": "off",
    }
    run = prepare(RunConfig.build(values), task=make_task(), split=ragged())
    run.go()
    silent = prepare(RunConfig.build(values | {"method": f"{__name__}:Silent"}), task=make_task(), split=ragged())
    silent.go()
    assert torch.equal(run.method.model(run.state).vector, silent.method.model(silent.state).vector)


@dataclass(frozen=True)
class Silent(pl.methods.FedAvg):
    """Draw, and change nothing."""

    def hooks(self, client, start):
        return Hooks(augment=lambda x, y, stream: (x + 0 * torch.rand(1, generator=stream), y))


def test_a_loop_with_draws_is_not_recorded():
    """A recorded loop would replay the streams of the chunk that it was recorded with."""
    common = {"vectorize": "on", "chunk": 3, "rounds": 4}
    ends = []
    for kernels in ("plain", "graph"):
        values = {"method": f"{__name__}:Noisy", "task": "blobs", "clients": 6, "cohort": 6, "kernels": kernels, "one_step": False}
        run = prepare(RunConfig.build(values | common), task=make_task())
        run.go()
        ends.append(run.method.model(run.state).vector)
    assert "augment" in next(iter(run.fed.engine.notes.values()))
    assert torch.equal(*ends)


@dataclass(frozen=True)
class Counting(pl.methods.FedAvg):
    """Add the number of the step to the inputs."""

    def hooks(self, client, start):
        return Hooks(augment=lambda x, y, stream: (x + 0.1 * stream.step, y))


def test_a_hook_receives_the_number_of_the_step_stacked_or_not():
    values = {"method": f"{__name__}:Counting", "options": {"epochs": 2}, "task": "blobs", "clients": 6, "cohort": 6, "rounds": 2}
    ends = []
    for vectorize in ("off", "on"):
        run = prepare(RunConfig.build(values | {"vectorize": vectorize, "chunk": 6}), task=make_task(), split=ragged())
        run.go()
        ends.append(run.method.model(run.state).vector)
    torch.testing.assert_close(*ends, atol=1e-5, rtol=1e-5)
    assert [Counting().hooks(None, None).augmented(0.0, 1, 0, step)[0] for step in range(3)] == pytest.approx([0.0, 0.1, 0.2])
    silent = prepare(RunConfig.build(values | {"method": f"{__name__}:Silent"}), task=make_task(), split=ragged())
    silent.go()
    assert not torch.allclose(ends[0], silent.method.model(silent.state).vector)
