"""Ditto, pFedMe, Per-FedAvg, APFL, FedPer, FedRep and FedBN against plain loops over full batches in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from paceline.core.errors import PlanError
from paceline.core.params import Params
from paceline.data import Partition
from paceline.results.model import personal_module
from paceline.run import RunConfig, prepare
from paceline.tasks import Arrays, Task

SIZES = (8, 4, 1)
"""A client with one sample weighs as much as the others where all weigh the same."""

NORMED = (7, 4, 2)
"""Sizes with batch normalisation, which takes no batch of one."""
ROUNDS, LR = 3, 0.2


class Net(nn.Sequential):
    def __init__(self, norm=False):
        norms = [nn.BatchNorm1d(5)] if norm else []
        super().__init__(nn.Linear(4, 5), *norms, nn.Tanh(), nn.Linear(5, 3))


HEAD = ("2.",)
NORM = ("1.",)


def net_task(norm=False):
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(13, 4, generator=generator), torch.arange(13) % 3
    return Task("net", Arrays(x, y), Arrays(x, y), partial(Net, norm), 3, lr=LR, batch_size=50)


def played(method, options, norm=False, **changes):
    offsets = torch.tensor([0, *(NORMED if norm else SIZES)]).cumsum(0)
    split = Partition("by size", torch.arange(13), offsets, offsets[1:].clone())
    values = {"method": method, "options": options, "task": "net", "clients": 3, "cohort": 3, "rounds": ROUNDS}
    run = prepare(RunConfig.build(values | {"vectorize": "off"} | changes), task=net_task(norm), split=split)
    first = {name: p.double().clone() for name, p in run.method.init(run.fed).params.items()}
    whole = {name: p.double().clone() for name, p in run.fed.init_params().items()}
    run.go()
    return run, first, whole


class Vectors(dict):
    """Named tensors with vector arithmetic."""

    def __add__(self, other):
        return Vectors({k: v + other[k] for k, v in self.items()})

    def __sub__(self, other):
        return self + -1.0 * other

    def __rmul__(self, factor):
        return Vectors({k: factor * v for k, v in self.items()})

    def dot(self, other):
        return sum(float((v * other[k]).sum()) for k, v in self.items())


def clients(sizes=SIZES):
    task, start = net_task(), 0
    for size in sizes:
        yield task.train.x[start : start + size].double(), task.train.y[start : start + size]
        start += size


def gradient(w, data):
    x, y = data
    at = {k: v.detach().requires_grad_() for k, v in w.items()}
    found = torch.autograd.grad(F.cross_entropy(functional_call(Net().double(), at, (x,)), y), list(at.values()))
    return Vectors(zip(at, found, strict=True))


def descent(w, data, steps, lr=LR, pull=0.0, to=None, only=None):
    """Return w after steps of SGD, with a proximal term towards `to`; `only` selects tensors that move."""
    for _ in range(steps):
        step = gradient(w, data) + pull * (w - (w if to is None else to))
        w = w - lr * (step if only is None else Vectors({k: v * only(k) for k, v in step.items()}))
    return w


def mean(changes, weights):
    total = sum(weights)
    out = 0.0 * changes[0]
    for change, weight in zip(changes, weights, strict=True):
        out = out + (weight / total) * change
    return out


def agree(params, expected):
    for name, value in expected.items():
        torch.testing.assert_close(params[name].double(), value, rtol=2e-4, atol=2e-6)


def personal(run, client):
    return dict(personal_module(run, client).state_dict())


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_ditto(lam):
    run, w, _ = played("ditto", {"epochs": 2, "personal_epochs": 3, "lam": lam})
    w, own = Vectors(w), {}
    for _ in range(ROUNDS):
        ends = [descent(w, data, 2) for data in clients()]
        own = {c: descent(own.get(c, w), data, 3, pull=lam, to=w) for c, data in enumerate(clients())}
        w = w + mean([end - w for end in ends], SIZES)
    agree(run.state.params, w)
    for client, expected in own.items():
        agree(personal(run, client), expected)


def test_pfedme():
    options = {"epochs": 2, "lr": 0.01, "lam": 10.0, "inner_steps": 3, "inner_lr": 0.04, "personal_epochs": 4, "server_lr": 0.7}
    run, w, _ = played("pfedme", options)
    w = Vectors(w)
    for _ in range(ROUNDS):
        ends = []
        for data in clients():
            at = w
            for _ in range(2):
                at = at - 0.01 * 10.0 * (at - descent(at, data, 3, lr=0.04, pull=10.0, to=at))
            ends.append(at)
        w = w + 0.7 * mean([end - w for end in ends], [1, 1, 1])
    agree(run.state.params, w)
    for client, data in enumerate(clients()):
        agree(personal(run, client), descent(w, data, 4, lr=0.04, pull=10.0, to=w))


@pytest.mark.parametrize("order", ["first", "hessian-free"])
def test_perfedavg(order):
    run, w, _ = played("perfedavg", {"steps": 3, "alpha": 0.3, "order": order, "delta": 0.01, "personal_steps": 2})
    w = Vectors(w)
    for _ in range(ROUNDS):
        ends = []
        for data in clients():
            at = w
            for _ in range(3):
                h = gradient(descent(at, data, 1, lr=0.3), data)
                curved = (1 / 0.02) * (gradient(at + 0.01 * h, data) - gradient(at - 0.01 * h, data))
                at = at - LR * (h - (0.3 if order == "hessian-free" else 0.0) * curved)
            ends.append(at)
        w = w + mean([end - w for end in ends], [1, 1, 1])
    agree(run.state.params, w)
    for client, data in enumerate(clients()):
        agree(personal(run, client), descent(w, data, 2, lr=0.3))


def test_running_statistics_of_perfedavg_are_those_after_both_passes_of_a_step():
    run, _, whole = played("perfedavg", {"steps": 2, "alpha": 0.3}, norm=True)
    names = [name for name in whole if "running" not in name]
    for _ in range(ROUNDS):
        ends = []
        for x, y in clients(NORMED):
            module, at = Net(norm=True).double(), dict(whole)
            for _ in range(2):
                module.load_state_dict({**at, "1.num_batches_tracked": torch.tensor(0)})
                for rate in (0.3, LR):  # the adaptation, and the step at the adapted model
                    module.zero_grad()
                    F.cross_entropy(module(x), y).backward()
                    with torch.no_grad():
                        for p in module.parameters():
                            p -= rate * p.grad
                    if rate == 0.3:
                        v = {k: t.detach().clone() for k, t in module.state_dict().items()}
                end = module.state_dict()
                at = {k: at[k] + end[k].detach() - v[k] if k in names else end[k].detach().clone() for k in whole}
            ends.append(at)
        whole = {k: sum(end[k] for end in ends) / 3 for k in whole}
    agree(run.state.params, whole)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("vectorize", ["off", "on"])
def test_apfl(adaptive, vectorize):
    run, w, _ = played("apfl", {"steps": 3, "alpha": 0.3, "adaptive": adaptive}, vectorize=vectorize)
    w, own, alpha = Vectors(w), {}, dict.fromkeys(range(3), 0.3)
    for _ in range(ROUNDS):
        ends = []
        for c, data in enumerate(clients()):
            at, v = w, own.get(c, w)
            for step in range(3):
                g = gradient(alpha[c] * v + (1 - alpha[c]) * at, data)
                if adaptive and step == 0:
                    alpha[c] = min(max(alpha[c] - LR * (v - at).dot(g), 0.0), 1.0)
                v = v - LR * alpha[c] * g
                at = descent(at, data, 1)
            own[c] = v
            ends.append(at)
        w = w + mean([end - w for end in ends], [1, 1, 1])
    agree(run.state.params, w)
    for c in range(3):
        agree(personal(run, c), alpha[c] * own[c] + (1 - alpha[c]) * w)
        assert float(run.store[c]["alpha"]) == pytest.approx(alpha[c], abs=1e-5)
    assert not adaptive or len({round(a, 3) for a in alpha.values()}) > 1


@pytest.mark.parametrize(("slope", "end"), [(5.0, 1.0), (-5.0, 0.0)])
def test_the_share_of_apfl_is_between_zero_and_one(monkeypatch, slope, end):
    monkeypatch.setattr(Params, "dot", lambda self, other: self.vector.new_tensor(slope))
    run, _, _ = played("apfl", {"steps": 2, "alpha": 0.3})
    assert {float(run.store[c]["alpha"]) for c in range(3)} == {end}


@pytest.mark.parametrize("method", ["fedper", "fedrep"])
@pytest.mark.parametrize("vectorize", ["off", "on"])
def test_heads_stay_on_their_clients(method, vectorize):
    options = {"epochs": 2} | ({"head_epochs": 3} if method == "fedrep" else {})
    run, body, whole = played(method, options, vectorize=vectorize)
    assert set(body) == {"0.weight", "0.bias"}
    body, heads = Vectors(body), [Vectors({k: whole[k] for k in ("2.weight", "2.bias")})] * 3
    is_head = lambda name: float(name.startswith(HEAD))  # noqa: E731
    for _ in range(ROUNDS):
        ends = []
        for c, data in enumerate(clients()):
            at = Vectors(body | heads[c])
            if method == "fedrep":
                at = descent(at, data, 3, only=is_head)
                at = descent(at, data, 2, only=lambda name: 1 - is_head(name))
            else:
                at = descent(at, data, 2)
            heads[c] = Vectors({k: at[k] for k in heads[c]})
            ends.append(Vectors({k: at[k] for k in body}))
        body = body + mean([end - body for end in ends], SIZES if method == "fedper" else [1, 1, 1])
    agree(run.state.params, body)
    for c in range(3):
        agree(personal(run, c), body | heads[c])


def test_batch_normalisation_stays_on_its_client():
    run, shared, whole = played("fedbn", {"epochs": 2}, norm=True)
    own = set(whole) - set(shared)
    assert own == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    at = [dict(whole) for _ in SIZES]
    for _ in range(ROUNDS):
        ends = []
        for c, (x, y) in enumerate(clients(NORMED)):
            module = Net(norm=True).double()
            module.load_state_dict({**at[c], **shared, "1.num_batches_tracked": torch.tensor(0)})
            optimizer = torch.optim.SGD(module.parameters(), LR)
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(module(x), y).backward()
                optimizer.step()
            ends.append({k: v.detach().clone() for k, v in module.state_dict().items()})
            at[c] = {k: ends[c][k] for k in own}
        shared = {k: sum(end[k] for end in ends) / 3 for k in shared}
    agree(run.state.params, shared)
    for c in range(3):
        agree(personal(run, c), shared | at[c])


def test_clients_with_layers_of_their_own_weigh_the_same_in_the_others():
    run, shared, whole = played("fedbn", {"epochs": 2, "layers": ("2",)})
    shared, heads = Vectors(shared), [{k: v for k, v in whole.items() if k.startswith(HEAD)}] * 3
    for _ in range(ROUNDS):
        ends = [descent(Vectors(shared | heads[c]), data, 2) for c, data in enumerate(clients())]
        heads = [{k: end[k] for k in heads[0]} for end in ends]
        shared = Vectors({k: sum(end[k] for end in ends) / 3 for k in shared})
    agree(run.state.params, shared)


def test_models_that_have_no_such_part_are_refused():
    with pytest.raises(PlanError, match="batch normalisation"):
        played("fedbn", {})


SUITED = {
    "pfedme": {"lr": 0.5, "lam": 2.0, "inner_lr": 0.2, "inner_steps": 2, "personal_epochs": 5},
    "perfedavg": {"alpha": 0.2, "personal_steps": 5},
}


@pytest.fixture(scope="module")
def of_the_global_model():
    return end_of("fedavg", {})


def end_of(method, options, **changes):
    """Return the mean accuracy of clients of two digits each."""
    options = {"lr": 0.05, "batch_size": 20} | options
    values = {"method": method, "options": options, "task": "digits", "partition": "shards:2", "clients": 10, "cohort": 10}
    return prepare(RunConfig.build(values | {"rounds": 5, "evaluation": "clients"} | changes)).go().history[-1]["client_accuracy"]


@pytest.mark.slow  # a minute for six methods
@pytest.mark.parametrize("method", ["ditto", "pfedme", "perfedavg", "apfl", "fedper", "fedrep"])
def test_personal_models_suit_clients_of_few_classes_better_with_and_without_masks(of_the_global_model, method):
    options = SUITED.get(method, {})
    plain, masked = end_of(method, options), end_of(method, options, aggregation="secure-arithmetic")
    assert plain > of_the_global_model + 0.1
    assert masked == pytest.approx(plain, abs=0.05)
