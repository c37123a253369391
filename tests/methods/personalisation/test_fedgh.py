"""FedGH: the worked numbers, what is uploaded, and both sum-only forms."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paceline.blocks.architectures import architectures
from paceline.blocks.prototypes import class_sums
from paceline.core.errors import DataError, PlanError
from paceline.core.layout import Layout
from paceline.core.params import Params, Resident
from paceline.data import Partition
from paceline.engines.worker import Worker
from paceline.methods.personalisation.fedgh import head_gradient, train_head
from paceline.methods.personalisation.ownmodels import clipped, named
from paceline.run import RunConfig, prepare
from tests.methods.resuming import assert_resumes

THETA = named(weight=torch.zeros(3, 2))
PAIRS = [(torch.tensor([1.0, 0.0]), torch.tensor(0)), (torch.tensor([0.0, 1.0]), torch.tensor(1))]


def step(w, b, v, s, lr):
    z = w @ v + b
    p = np.exp(z - z.max())
    p /= p.sum()
    p[s] -= 1
    return w - lr * np.outer(p, v), b - lr * p


def test_two_steps_by_hand():
    w = train_head(THETA, PAIRS, 0.1)["weight"]
    expected = [[0.066667, -0.033333], [-0.033333, 0.066667], [-0.033333, -0.033333]]
    np.testing.assert_allclose(w, expected, atol=1e-6)


def test_head_training_against_numpy():
    rng = np.random.default_rng(2)
    w, b = rng.normal(size=(4, 3)), rng.normal(size=4)
    v, s = rng.normal(size=(6, 3)), rng.integers(0, 4, 6)
    theta = named(weight=torch.from_numpy(w).float(), bias=torch.from_numpy(b).float())
    means, classes = torch.from_numpy(v).float(), torch.from_numpy(s)
    trained = train_head(theta, zip(means, classes, strict=True), 0.3)
    for x, c in zip(v, s, strict=True):
        w, b = step(w, b, x, c, 0.3)
    np.testing.assert_allclose(trained["weight"], w, atol=1e-5)
    np.testing.assert_allclose(trained["bias"], b, atol=1e-5)


def test_the_gradient_sum_of_one_pair_is_the_published_step():
    for v, s in PAIRS:
        one = THETA - 0.1 * head_gradient(THETA, v.unsqueeze(0), s.reshape(1))
        assert torch.equal(one.vector, train_head(THETA, [(v, s)], 0.1).vector)
    means, classes = torch.stack([v for v, _ in PAIRS]), torch.stack([s for _, s in PAIRS])
    apart = sum(head_gradient(THETA, v.unsqueeze(0), s.reshape(1)).vector for v, s in PAIRS)
    assert torch.allclose(head_gradient(THETA, means, classes).vector, apart)


def test_rows_of_absent_classes_can_be_frozen():
    frozen = torch.tensor([False, False, True])
    trained = train_head(THETA, PAIRS, 0.1, frozen)["weight"]
    assert torch.equal(trained[2], torch.zeros(2))
    assert torch.equal(trained[:2], train_head(THETA, PAIRS, 0.1)["weight"][:2])


def test_true_means_and_the_released_batch_means():
    """Features 1 and 2 in one batch and 6 in another: 3.0, or 3.75 by batches."""
    from paceline.core.client import ClientData

    module = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(1, 2))
    model = Resident(module, Layout.of(module))
    data = ClientData(torch.tensor([[1.0], [2.0], [6.0]]), torch.zeros(3, dtype=torch.int64), torch.arange(3))
    two = SimpleNamespace(num_classes=2)
    assert class_sums(model, model.params, data, two).means()[0].item() == 3.0
    assert class_sums(model, model.params, data, two, by_batch=2).means()[0].item() == 3.75
    assert class_sums(model, model.params, data, two).present.tolist() == [True, False]


def test_gradients_are_clipped_by_norm():
    hook = clipped(5.0)
    grad = named(a=torch.tensor([30.0, 40.0]))
    assert torch.allclose(hook(grad, grad).vector, torch.tensor([3.0, 4.0]))
    small = named(a=torch.tensor([0.3, 0.4]))
    assert torch.equal(hook(small, small).vector, small.vector)
    assert clipped(0.0) is None


def test_a_head_that_does_not_learn_is_reset_every_round(networks, task):
    """With eta_s = 0 each round is local training from the common head."""
    from paceline.models.split import head, join

    for method in ("fedgh", "fedghsum"):
        _, run, kept = networks(method, models=(), rounds=2, options={"server_lr": 0.0, "batch_size": 1000, "clip": 0.0})
        start = run.fed.init_params()
        theta = {name: start[name] for name in ("4.weight", "4.bias")}
        built = architectures(run.fed).build("")
        assert torch.equal(run.state.params["weight"], head(built).weight)
        for client in range(6):
            rows = run.fed.engine.setup.split(client)[0]
            params = start
            for _ in range(2):
                params = join(params, theta)
                params = sgd_step(task, params, rows)
            assert torch.allclose(params.vector, kept[client].vector, atol=1e-6)


def sgd_step(task, params, rows):
    module = task.build(0)
    for name, p in module.named_parameters():
        p.data = params[name].clone()
    task.loss(module(task.train.x[rows]), task.train.y[rows]).backward()
    out = params.clone()
    for name, p in module.named_parameters():
        out[name].copy_(p.data - 0.1 * (p.grad + 1e-3 * p.data))
    return out


def test_only_class_means_go_up(networks, told):
    _, run, _ = networks("fedgh", rounds=1)
    [(message, replies)] = told
    assert set(message) == {"weight", "bias"}
    for client, reply in replies.items():
        owned = int((run.fed.engine.setup.split.table(run.task)[client] > 0).sum())
        assert sum(t.numel() for t in reply.values()) == owned * (8 + 1)


def test_the_published_round_against_numpy(networks, task):
    _, run, kept = networks("fedgh", models=(), rounds=1, options={"shuffle": False, "server_lr": 0.5})
    start = run.fed.init_params()
    w, b = start["4.weight"].double().numpy(), start["4.bias"].double().numpy()
    for client in range(6):
        module = task.build(0)
        for name, p in module.named_parameters():
            p.data = kept[client][name].clone()
        rows = run.fed.engine.setup.split(client)[0]
        with torch.no_grad():
            f, y = module[:-1](task.train.x[rows]).double().numpy(), task.train.y[rows].numpy()
        for c in sorted(set(y)):
            w, b = step(w, b, f[y == c].mean(0), c, 0.5)
    np.testing.assert_allclose(run.state.params["weight"], w, atol=1e-5)
    np.testing.assert_allclose(run.state.params["bias"], b, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fedgh", {}),
        ("fedgh", {"judge": "global", "server_lr": 0.05}),
        ("fedghsum", {}),
        ("fedghsum", {"exchanges": 3, "server_lr": 0.05}),
        ("fedghsum", {"form": "prototypes", "freeze_absent": True}),
        ("fedgh", {"batch_means": True}),
    ],
)
def test_learns(networks, method, options):
    assert networks(method, rounds=15, options=options)[0].accuracy > 0.7


def test_secure_aggregation_refuses_the_published_form(config, task):
    with pytest.raises(PlanError, match="use fedghsum"):
        prepare(config(method="fedgh", aggregation="secure"), task=task)


@pytest.mark.parametrize("form", ["gradient", "prototypes"])
def test_secure_sums_with_a_drop_out(federate, form):
    common = {
        "method": "fedghsum",
        "clients": 10,
        "cohort": 10,
        "rounds": 2,
        "options": {"models": ["mlp:hidden=8", "mlp:hidden=6-8"], "form": form},
        "secure": {"threshold": 5, "gamma": 0.05, "bits": 20},
    }

    def drop(round, client, function):
        return round == 2 and client == 3 and function in ("secagg.masked", form)

    arithmetic = federate(aggregation="secure-arithmetic", drop=drop, **common)
    secure = federate(aggregation="secure", drop=drop, **common)
    assert secure.model_sha256 == arithmetic.model_sha256
    assert secure.history[1]["dropped"] == 1


@pytest.mark.parametrize("method", ["fedgh", "fedghsum"])
def test_resume_gives_the_same_bits(tmp_path, task, method):
    assert_resumes(tmp_path, task, method=method, options={"models": ["mlp:hidden=8", "mlp:hidden=6-8"]})


def test_params_of_a_head_are_named_by_the_layer():
    layer = torch.nn.Linear(3, 2, bias=False)
    theta = Params.of(layer, Layout.of(layer))
    assert list(head_gradient(theta, torch.ones(1, 3), torch.tensor([1]))) == ["weight"]


def without(task, lacking):
    """Return a partition among four clients without samples of one class."""
    rows = torch.nonzero(task.train.y != lacking).flatten()
    offsets = torch.linspace(0, len(rows), 5).long()
    return Partition("lacking", rows, offsets, offsets[1:].clone())


@pytest.mark.parametrize(
    ("method", "options"), [("fedgh", {}), ("fedgh", {"shuffle": False}), ("fedghsum", {"form": "prototypes"})]
)
@pytest.mark.parametrize("freeze", [False, True])
def test_rows_of_a_class_that_nobody_has(task, method, options, freeze):
    values = {"method": method, "task": "blobs", "clients": 4, "cohort": 4, "rounds": 1, "vectorize": "off"}
    made = RunConfig.build(values | {"options": {"freeze_absent": freeze, "server_lr": 0.5, **options}})
    run = prepare(made, task=task, split=without(task, 2))
    before = run.method.init(run.fed).params["weight"].clone()
    run.go()
    moved = (run.state.params["weight"] - before).abs().sum(1) > 1e-6
    assert moved.tolist() == [True, True, not freeze, True]


def test_the_first_head_is_that_of_the_first_architecture(networks, monkeypatch):
    from paceline.models.split import head

    for models in (("mlp:hidden=12-8", "mlp:hidden=16-8"), ("mlp:hidden=16-8", "mlp:hidden=12-8")):
        _, run, _ = networks("fedgh", models=models, rounds=1)
        first = run.method.init(run.fed).params["weight"]
        built = [head(architectures(run.fed).build(text)).weight for text in models]
        assert torch.equal(first, built[0])
        assert not torch.equal(first, built[1])


def test_only_the_clients_of_the_first_exchange_take_part_in_later_ones(task, config, monkeypatch):
    """A client that was lost in the first has no class means of this round, or those of an earlier one."""
    invoke, asked = Worker.invoke, []

    def failing(self, me, function, message):
        reply = invoke(self, me, function, message)
        if function == "gradient":
            asked.append((me.round, message[1], me.id))
            if message[1] and me.id == me.round:
                raise DataError("it fails at the end")
        return reply

    monkeypatch.setattr(Worker, "invoke", failing)
    options = {"exchanges": 3}
    run = prepare(config(method="fedghsum", options=options, clients=4, cohort=4, rounds=2, on_error="drop"), task=task)
    run.go()
    for number in (1, 2):
        later = [client for round, first, client in asked if round == number and not first]
        assert sorted(later) == sorted(2 * [client for client in range(4) if client != number])
