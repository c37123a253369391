"""FedRE: the worked numbers, what is uploaded, and that the sum-only form is one full batch of the published one."""

from itertools import permutations

import numpy as np
import pytest
import torch

from paceline.core.errors import ConfigError, PlanError
from paceline.data import Partition
from paceline.methods.personalisation.commonhead import head_step
from paceline.methods.personalisation.fedre import entangle
from paceline.methods.personalisation.ownmodels import named
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing

UNLIKE = ["mlp:hidden=8", "mlp:hidden=6-8"]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gradient(w, b, r, t):
    """Sum over tuples of (softmax - t) r^T and of softmax - t."""
    error = softmax(r @ w.T + b) - t
    return error.T @ r, error.sum(0)


def test_a_mixture_by_hand():
    found = entangle(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 2]), torch.tensor([[0.3, 0.9]]), 3)
    np.testing.assert_allclose(found.features, [[0.25, 1.5]], atol=1e-6)
    np.testing.assert_allclose(found.labels, [[0.25, 0.0, 0.75]], atol=1e-6)


def test_the_gradient_of_the_head_by_hand():
    theta = named(weight=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), bias=torch.zeros(3))
    r, t = torch.tensor([[0.25, 1.5]]), torch.tensor([[0.25, 0.0, 0.75]])
    logits = r @ theta["weight"].T
    np.testing.assert_allclose(logits, [[0.25, 1.5, 0.875]])
    np.testing.assert_allclose(logits.log_softmax(1), [[-1.849806, -0.599806, -1.224806]], atol=1e-6)
    assert float(-(t * logits.log_softmax(1)).sum()) == pytest.approx(1.381056, abs=1e-6)
    found = head_step(theta, r, t)
    expected = [[-0.023183, -0.139099], [0.137229, 0.823377], [-0.114046, -0.684278]]
    np.testing.assert_allclose(found["weight"], expected, atol=1e-6)
    two = head_step(theta, torch.cat([r, 2 * r]), torch.cat([t, t]))  # a sum, not a mean
    w, b = gradient(
        theta["weight"].double().numpy(), np.zeros(3), np.array([[0.25, 1.5], [0.5, 3.0]]), np.array([t[0].tolist()] * 2)
    )
    np.testing.assert_allclose(two["weight"], w, atol=1e-6)
    np.testing.assert_allclose(two["bias"], b, atol=1e-6)


def class_means(run, client, params):
    rows, task = run.fed.engine.setup.split(client)[0], run.task
    module = task.build(0)
    for name, p in module.named_parameters():
        p.data = params[name].clone()
    with torch.no_grad():
        f, y = module[:-1](task.train.x[rows]).double().numpy(), task.train.y[rows].numpy()
    return f, y, {c: f[y == c].mean(0) for c in sorted(set(y))}


@pytest.mark.parametrize("views", [1, 3])
def test_uploads_are_mixtures_of_the_means_of_own_classes(networks, told, views):
    _, run, kept = networks("fedre", models=(), rounds=1, partition="shards:2", options={"views": views})
    [(theta, replies)] = told
    assert set(theta) == {"weight", "bias"}
    for client, reply in replies.items():
        _, _, means = class_means(run, client, kept[client])
        r, t = reply.features.double().numpy(), reply.labels.double().numpy()
        assert sum(tensor.numel() for tensor in (reply.features, reply.labels)) == views * (8 + 4)
        assert {c for c in range(4) if (t[:, c] > 0).all()} == set(means)
        np.testing.assert_allclose(t.sum(1), 1.0, atol=1e-6)
        assert (t[:, [c for c in range(4) if c not in means]] == 0).all()
        np.testing.assert_allclose(r, sum(np.outer(t[:, c], mean) for c, mean in means.items()), atol=1e-5)
        assert len(np.unique(t.round(6), axis=0)) == views


def test_weights_are_drawn_anew_in_every_round(networks, told):
    networks("fedre", models=(), rounds=2, partition="groups:0-3")
    assert not torch.equal(told[0][1][0].labels, told[1][1][0].labels)
    assert not torch.equal(told[0][1][0].labels, told[0][1][1].labels)


