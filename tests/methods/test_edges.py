"""Every method at the edges: lost replies, clients without samples or without a class, unequal clients, BatchNorm.

Where a method minimises the mean of the clients' losses, quadratics of equal curvature show whether it still reaches the
optimum, the mean of the clients' own. These lie symmetrically, so that medians and Krum's choice are at the same place.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from paceline.core.client import Client
from paceline.core.errors import DataError
from paceline.core.random import numpy_rng
from paceline.devices import Fleet, Profile
from paceline.engines.worker import Worker

from .quadratics import by_size, play, quadratics
from .test_every_method import NAMES, NEEDS_EACH

OPTIMA = 0.25 * np.array([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
START = 1.25
WITHIN = 1e-3

QUICK = {"lr": 0.5}
MOMENTA = {"lr": 0.4, "beta": 0.7}
ASYNCHRONOUS = {"lr": 0.3, "steps": 1, "momentum": 0.0}
ANARCHIC = {"lr": 0.4, "most_steps": 1, "returns": 8}
RULE = {"lr": 0.5, "byzantine": 0.0}
MEMORIES = {"lr": 0.5, "steps": 1, "epochs": None}

OPTIONS = {
    **dict.fromkeys(NAMES, QUICK),
    **dict.fromkeys(["bulyan", "krum", "meamed", "multikrum", "phocas"], RULE),
    "afacd": ANARCHIC,
    "afacs": ANARCHIC | {"server_lr": 0.4},
    "afacstable": ANARCHIC | {"server_lr": 0.4},
    "dropstragglers": QUICK | {"warmup": 1000},
    "fedamd": {"lr": 0.3, "steps": 3, "period": 2},
    "fedavgm": MOMENTA,
    "fedavgmvr": MOMENTA,
    "fedbuff": ASYNCHRONOUS | {"buffer": 8},
    "feddyn": QUICK | {"alpha": 0.5},
    "fedfix": ASYNCHRONOUS | {"period": 1.0},
    "fedopt": QUICK | {"optimizer": "momentum", "server_lr": 0.3, "beta1": 0.5},
    "fedspeed": {"lr": 0.5, "epochs": 1, "lr_decay": 1.0, "weight_decay": 0.0, "radius": 0.0, "clip": None},
    "fedstale": MEMORIES | {"beta": 0.8, "cutoff": 1},
    "fedstaletable": MEMORIES | {"beta": 0.8, "cutoff": 1},
    "fedau": MEMORIES | {"cutoff": 1},
    "fedvarp": MEMORIES,
    "fjord": QUICK | {"warmup": 1000},
    "mifa": MEMORIES | {"lr": 0.25},
    "ocfl": QUICK | {"epochs": 1, "patience": 1000},
    "randomdropout": QUICK | {"warmup": 1000},
    "scaffoldm": MOMENTA,
    "scaffoldmvr": MOMENTA,
}
"""Options with which 40 rounds are enough."""

NO_COMMON_OPTIMUM = {
    "fedasync": "steps along one client's update, so it stays in motion",
    "clip": "needs units that can be dropped",
    "fedgela": "has no parameters that are not layers",
    "fedgh": "has a model of each client's own",
    "fedghsum": "has a model of each client's own",
    "fedit": "needs linear layers",
    "fedpeft": "needs a head",
    "fedproto": "has a model of each client's own",
    "fedsa": "has a model of each client's own",
    "fedzo": "asks for classes",
    "flag": "takes steps of a fixed length",
    "fluid": "needs units that can be dropped",
    "frl": "trains no weights",
    "frlchecked": "trains no weights",
    "fzoos": "asks for classes",
    "heterofl": "needs units that can be dropped",
    "localonly": "has a model of each client's own",
    "localtuning": "needs linear layers",
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


@pytest.mark.parametrize(
    ("name", "aggregation"),
    [(n, "plain") for n in EXACT] + [(n, "secure-arithmetic") for n in EXACT if n not in NEEDS_EACH],
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
