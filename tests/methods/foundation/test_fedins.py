"""FedIns: steps of a whole pool against loops over samples, federated scales and shifts, and means of members by their use."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import paceline as pl
from paceline.methods.foundation.fedins import by_member, from_members
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing

FedIns = pl.methods.FedIns


def shallow():
    return nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4))


def prepared(method, task=None, **values):
    common = {"task": "own", "vectorize": "off", "clients": 3, "cohort": 3, "rounds": 2, "partition": "dirichlet:0.5"}
    return prepare(RunConfig.build(common | values), task=task or make_task(model=shallow), method=method)


def finished(*args, **values):
    run = prepared(*args, **values)
    run.go()
    return run


def test_three_steps_are_those_of_loops_over_samples():
    task = make_task(30, model=shallow)
    method = FedIns(lr=0.2, epochs=3, batch_size=30, members=4, selected=2, match=0.3, spread=0.2)
    run = prepared(method, task, clients=1, cohort=1, rounds=1)
    pool = {name: value.clone().requires_grad_() for name, value in run.fed.init_params().items()}
    frozen = run.fed.engine.here.model.module.backbone[0]
    w, b = frozen.weight.detach().clone(), frozen.bias.detach().clone()
    run.go()
    for _ in range(3):
        losses = []
        for x, y in zip(task.train.x, task.train.y, strict=True):
            h = w @ x + b
            query = torch.relu(h)
            cosines = [float(query @ k / (query.norm() * k.norm())) for k in pool["keys"]]
            best = sorted(range(4), key=lambda j: -cosines[j])[:2]
            gamma = sum(pool["backbone.0.ssf.scale"][j] for j in best) / 2
            beta = sum(pool["backbone.0.ssf.shift"][j] for j in best) / 2
            out = torch.relu(h * gamma + beta)
            scores = sum(pool["weight"][j] @ out + pool["bias"][j] for j in best) / 2
            match = sum(F.cosine_similarity(query, pool["keys"][j], dim=0) for j in best)
            losses.append(0.7 * F.cross_entropy(scores, y) + 0.3 * (1 - match))
        slopes = torch.autograd.grad(torch.stack(losses).mean(), list(pool.values()))
        pool = {n: (v - 0.2 * s).detach().requires_grad_() for (n, v), s in zip(pool.items(), slopes, strict=True)}
    for name, value in pool.items():
        torch.testing.assert_close(run.state.params[name], value.detach(), atol=1e-5, rtol=1e-4)
    assert torch.equal(run.fed.engine.here.model.module.backbone[0].weight, w)
    assert not run.fed.engine.here.model.module.backbone[0].weight.requires_grad


def test_the_mean_is_uniform():
    method = FedIns(lr=0.2, epochs=1, batch_size=10, members=3, selected=1)
    seen = []
    train = FedIns.train

    class Watched(FedIns):
        @pl.on_client
        def train(self, client, message):
            reply = train(self, client, message)
            seen.append(reply.delta.vector.clone())
            return reply

    run = prepared(Watched(**vars(method)), partition="quantity:0.5", rounds=1)
    start = run.fed.init_params()
    run.go()
    torch.testing.assert_close(run.state.params.vector, start.vector + torch.stack(seen).mean(0), atol=1e-6, rtol=1e-5)


def test_all_members_are_federated_scales_and_shifts():
    """The mean of M members moves by lr / M of the gradient."""
    members, task, values = 3, make_task(model=shallow), {"partition": "iid", "rounds": 3}
    plain = prepared(pl.methods.FedPEFT(peft="ssf", lr=0.1, momentum=0.0, epochs=2, batch_size=20), task, **values)
    begin = plain.fed.init_params()

    class OneHead(FedIns):
        def init(self, fed):
            state = super().init(fed)
            for name in ("weight", "bias"):
                state.params[name].copy_(begin[f"2.{name}"].expand_as(state.params[name]))
            return state

    run = prepared(
        OneHead(lr=0.3, epochs=2, batch_size=20, members=members, selected=members, match=0.0, spread=0.0), task, **values
    )
    for each in (run, plain):
        each.go()
    pairs = {"backbone.0.ssf.scale": "0.ssf.scale", "backbone.0.ssf.shift": "0.ssf.shift", "weight": "2.weight", "bias": "2.bias"}
    for mine, theirs in pairs.items():
        found = run.state.params[mine].mean(0)
        torch.testing.assert_close(found, plain.state.params[theirs], atol=1e-5, rtol=1e-4)
        assert (found - begin[theirs]).abs().max() > 1e-3


def test_without_the_match_keys_stay():
    run = prepared(FedIns(lr=0.2, epochs=1, members=4, selected=2, match=0.0))
    start = run.fed.init_params()
    run.go()
    assert torch.equal(run.state.params["keys"], start["keys"])
    moved = finished(FedIns(lr=0.2, epochs=1, members=4, selected=2, match=0.1)).state.params
    assert not torch.equal(moved["keys"], start["keys"])


def test_members_and_parameters_are_the_same_values():
    params = prepared(FedIns(members=3, selected=1)).fed.init_params()
    rows = by_member(params, 3)
    assert rows.shape == (3, len(params) // 3)
    assert torch.equal(rows[1], torch.cat([value[1].flatten() for _, value in params.items()]))
    assert torch.equal(from_members(rows, params).vector, params.vector)


def test_unused_members_do_not_dilute_the_mean():
    """Means by hand, from each client's own result."""
    method = FedIns(lr=0.3, epochs=1, batch_size=10, members=6, selected=1, mask_unused=True)
    run = prepared(method, rounds=1)
    start, module = run.fed.init_params(), run.fed.engine.here.model
    shards = [run.fed.engine.setup.split(client)[0] for client in range(3)]
    plain = {}
    train = FedIns.train

    class Watched(FedIns):
        @pl.on_client
        def train(self, client, message):
            plain[client.id] = client.sgd(message, **self.local(client), hooks=self.hooks(client, message)).params
            return train(self, client, message)

    watched = prepared(Watched(**vars(method)), rounds=1)
    watched.go()
    run.go()
    assert plain.keys() == {0, 1, 2}
    rows, weights = [], []
    for client in range(3):
        module.load(plain[client])
        with torch.no_grad():
            best = module.module.choose(make_task(model=shallow).train.x[shards[client]])[0].argmax(1)
        moved = by_member(plain[client] - start, 6).numpy()
        changed = (moved != 0).any(1)
        weights.append(np.where(changed, np.maximum(np.bincount(best, minlength=6), 1), 0))
        rows.append(moved)
    weights, rows = np.stack(weights), np.stack(rows)
    total = weights.sum(0)
    assert (total == 0).any()
    assert ((weights > 0).sum(0) == 2).any()  # and one that a client did not use
    wanted = (weights[:, :, None] * rows).sum(0) / np.maximum(total, 1)[:, None]
    np.testing.assert_allclose(by_member(run.state.params - start, 6), wanted, atol=1e-5)
    assert run.history[-1]["note_unused"] == (total == 0).sum()


def test_a_member_that_was_used_only_during_a_training_counts_once(monkeypatch):
    monkeypatch.setattr(FedIns, "used", lambda self, client, params: torch.zeros(self.members, dtype=torch.int64))
    fields = {"lr": 0.3, "epochs": 1, "members": 2, "selected": 2}
    values = {"rounds": 1, "partition": "quantity:0.5"}
    counted, plain = finished(FedIns(**fields, mask_unused=True), **values), finished(FedIns(**fields), **values)
    torch.testing.assert_close(counted.state.params.vector, plain.state.params.vector, atol=1e-6, rtol=1e-5)


def test_a_pool_learns():
    outcome = finished(FedIns(lr=0.5, epochs=3, members=4, selected=2), make_task(), rounds=6, partition="iid")
    assert outcome.history[-1]["accuracy"] > 0.6


@pytest.mark.parametrize("options", [{}, {"mask_unused": True}])
def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic(options):
    assert_masks_change_nothing(make_task(), "fedins", options={"members": 4, "selected": 2, "epochs": 1} | options)