def test_samples_can_be_mixed_in_place_of_class_means(networks, told):
    _, run, kept = networks("fedre", models=(), rounds=1, options={"mix_over": "samples", "subset": 1})
    for client, reply in told[0][1].items():
        f, y, _ = class_means(run, client, kept[client])
        [place] = np.flatnonzero(np.abs(f - reply.features.numpy()).max(1) < 1e-5)
        assert reply.labels[0].argmax() == y[place]
        assert float(reply.labels.max()) == 1.0
    networks("fedre", models=(), rounds=1, options={"mix_over": "samples"})
    assert all(((reply.labels > 0).sum() > 1) == (len(set(y)) > 1) for reply in told[1][1].values())


def test_clients_of_one_class_send_what_fedgh_sends(networks, told):
    common = {"partition": "groups:0/1/2/3", "clients": 8, "cohort": 8, "rounds": 1}
    local = {"lr": 0.1, "batch_size": 1000, "momentum": 0.0, "weight_decay": 0.0, "clip": 0.0}
    for method in ("fedre", "fedgh"):
        run = prepare(
            RunConfig.build({"method": method, "task": "blobs", "options": local, "vectorize": "off", **common}), task=make_task()
        )
        run.go()
    ours, theirs = told[0][1], told[1][1]
    for client, reply in ours.items():
        assert torch.equal(reply.features, theirs[client]["means"])
        assert torch.equal(reply.labels, torch.nn.functional.one_hot(theirs[client]["classes"], 4).float())


@pytest.mark.parametrize("method", ["fedre", "fedresum"])
def test_without_steps_of_the_server_and_its_head_clients_train_alone(networks, method):
    local = {"lr": 0.1, "batch_size": 10, "epochs": 2}
    alone = networks("localonly", rounds=3, options=local)[2]
    ours = networks(method, rounds=3, options=local | {"server_lr": 0.0, "send_head": False})[2]
    assert all(torch.equal(ours[c].vector, alone[c].vector) for c in range(6))
    other = networks(method, rounds=3, options=local | {"server_lr": 0.0})[2]
    assert not torch.equal(other[0].vector, alone[0].vector)


def test_a_batch_of_all_tuples_is_the_sum_of_the_clients_gradients(networks):
    options = {"views": 2, "server_lr": 0.2, "head_batch": 12}
    published = networks("fedre", rounds=3, options=options)[1].state.params
    options.pop("head_batch")
    summed = networks("fedresum", rounds=3, options=options)[1].state.params
    torch.testing.assert_close(published.vector, summed.vector, atol=1e-6, rtol=1e-6)


def test_weights_are_shares_of_uniform_numbers(told):
    """Of two uniform numbers the first is below a quarter of the sum in one of six cases."""
    small({"views": 4000, "head_batch": 100_000, "server_lr": 0.0}, partition="groups:0-1/2-3")
    shares = [reply.labels[:, c] for reply, c in zip(told[0][1].values(), (0, 0, 2), strict=True)]
    assert all(abs(float((share < 0.25).float().mean()) - 1 / 6) < 0.02 for share in shares)


def test_passes_over_the_tuples_are_steps(told):
    _, run = small({"server_lr": 0.3, "head_batch": 3, "server_epochs": 2, "views": 1})
    [(theta, replies)] = told
    r, t = (np.concatenate([getattr(reply, n).double().numpy() for reply in replies.values()]) for n in ("features", "labels"))
    w, b = theta["weight"].double().numpy(), theta["bias"].double().numpy()
    for _ in range(2):
        gw, gb = gradient(w, b, r, t)
        w, b = w - 0.3 * gw, b - 0.3 * gb
    np.testing.assert_allclose(run.state.params["weight"], w, atol=1e-5)
    np.testing.assert_allclose(run.state.params["bias"], b, atol=1e-5)


