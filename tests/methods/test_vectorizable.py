"""Every method that says `vectorizable` trains stacked clients to the same result as one client after the other."""

import warnings
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn

from paceline.core.client import Hooks
from paceline.core.method import on_client
from paceline.core.tree import map_leaves
from paceline.core.update import Update
from paceline.data import Partition
from paceline.engines.stacking import Solver
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.registry import find_method, method_names
from paceline.run import RunConfig, StackingWarning, prepare
from paceline.tasks import Arrays, Task
from tests.conftest import make_task

from .small import SMALL

SIZES = [10, 0, 1, 23, 10, 37, 10, 24, 5, 20, 10, 30]
"""Samples of the clients: equal ones, an empty client, a single sample; batches are of 10."""

OPTIONS = {
    "autoflip": [
        {"explore_epochs": 2, "epochs": 1, "server_momentum": 0.0, "lr": 0.05, "optimizer": "sgd", "prune": 0.5},
        {
            "explore_epochs": 2,
            "patience": 1,
            "epochs": 1,
            "mask_update": "agreement",
            "every": 2,
            "server_momentum": 0.0,
            "prune": 0.0,
        },
    ],
    "bulyan": [{"byzantine": 0.1}],
    "clip": [{"warmup": 1}, {"warmup": 1, "merge": "masked"}],
    "dropstragglers": [{"warmup": 1}],
    "fal": [{"steps": 3, "attack_steps": 2}, {"steps": 3, "adversary": "fgsm", "attack_on": "global", "clean": 0.5}],
    "fedavg": [{}, {"epochs": 2, "momentum": 0.9, "weight_decay": 0.01}, {"batch_size": 50}],
    "fedbn": [{"layers": ("0",)}],
    "fedconv": [SMALL["fedconv"]],
    "fedins": [{"epochs": 1}, {"epochs": 1, "members": 5, "selected": 2, "mask_unused": True, "match": 0.5}],
    "fedka": [{"steps": 3, "batch_size": 10, "align": "adversarial"}, {"steps": 3, "align": "matching", "voting": False}],
    "fedld": [{}],
    "fedlex": [{"explore_epochs": 2, "epochs": 1}, {"explore_epochs": 2, "patience": 1, "epochs": 1, "optimizer": "sgd"}],
    "fedloge": [{"frame_steps": 20, "epochs": 2, "batch_size": 10}],
    "fednova": [{"epochs": 2}, {"epochs": 2, "mu": 0.1}, {"epochs": 2, "momentum": 0.9}],
    "perfedavg": [{"steps": 2}, {"steps": 2, "order": "hessian-free"}],
    "fedbuff": [{"buffer": 4}, {"buffer": 4, "weigh": "unbiased"}],
    "fedd2s": [{"samples": 20, "least": 1, "period": 1}, {"knowledge": "classes"}],
    "fedgela": [{"epochs": 2}, {"epochs": 2, "feature_norm": "l2"}],
    "fedghsum": [{"form": "gradient"}, {"form": "prototypes"}],
    "fedprox": [{"mu": 0.1}],
    "fedre": [{"batch_size": 10, "views": 2}],
    "fedresum": [{"batch_size": 10}, {"batch_size": 10, "mix_over": "samples"}],
    "fjord": [{"warmup": 1}, {"warmup": 1, "nested": True}],
    "fluid": [{"warmup": 1}],
    "fot": [{"rounds_per_task": 2}],
    "fraug": [{"steps": 3, "transform_lr": 0.005}, {"steps": 3, "batch_size": 10, "interpolate": True, "transform_distance": "l2"}],
    "franca": [{**SMALL["franca"]}, {**SMALL["franca"], "teacher": "server", "heads": "local", "balance": "centering"}],
    "frl": [{"batch_size": 20}],
    "frlchecked": [{"batch_size": 20}],
    "heterofl": [{"warmup": 1}, {"warmup": 1, "rescale": False}],
    "madaug": [{"period": 2, "batch_size": 10}, {"period": 2, "batch_size": 10, "policy": "local", "order": "first", "scale": 0.0}],
    "ocfl": [{}, {"sketch": 16}],
    "pfedpg": [{"tokens": 2, "epochs": 1, "clip": 1.0}],
    "pfedpgsum": [{"tokens": 2, "epochs": 1, "descriptor": "vector"}],
    "randomdropout": [{"warmup": 1, "merge": "unbiased"}, {"warmup": 1, "merge": "stale"}],
    "saliency": [{"warmup": 1, "every": 2}],
    "semaug": [{"share": 0.7}],
    "scaffoldm": [{}, {"start": "gradients", "weight_decay": 0.01}],
}
"""Options that suit a small run, and those that change what a client computes; none means the defaults."""

