"""One seed, one result: whatever draws from global random generators, and wherever it runs."""

import random
import warnings
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paceline.core.layout import Layout
from paceline.core.method import on_client
from paceline.core.params import Params, Resident
from paceline.core.samples import ClientData
from paceline.core.update import Update
from paceline.engines.stacking.layers import traits_of
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import RunConfig, StackingWarning, prepare, resume
from paceline.store import RunFolder
from tests.conftest import make_task, small_mlp


class Drawing(nn.Module):
    """An MLP whose inputs go through something that draws."""

    def __init__(self, noise):
        super().__init__()
        self.noise, self.net = noise, small_mlp()

    def forward(self, x):
        return self.net(self.noise(self, x))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend, self.net = nn.MultiheadAttention(12, 2, dropout=0.5, batch_first=True), small_mlp()

    def forward(self, x):
        return self.net(self.attend(x[:, None], x[:, None], x[:, None], need_weights=False)[0][:, 0])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.net = nn.GRU(12, 12, 2, dropout=0.5, batch_first=True), small_mlp()

    def forward(self, x):
        return self.net(self.cells(x[:, None])[0][:, 0])


class Begun(nn.Module):
    """Its weights are drawn by numpy."""

    def __init__(self):
        super().__init__()
        self.net = small_mlp()
        with torch.no_grad():
            self.net[0].weight.copy_(torch.from_numpy(np.random.randn(16, 12)).float() * 0.1)

    def forward(self, x):
        return self.net(x)


def seldom(module, x):
    """Draw where the batch is a large one: not for an example of two rows, and torch.func notices nothing."""
    return x * (0.5 + np.random.rand()) if module.training and len(x) > 2 else x


NOISES = {
    "function": lambda m, x: F.dropout(x, 0.5, m.training),
    "always": lambda m, x: F.dropout(x, 0.5),  # in evaluation too
    "rrelu": lambda m, x: F.rrelu(x, training=m.training),
    "depth": lambda m, x: x if not m.training or torch.rand(()) < 0.5 else 2 * x,
    "python": lambda m, x: x * random.uniform(0.5, 1.5),
    "numpy": lambda m, x: x + np.float32(np.random.randn()),
    "seldom": seldom,
}
MODELS = {name: partial(Drawing, noise) for name, noise in NOISES.items()} | {
    "attention": Attention, "gru": Recurrent, "begun": Begun, "module": lambda: nn.Sequential(nn.Dropout(0.3), small_mlp()),
}  # fmt: skip


STACKED = {"function", "always", "rrelu", "attention", "gru", "begun", "module"}
"""Models whose clients are stacked, and so agree to float tolerance; those of the others train alone."""


