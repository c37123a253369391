"""Clients that train as one agree with clients that train one after another, whatever their data."""

import os
import random
import signal
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from paceline.core.client import SGD, AdamW, Hooks
from paceline.core.errors import NonFiniteError
from paceline.core.method import on_client
from paceline.core.optimizers import Optimizer
from paceline.core.update import Update
from paceline.data import Partition
from paceline.engines.stacking.measure import choose
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import RunConfig, StackingWarning, prepare, resume, run
from paceline.store import RunFolder
from paceline.tasks import Arrays, Task
from tests.conftest import make_task

SIZES = [10, 0, 1, 23, 10, 37, 10, 24, 5, 20, 10, 30]
"""Samples of the clients: equal ones, one empty, a single sample; batches are of 10."""


def ragged():
    ends = torch.tensor(SIZES).cumsum(0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
    return Partition("ragged", torch.arange(int(ends[-1])) % 240, offsets, ends)


def go(task, split=None, **changes):
    values = {
        "method": "fedavg",
        "task": "blobs",
        "clients": 12,
        "cohort": 12,
        "rounds": 3,
        "vectorize": "on",
        "chunk": 5,
        **changes,
    }
    prepared = prepare(RunConfig.build(values), task=task, split=split)
    summary = prepared.go()
    return prepared, summary, prepared.method.model(prepared.state).vector


@pytest.mark.parametrize("one_step", [True, False])
def test_one_step_clients_agree_too(task, one_step):
    options = {"batch_size": 50}
    _, _, alone = go(task, ragged(), options=options, vectorize="off", chunk=1)
    _, _, stacked = go(task, ragged(), options=options, one_step=one_step)
    assert float((alone - stacked).norm() / alone.norm()) < 1e-5


def test_convolutions_are_stacked(task):
    def build():
        return nn.Sequential(
            nn.Unflatten(1, (1, 3, 4)),
            nn.Conv2d(1, 3, 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3, 4),
        )

    images = make_task(model=build)
    _, _, alone = go(images, ragged(), vectorize="off", chunk=1)
    prepared, _, stacked = go(images, ragged())
    assert prepared.fed.engine.notes == {}
    assert float((alone - stacked).norm() / alone.norm()) < 1e-5


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "clip"])
def test_same_bits_for_any_number_of_workers(task, method):
    common = {"method": method, "fleet": "stragglers", "aggregation": "secure-arithmetic"}
    common["options"] = {"warmup": 1} if method == "clip" else {}
    shas = {go(task, ragged(), **common, workers=w)[1].model_sha256 for w in (1, 2, 3)}
    assert len(shas) == 1


def test_federated_evaluation_in_chunks_gives_the_same_figures(task):
    _, one, _ = go(task, ragged(), evaluation="federated", vectorize="off", chunk=1)
    _, many, _ = go(task, ragged(), evaluation="federated")
    assert many.accuracy == pytest.approx(one.accuracy)
    assert many.loss == pytest.approx(one.loss, rel=1e-5)


@dataclass(frozen=True)
class Squashed(Optimizer):
    """Steps along a squashed running mean: an optimizer with state that Paceline does not have."""

    def state(self, weights):
        return [torch.zeros_like(weights)]

    def direction(self, step, gradient, weights, state):
        return state[0].mul_(0.9).add_(gradient, alpha=0.1).mul(10.0).tanh() + self.weight_decay * weights


@dataclass(frozen=True)
class Hooked(FedAvg):
    """Hooks of every kind, each with something of the client's own."""

    kind: str = "direction"

    @on_client
    def train(self, client, message):
        own, pull = message * (1 + 0.1 * client.id), 0.1 / (1 + client.id)
        hooks = {
            "direction": Hooks(direction=lambda gradient, at: 0.5 * (gradient(at) + gradient(at + 0.05 * own)) + pull * (at - own)),
            "correct": Hooks(correct=lambda grad, at: grad / (1.0 + grad.norm()) + pull * (at - own)),
            "objective": Hooks(
                objective=lambda module, x, y: nn.functional.cross_entropy(2 * module(x), y) + pull * module(x).square().mean()
            ),
            "loss": Hooks(loss=lambda out, y: nn.functional.cross_entropy(out * (1 + pull), y)),
            "after": Hooks(after=lambda at: at - pull * (at - own)),
            "branch": Hooks(correct=lambda grad, at: grad * 2 if grad.norm() > 1 else grad),
            "item": Hooks(correct=lambda grad, at: grad * min(1.0, 1.0 / float(grad.norm()))),
        }.get(self.kind)
        optimizers = {
            "schedule": SGD(momentum=0.5, schedule=lambda step, steps: 1 - pull * step / steps),
            "adam": AdamW(eps=1e-2, weight_decay=0.1),
            "own optimizer": Squashed(weight_decay=0.1),
            "unlike momenta": SGD(momentum=0.3 * (client.id % 3)),
        }
        optimizer = replace(optimizers.get(self.kind, SGD()), lr=0.05 * (1 + client.id % 2))
        local = client.sgd(own if self.kind == "own start" else message, optimizer=optimizer, hooks=hooks, epochs=2)
        client.memory["last"] = local.params
        return Update(delta=local.params - message, weight=client.num_samples)


