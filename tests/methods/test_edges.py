"""Every method at the edges: lost replies, clients without samples or without a class, unequal clients, BatchNorm.

Where a method minimises the mean of the clients' losses, quadratics of equal curvature show whether it still reaches the
optimum, the mean of the clients' own. These lie symmetrically, so that medians and Krum's choice are at the same place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass

import numpy as np
import pytest
import torch
from torch import nn

from paceline.core.client import Client
from paceline.core.errors import DataError
from paceline.core.params import Params
from paceline.core.random import numpy_rng
from paceline.data import Partition
from paceline.devices import Fleet, Profile
from paceline.engines.worker import Worker
from paceline.registry import find_method
from paceline.run import RunConfig, prepare
from tests.conftest import make_task

from .forms import fitted
from .quadratics import by_size, play, quadratics
from .test_every_method import NAMES, NEEDS_EACH, SMALL

OPTIMA = 0.25 * np.array([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
START = 1.25
WITHIN = 1e-3

QUICK = {"lr": 0.5}
MOMENTA = {"lr": 0.4, "beta": 0.7}
ASYNCHRONOUS = {"lr": 0.3, "steps": 1, "momentum": 0.0}
ANARCHIC = {"lr": 0.4, "most_steps": 1, "returns": 8}
RULE = {"lr": 0.5, "byzantine": 0.0}
MEMORIES = {"lr": 0.5, "steps": 1, "epochs": None}
EXPLORED = QUICK | {"explore_epochs": 1, "epochs": 1, "optimizer": "sgd", "lr_decay": 1.0, "server_momentum": 0.3}

OPTIONS = {
    **dict.fromkeys(NAMES, QUICK),
    **dict.fromkeys(["bulyan", "krum", "meamed", "multikrum", "phocas"], RULE),
    "afacd": ANARCHIC,
    "afacs": ANARCHIC | {"server_lr": 0.4},
    "afacstable": ANARCHIC | {"server_lr": 0.4},
    "apfl": QUICK | {"steps": 1},
    "autoflip": EXPLORED | {"prune": 0.0},
    "dropstragglers": QUICK | {"warmup": 1000},
    "fal": QUICK | {"adversary": "none"},
    "fedagain": QUICK | {"rule": "equal", "optimizer": "sgd", "epochs": 1},
    "fedamd": {"lr": 0.3, "steps": 3, "period": 2},
    "fedavgm": MOMENTA,
    "fedavgmvr": MOMENTA,
    "fedbuff": ASYNCHRONOUS | {"buffer": 8},
    "feddyn": QUICK | {"alpha": 0.5},
    "fedfix": ASYNCHRONOUS | {"period": 1.0},
    "fedlex": EXPLORED,
    "fedopt": QUICK | {"optimizer": "momentum", "server_lr": 0.3, "beta1": 0.5},
    "fedspeed": {"lr": 0.5, "epochs": 1, "lr_decay": 1.0, "weight_decay": 0.0, "radius": 0.0, "clip": None},
    "fedstale": MEMORIES | {"beta": 0.8, "cutoff": 1},
    "fedstaletable": MEMORIES | {"beta": 0.8, "cutoff": 1},
    "fedau": MEMORIES | {"cutoff": 1},
    "fedvarp": MEMORIES,
    "mifa": MEMORIES | {"lr": 0.25},
    "ocfl": QUICK | {"epochs": 1, "patience": 1000},
    "perfedavg": QUICK | {"steps": 1, "alpha": 0.1},
    "pfedme": {"lr": 0.4, "lam": 4.0, "inner_lr": 0.2, "inner_steps": 5},
    "scaffoldm": MOMENTA,
    "scaffoldmvr": MOMENTA,
}
"""Options with which 40 rounds are enough."""

NO_COMMON_OPTIMUM = {
    "fedagainsum": "weights clients by their losses",
    "fedasync": "steps along one client's update, so it stays in motion",
    "clip": "needs units that can be dropped",
    "fedbabu": "needs a head",
    "fedbn": "has no normalisation",
    "fedconv": "needs units that can be dropped",
    "fedd2s": "has a model of each client's own",
    "fedd2ssum": "has a model of each client's own",
    "fedgela": "has no parameters that are not layers",
    "fedgh": "has a model of each client's own",
    "fedghsum": "has a model of each client's own",
    "fedins": "needs a head",
    "fedit": "needs linear layers",
    "fedpeft": "needs a head",
    "fedka": "asks for classes",
    "fedld": "asks for classes",
    "fedldsum": "asks for classes",
    "fedloge": "needs a head",
    "fedlgd": "asks for classes",
    "fedper": "needs a head",
    "fedproto": "has a model of each client's own",
    "fedre": "has a model of each client's own",
    "fedrep": "needs a head",
    "fedresum": "has a model of each client's own",
    "fedsa": "has a model of each client's own",
    "fedzo": "asks for classes",
    "fjord": "needs units that can be dropped",
    "flag": "takes steps of a fixed length",
    "fluid": "needs units that can be dropped",
    "fraug": "asks for classes",
    "franca": "needs a head",
    "frl": "trains no weights",
    "frlchecked": "trains no weights",
    "fzoos": "asks for classes",
    "heterofl": "needs units that can be dropped",
    "localonly": "has a model of each client's own",
    "localtuning": "needs linear layers",
    "madaug": "needs pictures",
    "moon": "needs a head",
    "pfedpg": "needs a vision transformer",
    "pfedpgsum": "needs a vision transformer",
    "randomdropout": "needs units that can be dropped",
    "saliency": "needs units that can be dropped",
    "semaug": "needs scenes",
}
EXACT = [name for name in NAMES if name not in NO_COMMON_OPTIMUM]


def at_optimum(name, task, rounds=40, **values):
    """Return the distance to the optimum at the end."""
    *_, (w, _, _) = play(task, name, rounds, options=OPTIONS[name], **values)
    return float(np.abs(w).max())


# -- lost replies --------------------------------------------------------------------------------------
LOSSY = 15
"""Rounds in which replies are lost; afterwards none is."""


def is_lost(client, round):
    return round <= LOSSY and client in numpy_rng(3, "lost", round).choice(len(OPTIMA), 2, replace=False)


@dataclass(frozen=True)
class Unsteady(Fleet):
    """Devices that are far too slow in some rounds."""

    def profile(self, client, round):
        return Profile(latency=1000.0 if is_lost(client, round) else 0.01)


def summed(name):
    """Return the case of a sum that hides replies; it is quick enough for methods that store something on clients."""
    return pytest.param(name, "secure-arithmetic", marks=[pytest.mark.slow] * (find_method(name).client_state == "nothing"))


@pytest.mark.parametrize(
    ("name", "aggregation"),
    [(n, "plain") for n in EXACT] + [summed(n) for n in EXACT if n not in NEEDS_EACH],
)
def test_replies_that_come_too_late_leave_nothing_behind(name, aggregation):
    """The client trained and cannot know that it was not counted."""
    values = {
        "fleet": f"{__name__}:Unsteady",
        "deadline": 100.0,
        "aggregation": aggregation,
        "secure": {"gamma": 0.0, "bits": 24, "clip": 16.0},
    }
    assert at_optimum(name, quadratics(OPTIMA, start=START), **values) < WITHIN


@pytest.mark.parametrize("name", EXACT)
def test_failures_after_training_leave_nothing_behind(name, monkeypatch):
    """The function of some clients fails when it has done all its work, in any of a round's calls."""
    invoke, failed = Worker.invoke, []

    def failing(self, me, function, message):
        reply = invoke(self, me, function, message)
        if isinstance(me, Client) and function != "count" and is_lost(me.id, me.round):
            failed.append(me.id)
            raise DataError("it fails at the end")
        return reply

    monkeypatch.setattr(Worker, "invoke", failing)
    assert at_optimum(name, quadratics(OPTIMA, start=START), on_error="drop") < WITHIN
    assert len(failed) > 5


