"""Recorded local loops agree with single steps, and what cannot be recorded trains step by step, with a reason."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from paceline.core.client import SGD, Hooks
from paceline.core.method import on_client
from paceline.core.update import Update
from paceline.data import Partition
from paceline.engines.stacking import replay
from paceline.engines.stacking.constants import constants
from paceline.engines.stacking.hooks import Unstackable
from paceline.engines.stacking.replay import Recording
from paceline.methods.optimisation.fedavg import FedAvg
from tests.engines.stacking import graphs
from tests.engines.test_vectorized import HOOKED, KINDS, go, ragged

OPEN = {"direction", "objective", "loss"}
"""Kinds of hooks that cannot be padded: batches of unlike sizes have a loss of the method's own."""


@dataclass
class Seen:
    recorded: int = 0
    replayed: int = 0


@pytest.fixture(params=[pytest.param("static", marks=pytest.mark.slow), "graph"])
def seen(request, monkeypatch):
    """Count recordings and replays: of the loop itself, or of a recording of its operations as a GPU makes one."""
    counts, init, run = Seen(), Recording.__init__, Recording.run
    if request.param == "graph":
        monkeypatch.setattr(replay, "RECORDED", ("cpu",))
        monkeypatch.setattr(Recording, "record", graphs.record)

    def counted_init(self, *args):
        counts.recorded += 1
        init(self, *args)

    def counted_run(self, other):
        counts.replayed += 1
        run(self, other)

    monkeypatch.setattr(Recording, "__init__", counted_init)
    monkeypatch.setattr(Recording, "run", counted_run)
    return counts