def bits(task, folder=None, **changes):
    values = {"task": "blobs", "clients": 7, "cohort": 6, "rounds": 2, "vectorize": "off", "evaluation": "federated", **changes}
    values.setdefault("method", "fedavg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StackingWarning)
        summary = prepare(RunConfig.build(values), task=task, folder=folder).go()
    return summary.model_sha256, round(summary.loss, 4)


def others_draw(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


WAYS = (
    {"workers": 2},
    {"engine": "debug"},
    {"vectorize": "on", "chunk": 2},
    {"vectorize": "on", "chunk": 3, "workers": 2},
    {"vectorize": "on", "chunk": 6, "one_step": False},
)


@pytest.mark.parametrize("batch", [10, 50])
@pytest.mark.parametrize("model", MODELS)
def test_models_that_draw_give_the_same_bits_wherever_they_run(model, batch):
    task = make_task(model=MODELS[model])
    options = {"batch_size": batch}  # 50: one step on all samples
    others_draw(1)
    first = bits(task, options=options)
    others_draw(2)
    assert bits(task, options=options) == first
    for way in WAYS:
        if model in STACKED and "chunk" in way:
            assert bits(task, options=options, **way)[1] == pytest.approx(first[1], abs=2e-4), way
        else:
            assert bits(task, options=options, **way) == first, way
    assert bits(task, options=options, seed=1)[0] != first[0]


def test_central_evaluation_of_a_model_that_draws_in_it_is_the_same_with_any_workers():
    task = make_task(model=MODELS["always"])
    assert len({bits(task, evaluation="central", workers=w) for w in (1, 1, 2)}) == 1


def test_clients_do_not_draw_the_same():
    seen = []

    def noise(module, x):
        if module.training:
            seen.append((float(torch.rand(())), random.random(), np.random.rand()))
        return x

    bits(make_task(model=partial(Drawing, noise)), options={"batch_size": 50}, evaluation="central")
    seen = seen[-12:]  # two rounds of six clients, one step each
    assert all(len({s[k] for s in seen}) == 12 for k in range(3))


@dataclass(frozen=True)
class Noisy(FedAvg):
    """Draws from global generators at every place where a method has code."""

    def init(self, fed):
        state = super().init(fed)
        return replace(state, params=state.params + torch.randn(()) * 0.01)

    @on_client
    def train(self, client, message):
        noise = 0.01 * torch.randn(()) + 0.01 * random.random()
        local = client.sgd(message + noise, batch_size=50)
        after = 0.01 * torch.randn(()) + 0.01 * np.random.rand()
        slope = client.gradient(local.params)
        return Update(delta=local.params - message + after - slope * 0.01, weight=client.num_samples)

    def round(self, fed, state):
        state = super().round(fed, state)
        return replace(state, params=state.params + 0.01 * float(torch.rand(())))


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic"])
def test_methods_that_draw_give_the_same_bits_wherever_they_run(aggregation):
    task = make_task(model=MODELS["function"])
    common = {"method": f"{__name__}:Noisy", "aggregation": aggregation}
    others_draw(1)
    first = bits(task, **common)
    others_draw(2)
    assert bits(task, **common) == first
    for way in WAYS:
        if "chunk" in way:  # stacked
            assert bits(task, **common, **way)[1] == pytest.approx(first[1], abs=2e-4), way
        else:
            assert bits(task, **common, **way) == first, way


def test_masks_change_no_stream_that_a_method_draws_from():
    """The protocol's own calls in between move neither the server's nor the clients' streams."""
    task, common = make_task(model=MODELS["function"]), {"method": f"{__name__}:Noisy"}
    assert bits(task, **common, aggregation="secure") == bits(task, **common, aggregation="secure-arithmetic")


def test_a_stacked_function_that_draws_itself_is_not_run_once_for_all():
    common = {"method": f"{__name__}:Noisy"}
    alone = bits(make_task(), **common)[1]
    assert bits(make_task(), **common, vectorize="on", chunk=3)[1] == pytest.approx(alone, rel=1e-3)


def test_resumed_and_undisturbed_runs_agree(tmp_path):
    task = make_task(model=MODELS["function"])
    common = {"method": f"{__name__}:Noisy", "rounds": 4}
    whole = bits(task, **common)[0]
    folder = RunFolder.create(tmp_path, "r")

    class Enough(Exception):
        pass

    def stop(record, total):
        if record["round"] == 2:
            raise Enough

    values = {"task": "blobs", "clients": 7, "cohort": 6, "vectorize": "off", "evaluation": "federated", **common}
    prepared = prepare(RunConfig.build(values), task=task, folder=folder, observer=stop)
    folder.write_config(prepared.config.model_dump(exclude_none=True))
    with pytest.raises(Enough):
        prepared.go()
    others_draw(3)
    assert resume(folder.path, task=task).model_sha256 == whole


@pytest.mark.parametrize("way", [{}, {"vectorize": "on", "chunk": 3}, {"vectorize": "auto"}])
def test_the_caller_s_own_streams_go_on_undisturbed(way):
    def states():
        _, keys, *rest = np.random.get_state()
        return torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), rest

    others_draw(4)
    np.random.randn()  # half of a pair is kept
    before = states()
    bits(make_task(model=MODELS["always"]), method=f"{__name__}:Noisy", **way)
    assert states() == before


def test_a_model_that_draws_outside_of_torch_is_not_stacked_and_others_are():
    def asked(build):
        with warnings.catch_warnings(record=True) as logged:
            warnings.simplefilter("always")
            values = {"method": "fedavg", "task": "blobs", "clients": 6, "cohort": 6, "rounds": 1, "vectorize": "on", "chunk": 3}
            prepare(RunConfig.build(values), task=make_task(model=build)).go()
        return [str(w.message) for w in logged if w.category is StackingWarning]

    for build in (small_mlp, *(MODELS[name] for name in sorted(STACKED))):
        assert asked(build) == []
    for name in ("depth", "python", "numpy", "seldom"):
        (logged,) = asked(MODELS[name])
        assert ("branches on a tensor's value" if name == "depth" else "draws random numbers") in logged
        assert "one at a time" in logged


def two(x):
    return ClientData(x, torch.zeros(2, dtype=torch.int64), torch.arange(2))


def test_looking_whether_a_model_draws_leaves_it_as_it_was():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_mlp()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += 1
            return self.net(x)

    module = Counting()
    resident = Resident(module, Layout.of(module))
    before, state = Params.of(module, resident.layout).sha256(), torch.get_rng_state()
    assert traits_of(resident, two(torch.randn(2, 12))).changing == ("seen",)
    assert resident.snapshot().sha256() == before
    torch.randn(2, 12)
    drawn = Resident(Drawing(NOISES["rrelu"]), Layout.of(Drawing(NOISES["rrelu"])))
    state = torch.get_rng_state()
    assert traits_of(drawn, two(torch.ones(2, 12) * -1)).exact
    assert torch.get_rng_state().equal(state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_s_generator_is_the_client_s_too():
    task = make_task(model=MODELS["function"])
    torch.cuda.manual_seed(1)
    first = bits(task, device="cuda")
    torch.cuda.manual_seed(2)
    state = torch.cuda.get_rng_state()
    assert bits(task, device="cuda") == first
    assert bits(task, device="cuda", vectorize="on", chunk=3) == first
    assert torch.cuda.get_rng_state().equal(state)