HOOKED = f"{__name__}:Hooked"


KINDS = ["direction", "correct", "objective", "loss", "after", "schedule", "adam", "own optimizer", "own start"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_hook_is_stacked_with_what_it_captured(task, kind, monkeypatch):
    common = {"method": HOOKED, "options": {"kind": kind}}
    first, _, alone = go(task, ragged(), **common, vectorize="off", chunk=1)
    monkeypatch.setattr("paceline.engines.stacking.solver._train_one", lambda job: pytest.fail("alone") if job.steps else job.run())
    prepared, _, stacked = go(task, ragged(), **common)
    assert prepared.fed.engine.notes == {}
    assert float((alone - stacked).norm() / alone.norm()) < 1e-5
    for client in range(12):
        kept = [p.fed.engine.memories[client]["last"].vector for p in (first, prepared)]
        torch.testing.assert_close(*kept, rtol=1e-4, atol=1e-5)


def test_clients_whose_optimizers_differ_do_not_share_a_stack(task):
    common = {"method": HOOKED, "options": {"kind": "unlike momenta"}}
    *_, alone = go(task, ragged(), **common, vectorize="off", chunk=1)
    *_, stacked = go(task, ragged(), **common)
    assert float((alone - stacked).norm() / alone.norm()) < 1e-5


@pytest.mark.parametrize("kind", ["branch", "item"])
def test_a_hook_that_cannot_be_stacked_falls_back_and_says_so_once(task, kind):
    common = {"method": HOOKED, "options": {"kind": kind}}
    _, _, alone = go(task, ragged(), **common, vectorize="off", chunk=1)
    with pytest.warns(StackingWarning, match="clients that use Hooked") as logged:
        _, _, stacked = go(task, ragged(), **common)
    assert len([w for w in logged if w.category is StackingWarning]) == 1
    assert alone.equal(stacked)


class Jitter(nn.Module):
    def forward(self, x):
        return x * random.uniform(0.9, 1.1)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x.unflatten(1, (4, 4)), torch.full((len(x),), 4), batch_first=True)
        return self.cells(packed)[1][0][-1].repeat(1, 4)


@pytest.mark.parametrize(("part", "why"), [(Jitter, "random numbers"), (Packed, "reads a tensor's value")])
def test_models_that_cannot_be_stacked_say_why(part, why):
    task = make_task(model=lambda: nn.Sequential(nn.Linear(12, 16), part(), nn.ReLU(), nn.Linear(16, 4)))
    prepared, summary, _ = go(task, vectorize="auto", chunk=None)
    assert (prepared.config.vectorize, prepared.config.chunk) == ("off", 1)
    assert why in summary.path


def test_divergence_names_the_client(task):
    with pytest.raises(NonFiniteError, match=r"client \d+, function 'train', round 1.*lower lr"):
        go(task, ragged(), options={"lr": 1e30, "epochs": 4})