def trained(task, split=None, kernels="graph", **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared, _, vector = go(task, split, kernels=kernels, one_step=False, **{"rounds": 4, "chunk": 6, **changes})
    return prepared.fed.engine.notes, vector


def near(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", [*KINDS, "unlike momenta"])
def test_hooks_are_replayed_with_the_values_of_each_chunk(task, kind, seen):
    common = {"method": HOOKED, "options": {"kind": kind}}
    _, wanted = trained(task, kernels="plain", **common)
    notes, found = trained(task, **common)
    assert notes == {}
    assert seen.replayed >= 4
    assert near(found, wanted) < 1e-6


@pytest.mark.parametrize("kind", ["correct", "after", "schedule", "adam", "own optimizer"])
def test_clients_with_unequal_data_are_padded(task, kind, seen):
    common = {"method": HOOKED, "options": {"kind": kind}, "split": ragged()}
    _, wanted = trained(task, kernels="plain", **common)
    notes, found = trained(task, **common)
    assert notes == {}
    assert seen.replayed >= 2
    assert near(found, wanted) < 1e-6


@pytest.mark.parametrize("kind", sorted(OPEN))
def test_unequal_batches_with_another_loss_are_a_reason(task, kind, seen):
    common = {"method": HOOKED, "options": {"kind": kind}, "split": ragged()}
    _, wanted = trained(task, kernels="plain", **common)
    notes, found = trained(task, **common)
    assert "smaller batches" in next(iter(notes.values()))
    assert seen.recorded == 0
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedprox", "feddyn"])
def test_methods_keep_their_results(task, method, seen):
    _, wanted = trained(task, ragged(), "plain", method=method)
    notes, found = trained(task, ragged(), method=method)
    assert notes == {}
    assert seen.replayed
    assert near(found, wanted) < 1e-6


class Changing:
    """An object whose value nobody can see change."""

    def __init__(self):
        self.rate = 1.0


@dataclass(frozen=True)
class Odd(FedAvg):
    """Hooks that a recording must not freeze."""

    kind: str = "number"

    @on_client
    def train(self, client, message):
        factor, held = 1.0 / client.round, Changing()
        held.rate = factor
        buffer = torch.tensor([1.0, factor])
        hooks = {
            "number": Hooks(correct=lambda grad, at: grad * factor),
            "tensor": Hooks(correct=lambda grad, at: grad * buffer[1]),
            "object": Hooks(correct=lambda grad, at: grad * held.rate),
            "global": Hooks(correct=lambda grad, at: grad * RATES[0]),
        }.get(self.kind)
        RATES[0] = factor
        rate = 0.05 * factor if self.kind == "rate" else 0.05
        local = client.sgd(message, optimizer=SGD(lr=rate), hooks=hooks, epochs=2)
        return Update(delta=local.params - message, weight=client.num_samples)


RATES = [1.0]
ODD = f"{__name__}:Odd"


@pytest.mark.parametrize(
    ("kind", "reason", "replayed"),
    [
        ("tensor", "", True),
        ("number", "change from round to round", False),
        ("rate", "change from round to round", False),
        ("object", "is a Changing", False),
    ],
)
def test_values_that_change_between_rounds_are_never_frozen(task, kind, reason, replayed, seen):
    common = {"method": ODD, "options": {"kind": kind}, "rounds": 12}
    _, wanted = trained(task, kernels="plain", **common)
    notes, found = trained(task, **common)
    assert near(found, wanted) < 1e-6
    assert bool(notes) == bool(reason)
    assert reason in "".join(notes.values())
    assert (seen.replayed > 0) == replayed


def test_a_value_that_no_one_can_see_is_found_by_comparison(task, monkeypatch):
    monkeypatch.setattr(replay, "RECORDED", ("cpu",))
    monkeypatch.setattr(Recording, "record", graphs.record)
    common = {"method": ODD, "options": {"kind": "global"}, "chunk": 12}
    _, wanted = trained(task, kernels="plain", **common)
    notes, found = trained(task, **common)
    assert "a replay gave other values" in "".join(notes.values())
    assert near(found, wanted) < 1e-6


def test_a_hook_that_reads_a_value_trains_step_by_step(task, monkeypatch):
    monkeypatch.setattr(replay, "RECORDED", ("cpu",))

    def refused(_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Recording, "record", refused)
    notes, found = trained(task, method=HOOKED, options={"kind": "correct"})
    _, wanted = trained(task, kernels="plain", method=HOOKED, options={"kind": "correct"})
    (note,) = notes.values()
    assert note == "train step by step, without a recorded loop: operation not permitted when stream is capturing"
    assert torch.equal(found, wanted)


def test_the_warning_of_the_run_says_what_happened(task):
    with pytest.warns(UserWarning, match=r"clients that use .*lambda.* train step by step, without a recorded loop: .*Changing"):
        go(task, method=ODD, options={"kind": "object"}, kernels="graph", one_step=False)


def test_workers_and_a_resumed_choice_have_the_same_bits(task):
    shas = set()
    for workers in (1, 2):
        prepared, summary, _ = go(task, ragged(), method="scaffold", kernels="graph", workers=workers, rounds=4)
        assert prepared.config.kernels == "graph"
        shas.add(summary.model_sha256)
    assert len(shas) == 1


def test_very_unequal_steps_are_not_padded(task, seen):
    sizes = torch.tensor([120, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    split = Partition("one large", torch.arange(int(offsets[-1])) % 240, offsets, offsets[1:])
    notes, _ = trained(task, split, chunk=12)
    assert "very unequal" in "".join(notes.values())
    assert seen.recorded == 0


def test_a_module_in_a_hook_is_refused():
    with pytest.raises(Unstackable, match="is a Linear"):
        constants(nn.Linear(2, 2))
    assert constants(nn.CrossEntropyLoss()) != constants(nn.MSELoss())


def test_a_worker_keeps_few_recordings(task, seen, monkeypatch):
    monkeypatch.setattr(replay, "_ALL", 1)
    common = {"method": HOOKED, "options": {"kind": "unlike momenta"}}
    _, wanted = trained(task, kernels="plain", **common)
    _, found = trained(task, **common)
    assert seen.recorded > 3  # three kinds, each recorded anew where another one took its place
    assert near(found, wanted) < 1e-6