# -- unequal clients -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", EXACT)
def test_a_client_without_samples_does_not_move_the_optimum(name):
    task, split = quadratics(OPTIMA, start=START, samples=2), by_size([2, 2, 2, 0, 2, 2, 2, 2])
    assert at_optimum(name, task, split=split) < WITHIN


IN_THE_POPULATION = {
    **dict.fromkeys(["afacd", "afacs", "afacstable", "fedasync", "fedbuff", "fedfix"], "jobs of others start at other times"),
    **dict.fromkeys(["fedamd", "fedau", "fedvarp", "mifa", "scaffold", "scaffoldm", "scaffoldmvr"], "means are over all clients"),
    **dict.fromkeys(["feddyn", "fedspeed"], "means of duals are over all clients"),
    **dict.fromkeys(["fedzo", "fzoos"], "their objective is 0"),
}
"""Methods in which a client without samples counts, although it does not move the optimum."""


CONTROLLED = ["scaffold", "scaffoldm"]
"""Methods whose controls, but not whose steps, are means over the population: in the first round all controls are alike."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IN_THE_POPULATION or name in CONTROLLED])
def test_with_clients_without_samples_the_others_train_as_without_them(name):
    ends, rounds = [], 1 if name in CONTROLLED else 2
    for empty in (0, 2):
        sizes, options = [*SIZES, *[0] * empty], options_of(name, byzantine=0.0)
        made = small(
            name, clients=len(sizes), cohort=len(sizes), rounds=rounds, options=options, vectorize="off", fleet="homogeneous"
        )
        run = prepare(made, task=fitted(name, make_task()), split=by_size(sizes))
        run.go()
        ends.append(run.method.model(run.state).vector)
    torch.testing.assert_close(*ends, atol=1e-6, rtol=1e-6)


SIZES = [40, 12, 30, 8, 21, 45, 33, 51]
"""Samples of eight clients; with batches of 10 they take from 1 to 6 steps, and some last batches hold one sample."""


def norm_mlp():
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def small(name, **values):
    common = {"method": name, "options": SMALL.get(name, {}), "clients": 8, "cohort": 8, "rounds": 3, "task": "blobs"}
    return RunConfig.build(common | {"fleet": "stragglers"} | values)


# -- running statistics --------------------------------------------------------------------------------
BY_SAMPLES = (
    "autoflip clip dropstragglers fedavg fedavgm fedavgmvr fedgela fedldsum fedlex fedloge fednova fedopt fedprox finetuned ditto"
)
BY_SAMPLES += " fedbabu fedper fjord fluid heterofl heterogeneityreport madaug moon randomdropout saliency"
UNIFORM = (
    "afacd afacs afacstable fal fedagain fedau fedbuff feddyn fedld fedspeed fedstale fedstaletable fedvarp fot mifa ocfl pfedme"
)
UNIFORM += " fedlgd scaffold scaffoldm scaffoldmvr"
MEDIAN = "bulyan flag geometricmedian krum meamed median multikrum phocas trimmedmean"
HOW = {n: how for how, names in (("samples", BY_SAMPLES), ("uniform", UNIFORM), ("median", MEDIAN)) for n in names.split()}
NO_STATISTICS = {
    "apfl": "trains step by step",
    "fedagainsum": "weights clients by trust",
    "fedbn": "has statistics of each client's own",
    "fedd2s": "has a model of each client's own",
    "fedd2ssum": "has a model of each client's own",
    "perfedavg": "trains step by step",
    "fedamd": "two kinds of replies",
    "fedasync": "one client a step",
    "fedfix": "no fixed number of arrivals, see test_fedfix",
    "fedconv": "counts them anew on samples of the server",
    "fedgh": "has a model of each client's own",
    "fedghsum": "has a model of each client's own",
    "fedins": "freezes the norm layer",
    "fedit": "freezes the norm layer",
    "fedka": "its server trains the mean",
    "fedpeft": "freezes the norm layer",
    "fedproto": "has a model of each client's own",
    "fedre": "has a model of each client's own",
    "fedrep": "trains twice, head and body",
    "fedresum": "has a model of each client's own",
    "fedsa": "has a model of each client's own",
    "fedzo": "trains along estimates",
    "fraug": "has statistics of each client's own",
    "franca": "has statistics of two networks",
    "frl": "refuses norm layers with statistics",
    "frlchecked": "refuses norm layers with statistics",
    "fzoos": "trains along estimates",
    "localonly": "has a model of each client's own",
    "localtuning": "freezes the norm layer",
    "pfedpg": "needs a vision transformer",
    "pfedpgsum": "needs a vision transformer",
    "semaug": "needs a detector",
}


def options_of(name, **changes):
    known = {field.name for field in fields(find_method(name))} - set(find_method(name).unused)
    return SMALL.get(name, {}) | {key: value for key, value in changes.items() if key in known}


def test_every_method_is_in_one_of_the_lists():
    assert set(NAMES) == HOW.keys() | NO_STATISTICS.keys()
    assert set(NAMES) == set(EXACT) | NO_COMMON_OPTIMUM.keys()


@pytest.mark.parametrize("name", sorted(HOW))
def test_running_statistics_are_the_mean_of_the_clients_at_any_server_rate(name, monkeypatch):
    """A server that steps by 1.7 of the mean update, or along a momentum, extrapolates weights but no variances.

    The mean is over clients with samples, also where all clients have the same weight.
    """
    sgd, seen = Client.sgd, {}

    def watched(self, *args, **values):
        local = sgd(self, *args, **values)
        if self.num_samples:
            seen.setdefault(
                (self.id, self.round), (self.num_samples, local.params.vector[local.params.layout.num_params :].double().clone())
            )
        return local

    monkeypatch.setattr(Client, "sgd", watched)
    options, sizes = options_of(name, server_lr=1.7, warmup=1000, rule="equal"), [*SIZES[:4], 0, *SIZES[4:]]
    made = small(name, clients=9, cohort=9, options=options, fleet="homogeneous", vectorize="off")
    run = prepare(made, task=fitted(name, make_task(model=norm_mlp)), split=by_size(sizes))
    run.go()
    model, last = run.method.model(run.state), {}
    for client, round in sorted(seen, key=lambda key: key[1]):
        last[client] = seen[client, round]
    sizes, each = zip(*(last[client] for client in run.fed.last.arrived if client in last), strict=True)
    each, sizes = torch.stack(each), torch.tensor(sizes).double()
    wanted = {"samples": sizes @ each / sizes.sum(), "uniform": each.mean(0), "median": torch.quantile(each, 0.5, 0)}[HOW[name]]
    torch.testing.assert_close(model.vector[model.layout.num_params :].double(), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted[8:] > 0).all()


READS_STATISTICS = {
    "fal": "attacks in evaluation mode",
    "fedconv": "chooses epochs in evaluation mode",
    "fedd2s": "uploads are features in evaluation mode",
    "fedd2ssum": "uploads are features in evaluation mode",
    "fedagain": "measures losses in evaluation mode",
    "fedagainsum": "measures losses in evaluation mode",
    "fedgh": "class means are features in evaluation mode",
    "fedghsum": "class means are features in evaluation mode",
    "fedins": "trains with a frozen norm layer",
    "fedit": "trains with a frozen norm layer",
    "fedka": "sends features and votes in evaluation mode",
    "fedpeft": "trains with a frozen norm layer",
    "fedlgd": "matches features in evaluation mode",
    "fedproto": "prototypes are features in evaluation mode",
    "fedre": "class means are features in evaluation mode",
    "fedresum": "class means are features in evaluation mode",
    "fedsa": "prototypes are features in evaluation mode",
    "fedzo": "evaluates the model",
    "fot": "sketches the inputs of layers in evaluation mode",
    "fraug": "generates features in evaluation mode",
    "franca": "fits its probe in evaluation mode",
    "frl": "refuses norm layers with statistics",
    "frlchecked": "refuses norm layers with statistics",
    "fzoos": "evaluates the model",
    "localtuning": "trains with a frozen norm layer",
    "madaug": "its policy reads features in evaluation mode",
    "moon": "compares with features in evaluation mode",
}


def leaves(tree):
    """Yield all parameters, tensors and numbers that a state holds."""
    if isinstance(tree, Params | torch.Tensor | float | int):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from leaves(value)
    elif is_dataclass(tree):
        yield from leaves([getattr(tree, field.name) for field in fields(tree)])


def vectors(tree):
    """Yield all that a state holds, without running statistics."""
    for leaf in leaves(tree):
        yield leaf.vector[: leaf.layout.num_params] if isinstance(leaf, Params) else torch.as_tensor(leaf)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in READS_STATISTICS])
def test_running_statistics_decide_nothing_in_training(name):
    """Batches are normalised by their own statistics, so a run does not depend on the first running ones: no distance, angle or
    norm of updates, and no other decision of server or client, includes them."""
    ends = []
    for mean, variance in ((0.0, 1.0), (5.0, 40.0)):

        def model(mean=mean, variance=variance):
            net = norm_mlp()
            net[1].running_mean.fill_(mean)
            net[1].running_var.fill_(variance)
            return net

        made = small(name, clients=5, cohort=4, options=options_of(name, server_lr=0.5, byzantine=0.0), vectorize="off")
        run = prepare(made, task=fitted(name, make_task(model=model)), split=by_size([40, 30, 24, 50, 34]))
        run.go()
        stored = [dict(run.store[client]) for client in range(5) if client in run.store]
        ends.append([*vectors(run.state), *vectors([{k: v for k, v in own.items() if k != "_held"} for own in stored])])
    assert len(ends[0]) > 0
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["fedzo", "fzoos"])
def test_a_search_without_gradients_leaves_running_statistics_as_they_are(name):
    run = prepare(small(name, options=SMALL[name] | {"lr": 0.1}), task=make_task(model=norm_mlp), split=by_size(SIZES))
    first = run.fed.init_params()
    run.go()
    last, split = run.state.params, first.layout.num_params
    assert torch.equal(last.vector[split:], first.vector[split:])
    assert (last.vector[:split] != first.vector[:split]).all()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("frl")])
def test_a_norm_layer_a_last_batch_of_one_and_a_client_without_a_class(name):
    """Each client lacks a class, three have a last batch of one sample; variances stay above 0 at another server rate."""
    task = make_task(model=norm_mlp)
    rows = torch.arange(len(task.train))
    clients = [rows[task.train.y != c % 4][c * 17 : c * 17 + size] for c, size in enumerate([21, 31, 11, 20, 1])]
    sizes = torch.tensor([len(own) for own in clients])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    split = Partition("lacking", torch.cat(clients), offsets, offsets[1:].clone())
    options, task = options_of(name, server_lr=0.5, byzantine=0.0), fitted(name, task)
    run = prepare(small(name, clients=5, cohort=5, options=options, evaluation="clients", vectorize="off"), task=task, split=split)
    outcome = run.go()
    model = run.method.model(run.state)
    assert torch.isfinite(model.vector).all()
    assert all((value >= 0).all() for key, value in model.items() if "running_var" in key)
    assert 0.0 <= outcome.history[-1].get("map", outcome.accuracy) <= 1.0