@dataclass(frozen=True)
class Dying(FedAvg):
    @on_client
    def train(self, client, message):
        local = client.sgd(message)
        if client.id == 5 and client.round == 2 and not os.path.exists(os.environ["ONCE"]):
            open(os.environ["ONCE"], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        client.memory["last"] = local.params
        return Update(delta=local.params - message, weight=client.num_samples)


def test_a_worker_killed_in_mid_round_changes_no_bit(task, tmp_path, monkeypatch):
    name = f"{__name__}:Dying"
    monkeypatch.setenv("ONCE", str(tmp_path / "once"))
    killed, summary, _ = go(task, ragged(), method=name, workers=2)
    assert (tmp_path / "once").exists()
    quiet, other, _ = go(task, ragged(), method=name, workers=2)
    assert summary.model_sha256 == other.model_sha256
    assert killed.fed.engine.memories[5]["last"].vector.equal(quiet.fed.engine.memories[5]["last"].vector)


def wide_task():
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(1200, 30, generator=generator), torch.randint(0, 4, (1200,), generator=generator)
    return Task("wide", Arrays(x, y), Arrays(x[:100], y[:100]), lambda: nn.Linear(30, 4), 4, lr=0.1, batch_size=5)


def test_the_measured_choice_is_in_the_plan_and_a_resumed_run_takes_it(tmp_path, monkeypatch):
    config = RunConfig.build({"task": "wide", "clients": 60, "cohort": 40, "rounds": 4, "vectorize": "on"})
    folder = RunFolder.create(tmp_path, "first")
    first = run(config, wide_task(), folder=folder)
    written = RunConfig.build(folder.read_config())
    assert (written.vectorize, written.chunk) == ("on", first.chunk)
    assert 4 <= first.chunk <= 20
    monkeypatch.setattr("paceline.engines.pool.choose", lambda *_, **__: pytest.fail("measured again"))
    again = run(written, wide_task(), folder=RunFolder.create(tmp_path, "again"))
    assert again.model_sha256 == first.model_sha256
    assert resume(folder.path, task=wide_task()).model_sha256 == first.model_sha256


def test_a_small_cohort_is_not_stacked_unless_asked(task):
    prepared, _, _ = go(task, cohort=3, vectorize="auto", chunk=None)
    assert prepared.config.chunk == 1
    worker = prepared.fed.engine.here
    data = [worker.samples(c) for c in range(12)]
    assert choose(worker.model, worker.initial, task, data, 12, always=True).chunk > 1


def test_nothing_is_said_where_everything_is_stacked(task):
    with warnings.catch_warnings():
        warnings.simplefilter("error", StackingWarning)
        go(task, ragged())


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic", "secure"])
def test_drop_outs_and_deadlines_inside_a_chunk(task, aggregation):
    values = {
        "clients": 12,
        "cohort": 12,
        "rounds": 2,
        "fleet": "stragglers:share=0.3,slow=6",
        "aggregation": aggregation,
    }
    outcomes = []
    for chunk in (1, 6):
        config = RunConfig.build({"task": "blobs", "vectorize": "on", "chunk": chunk, **values})
        prepared = prepare(
            config,
            task=task,
            drop=lambda round, client, function: client == 4 and function.endswith(("train", "masked")),
        )
        summary = prepared.go()
        outcomes.append((prepared.method.model(prepared.state).vector, [r["dropped"] for r in summary.history]))
    assert outcomes[0][1] == outcomes[1][1] == [1, 1]
    tolerance = 1e-5 if aggregation == "plain" else 1e-3  # rounding may fall to the other side
    assert float((outcomes[0][0] - outcomes[1][0]).norm() / outcomes[0][0].norm()) < tolerance


@pytest.mark.parametrize("epochs", [1, 2])
def test_targets_that_are_not_scored_do_not_count_in_a_stack_either(epochs):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(240, 30, generator=generator), torch.randint(0, 4, (240,), generator=generator)
    y[::3] = -100
    task = Task("masked", Arrays(x, y), Arrays(x[1:3], y[1:3]), lambda: nn.Linear(30, 4), 4, lr=0.1, batch_size=15)
    values = {"task": "masked", "clients": 12, "cohort": 12, "rounds": 2, "options": {"epochs": epochs}}
    alone, stacked = (
        prepare(RunConfig.build({**values, **v}), task=task, split=ragged())
        for v in ({"vectorize": "off"}, {"vectorize": "on", "chunk": 6})
    )
    alone.go(), stacked.go()
    assert stacked.fed.engine.notes == {}
    one, many = alone.state.params.vector, stacked.state.params.vector
    assert float((one - many).norm() / one.norm()) < 1e-5
    values["partition"] = "iid"
    judged = {**values, "rounds": 1, "evaluation": "clients", "client_test": 0.3}
    both = [
        prepare(RunConfig.build({**judged, **v}), task=task).go() for v in ({"vectorize": "off"}, {"vectorize": "on", "chunk": 6})
    ]
    assert both[0].accuracy == both[1].accuracy
    assert both[0].loss == pytest.approx(both[1].loss, rel=1e-6)


@dataclass(frozen=True)
class Limited(FedAvg):
    """Trainings that end early, on slow devices only."""

    seconds: float = 0.0

    @on_client
    def train(self, client, message):
        local = client.sgd(message, epochs=2, limit=lambda planned, done, took: planned if took < self.seconds else 1)
        return Update(delta=local.params - message, weight=client.num_samples)


def test_limits_are_those_of_each_client_s_device_although_the_data_are_alike(task):
    probe, *_ = go(task, partition="iid", fleet="stragglers", rounds=1)
    worker = probe.fed.engine.here
    flops, fleet = 3.0 * worker.model.flops * 2 * worker.setup.split.sizes[0], worker.setup.fleet
    slow, fast = (pick(fleet.profile(c, 1).compute_seconds(flops) for c in range(12)) for pick in (max, min))
    assert slow > 1.5 * fast
    common = {"method": f"{__name__}:Limited", "options": {"seconds": 1.01 * fast}, "partition": "iid", "fleet": "stragglers"}
    _, _, alone = go(task, **common, vectorize="off", chunk=1)
    _, _, unlimited = go(task, **{**common, "options": {"seconds": 2 * slow}})
    prepared, _, stacked = go(task, **common)
    assert prepared.fed.engine.notes == {}
    assert float((alone - stacked).norm() / alone.norm()) < 1e-5
    assert float((alone - unlimited).norm() / alone.norm()) > 1e-3


def test_measured_limits_are_a_reason_to_train_alone(task):
    with pytest.warns(StackingWarning, match="ends early by the time that it takes"):
        go(task, method=f"{__name__}:Limited", options={"seconds": 100.0}, measured=True, rounds=1)