def test_the_published_round_against_numpy(told):
    """Batches of one tuple: the result depends on the order only, so all orders are tried."""
    assert len({order_of(told, seed) for seed in range(4)}) > 1


def order_of(told, seed):
    _, run = small({"server_lr": 0.5, "head_batch": 1}, seed=seed)
    theta, replies = told[-1]
    ends, orders = [], []
    for order in permutations(sorted(replies)):
        w, b = theta["weight"].double().numpy(), theta["bias"].double().numpy()
        for client in order:
            gw, gb = gradient(w, b, replies[client].features.double().numpy(), replies[client].labels.double().numpy())
            w, b = w - 0.5 * gw, b - 0.5 * gb
        ends.append(np.abs(run.state.params["weight"].numpy() - w).max() + np.abs(run.state.params["bias"].numpy() - b).max())
        orders.append(order)
    assert min(ends) < 1e-5 < sorted(ends)[1]
    return orders[int(np.argmin(ends))]


def small(options, method="fedre", **changes):
    values = {"method": method, "task": "blobs", "clients": 3, "cohort": 3, "rounds": 1, "vectorize": "off", "options": options}
    run = prepare(RunConfig.build(values | changes), task=make_task())
    return run.go(), run


def test_the_servers_step_can_be_halved():
    moved = []
    for period in (0, 1):
        _, run = small({"server_lr": 0.1, "halve_every": period, "send_head": False}, "fedresum")
        before = run.state.params
        run.fed.start_round(3)
        moved.append((run.method.round(run.fed, run.state).params - before).vector)
    torch.testing.assert_close(moved[0], 4 * moved[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("least", "uploads"), [(1, [0, 0, 1, 1]), (2, [0, 0, 0, 1])])
def test_clients_with_too_little_train_and_upload_nothing(task, told, least, uploads):
    sizes = torch.tensor([0, 1, 5, 30])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    one_class = torch.nonzero(task.train.y == 2).flatten()[:5]
    rows = torch.cat([torch.tensor([0]), one_class, torch.arange(40, 70)])
    values = {
        "method": "fedre",
        "task": "blobs",
        "clients": 4,
        "cohort": 4,
        "rounds": 1,
        "vectorize": "off",
        "options": {"least_classes": least},
    }
    run = prepare(RunConfig.build(values), task=task, split=Partition("few", rows, offsets, offsets[1:].clone()))
    run.go()
    assert [len(told[0][1][client].features) for client in range(4)] == uploads
    assert all("network" in run.store[client] for client in (1, 2, 3))


@pytest.mark.parametrize("method", ["fedre", "fedresum"])
def test_more_classes_than_there_are_cannot_be_asked_of_a_client(config, task, method):
    prepare(config(method=method, options={"least_classes": 4}), task=task)
    with pytest.raises(ConfigError, match="least_classes=5, but the task has 4 classes"):
        prepare(config(method=method, options={"least_classes": 5}), task=task)


def test_clients_are_judged_with_their_own_head_or_the_global_one(networks):
    runs = [networks("fedre", rounds=1, options={"judge": judge, "server_lr": 0.5})[0] for judge in ("own", "global")]
    assert runs[0].model_sha256 == runs[1].model_sha256
    assert runs[0].history[-1]["loss"] != runs[1].history[-1]["loss"]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fedre", {"server_lr": 0.3}),
        ("fedre", {"judge": "global", "views": 8, "server_lr": 0.05}),
        ("fedresum", {"mix_over": "samples", "views": 4, "server_lr": 0.05}),
    ],
)
def test_learns_with_unlike_networks(networks, method, options):
    assert networks(method, rounds=20, options={"batch_size": 10, "lr": 0.2} | options)[0].accuracy > 0.75


def test_secure_aggregation_refuses_the_published_form_and_hides_the_other(config, task):
    with pytest.raises(PlanError, match="use fedresum"):
        prepare(config(method="fedre", aggregation="secure"), task=task)
    assert_masks_change_nothing(task, "fedresum", options={"models": UNLIKE, "views": 2})