ONE_BY_ONE = {"fedlgd", "fedzo", "fzoos"}
"""Methods that do not claim it, each with its reason in the docstring."""

CLAIMED = [(name, options) for name in method_names() if find_method(name).vectorizable for options in OPTIONS.get(name, [{}])]


def split(sizes):
    ends = torch.tensor(sizes).cumsum(0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
    return Partition("ragged", torch.arange(int(ends[-1])) % 240, offsets, ends)


def carry_out(task, method, options, **changes):
    values = {"method": method, "options": options, "task": "blobs", "clients": 12, "cohort": 10, "rounds": 3, "eval_every": 3}
    values |= {"fleet": "stragglers", "vectorize": "on", "chunk": 5}
    prepared = prepare(RunConfig.build(values | changes), task=task, split=split(SIZES))
    return prepared, prepared.go()


def tensors(tree):
    """Return the tensors of a tree, in its order."""
    found = []
    map_leaves(lambda tensor: found.append(tensor) or tensor, tree)
    return found


def apart(one, other, model):
    """Return the largest relative distance of two trees' tensors; NaN (not known) must be in the same places.

    Differences of models are known no better than models are: tensors count as a tenth of the `model` at least.
    """
    largest = 0.0
    for a, b in zip(tensors(one), tensors(other), strict=True):
        if a.is_floating_point():
            assert a.isnan().equal(b.isnan())
            a, b = a.nan_to_num(), b.nan_to_num()
            largest = max(largest, float((a - b).norm() / max(a.norm(), 0.1 * model)))
        else:
            assert a.equal(b)
    return largest


@pytest.fixture
def stacks(monkeypatch):
    """Return a list that grows by the number of clients of each stack that was solved."""
    sizes, whole = [], Solver._whole

    def counted(self, key, jobs, still):
        solved = whole(self, key, jobs, still)
        sizes.extend([] if solved is None else [len(jobs)])
        return solved

    monkeypatch.setattr(Solver, "_whole", counted)
    return sizes


def agrees(task, stacks, method, options):
    """Assert that a method's clients are stacked, and that this changes neither results nor bytes nor times."""
    alone, one = carry_out(task, method, options, vectorize="off", chunk=1)
    assert stacks == []
    together, many = carry_out(task, method, options)
    assert together.fed.engine.notes == {}
    assert sum(stacks) >= 9, "clients trained one at a time and nobody said so"
    vectors = [p.method.model(p.state).vector for p in (alone, together)]
    model = float(vectors[0].norm())
    assert model > 0
    assert float((vectors[0] - vectors[1]).norm()) / model < 1e-5
    assert apart(alone.state, together.state, model) < 1e-5
    kept = [p.fed.engine.memories for p in (alone, together)]
    assert set(kept[0]) == set(kept[1])
    assert all(apart(kept[0][client], kept[1][client], model) < 1e-5 for client in kept[0])
    assert (many.accuracy, many.bytes_up, many.bytes_down) == (
        pytest.approx(one.accuracy, nan_ok=True),
        one.bytes_up,
        one.bytes_down,
    )
    assert many.total_seconds == pytest.approx(one.total_seconds)


def reported(value):
    options = ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
    return options or "defaults"


@pytest.mark.parametrize(("method", "options"), CLAIMED, ids=reported)
def test_a_method_that_claims_it_agrees_on_ragged_clients(task, stacks, method, options):
    agrees(task, stacks, method, options)


def test_the_methods_that_do_not_claim_it_are_known():
    assert {name for name in method_names() if not find_method(name).vectorizable} == ONE_BY_ONE
    assert all("one at a time" in " ".join((find_method(name).__doc__ or "").split()) for name in ONE_BY_ONE)


@dataclass(frozen=True)
class Unfounded(FedAvg):
    """Claims it and should not."""

    kind: str = "branch"

    @on_client
    def train(self, client, message):
        steps = [0]

        def branch(grad, at):
            return grad * 2.0 if grad.norm() > 1.0 else grad

        def counting(grad, at):
            steps[0] += 1
            return grad / steps[0]

        hook = {"branch": branch, "counting": counting}.get(self.kind)
        local = client.sgd(message, hooks=Hooks(correct=hook), epochs=2, alone=self.kind == "alone")
        return Update(delta=local.params - message, weight=client.num_samples)


@pytest.mark.parametrize(
    ("kind", "reported"),
    [("branch", "branches on a tensor's value"), ("counting", "< 1e-05"), ("alone", "prepared for one client")],
)
def test_an_unfounded_claim_is_found_out(task, stacks, kind, reported):
    warnings.simplefilter("ignore", StackingWarning)
    with pytest.raises(AssertionError, match=reported):
        agrees(task, stacks, f"{__name__}:Unfounded", {"kind": kind})


def text_task():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 9, (240, 6), generator=generator), torch.randint(0, 4, (240,), generator=generator)
    return Task("texts", Arrays(x, y), Arrays(x[:80], y[:80]), Reading, 4, lr=0.2, batch_size=10)


