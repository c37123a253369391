"""Every method on what a user's task may have: samples without a label, statistics that stay local, and frozen parts."""

from dataclasses import replace

import pytest
import torch

import paceline as pl
from paceline.core.errors import ConfigError, PlanError
from paceline.core.params import Params
from paceline.core.random import derive
from paceline.engines.worker import Worker
from paceline.registry import find_method
from paceline.run import prepare
from tests.conftest import make_task

from .forms import fitted
from .quadratics import by_size
from .small import LATE
from .test_edges import SIZES, leaves, norm_mlp, small, vectors
from .test_every_method import NAMES
from .test_open_tasks import PICTURES

# -- samples without a label -----------------------------------------------------------------------
UNLABELLED = -100


def partly_labelled(task):
    """Every third training sample has no label, and client 0, with the first 40 samples, has none at all."""
    y = task.train.y.clone()
    y[::3] = UNLABELLED
    y[: SIZES[0]] = UNLABELLED
    return pl.Task.from_tensors(task.train.x, y, task.model, test=(task.test.x, task.test.y), num_classes=4, name="partly")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PICTURES])
def test_samples_without_a_label_are_left_out_or_refused_at_the_start(name):
    made = small(name, rounds=2, vectorize="off", evaluation="auto" if name in ("fedzo", "fzoos") else "clients")
    task = partly_labelled(make_task())
    if find_method(name).needs_labels:
        with pytest.raises(PlanError, match="has samples without one"):
            prepare(made, task=task, split=by_size(SIZES))
        return
    run = prepare(made, task=task, split=by_size(SIZES))
    assert run.go().rounds == 2
    assert torch.isfinite(run.method.model(run.state).vector).all()


# -- statistics that stay local --------------------------------------------------------------------
SLOW = "stragglers:share=0.4,slow=4,compute=1e6"


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("frl")])
def test_no_client_uses_statistics_that_another_one_left_behind(name, monkeypatch):
    """Whoever trains on a worker finds a module that others used; a last batch of one sample reads running statistics."""
    create, ends, rounds = Worker.client, [], 4 if name in LATE else 2
    for left_behind in (None, 7.0):

        def client(self, *args, left=left_behind, **values):
            if left is not None:
                self.model.load_buffers({name: torch.full_like(b, left) for name, b in self.model.initial_buffers.items()})
            return create(self, *args, **values)

        monkeypatch.setattr(Worker, "client", client)
        task = replace(fitted(name, make_task(model=norm_mlp)), buffers="local")
        made = small(
            name, vectorize="off", evaluation="auto" if name in ("fedzo", "fzoos") else "clients", rounds=rounds, fleet=SLOW
        )
        run = prepare(made, task=task, split=by_size([11, 1, 31, 11, 21, 41, 31, 51]))
        told = [{k: v for k, v in record.items() if k in ("accuracy", "loss") or "note" in k} for record in run.go().history]
        ends.append([*vectors(run.state), *vectors([dict(run.store[c]) for c in range(8) if c in run.store]), *vectors(told)])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


# -- frozen parts ----------------------------------------------------------------------------------
TRAIN_NO_WEIGHTS = {"frl", "frlchecked"}
ADAPTERS = {"fedins", "fedit", "fedpeft", "localtuning"}
REFUSED = {
    "0": ADAPTERS | {"fedbn", "fedd2s", "fedd2ssum", "franca"},
    "4": ADAPTERS
    | {"fedd2s", "fedd2ssum", "franca"}
    | {"fedbabu", "fedgela", "fedgh", "fedghsum", "fedloge", "fedper", "fedre", "fedrep", "fedresum"},
}
"""Methods that tune a frozen model with layers of their own, train other networks, or need the first layer (of SMALL) or the head."""


@pytest.mark.parametrize("frozen", ["0", "4"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in PICTURES | TRAIN_NO_WEIGHTS])
def test_what_the_task_freezes_no_client_trains(name, frozen):
    """The first layer or the head of a small network: it stays as it is in all that the server and clients store, or is refused."""
    task = replace(make_task(), trainable=[f"{layer}.*" for layer in "024" if layer != frozen])
    first = dict(task.build(derive(0, "init")).named_parameters())
    made = small(name, rounds=2, vectorize="off")
    if name in REFUSED[frozen]:
        told = "freezes|already trains only a part|needs a model with a part|of which only|trains a whole model"
        with pytest.raises((ConfigError, PlanError), match=told):
            prepare(made, task=task)
        return
    run = prepare(made, task=task)
    run.go()
    for tree in (run.state, *(dict(run.store[c]) for c in range(8) if c in run.store)):
        for params in (leaf for leaf in leaves(tree) if isinstance(leaf, Params)):
            for entry in params.layout.entries:
                if entry.name.startswith(f"{frozen}.") and entry.name in first and entry.shape == first[entry.name].shape:
                    assert torch.equal(params[entry.name], first[entry.name]), entry.name