class Reading(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.cells, self.head = nn.Embedding(9, 6), nn.GRU(6, 8, 2, dropout=0.2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.cells(self.embed(x))[0].mean(1))


def normed():
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


def normed_task(buffers="average"):
    return replace(make_task(model=normed), buffers=buffers)


MODELS = {
    "batchnorm": normed_task,
    "local statistics": partial(normed_task, "local"),
    "recomputed": partial(normed_task, "recompute"),
    "gru": text_task,
}

PAIRS = [(method, model) for method in ("fedavg", "scaffold", "clip") for model in MODELS] + [("fedspeed", "local statistics")]


@pytest.mark.parametrize(("method", "model"), PAIRS)
def test_methods_agree_on_models_with_statistics_random_masks_and_recurrence(stacks, model, method):
    agrees(MODELS[model](), stacks, method, {"warmup": 1} if method == "clip" else {})


@pytest.mark.parametrize("method", ["heterofl", "fjord"])
def test_rescaled_sub_models_of_equal_width_are_stacked(stacks, task, method):
    agrees(task, stacks, method, {"warmup": 1, "rescale": True})


@pytest.mark.parametrize("buffers", ["average", "local"])
def test_statistics_are_the_same_bits_for_any_number_of_workers(buffers):
    shas = {carry_out(normed_task(buffers), "fedavg", {}, workers=w)[1].model_sha256 for w in (1, 2)}
    assert len(shas) == 1


def test_stragglers_of_equal_width_are_trained_in_one_stack(task, monkeypatch):
    widths, together = [[]], Solver._together

    def recorded(self, key, jobs):
        widths[-1].append(jobs[0].model.layout.size)
        return together(self, key, jobs)

    monkeypatch.setattr(Solver, "_together", recorded)
    values = {"method": "clip", "options": {"warmup": 1, "straggler_share": 0.4}, "task": "blobs", "clients": 12, "cohort": 12}
    values |= {"fleet": "stragglers:share=0.35,slow=4", "vectorize": "on", "chunk": 4, "rounds": 4, "eval_every": 4}
    prepared = prepare(RunConfig.build(values), task=task, split=split(SIZES), observer=lambda *_: widths.append([]))
    prepared.go()
    full = prepared.fed.engine.here.model.layout.size
    small = [[size for size in stacks if size < full] for stacks in widths]
    assert [len(stacks) for stacks in small] == [0, 4, 1, 1, 0], "from round 3 on the widths of round 2 are known"
