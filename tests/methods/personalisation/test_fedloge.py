"""FedLoGe: the frame, three simultaneous steps, realignment, and what stays on the client."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paceline.blocks.etf import simplex, sparse_frame
from paceline.core.errors import PlanError
from paceline.core.samples import ClientData
from paceline.data.assign import long_tail
from paceline.data.partition import Partition
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.methods.personalisation.fedloge import FedLoGe, localised, realigned
from paceline.models.split import features
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing

W_G = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 1.0]])
QUICK = {"epochs": 1, "frame_steps": 20, "length": 1.0}


def carried_out(task=None, rounds=1, method="fedloge", split=None, **changes):
    options = changes.pop("options", {})
    values = {"method": method, "task": "blobs", "clients": 2, "cohort": 2, "rounds": rounds, "vectorize": "off", **changes}
    options = (QUICK | options) if "fedloge" in method.lower() else options
    run = prepare(RunConfig.build(values | {"options": options}), task=task or make_task(), split=split)
    return run, run.go()


def test_the_dense_frame_of_the_identity():
    m = simplex(torch.eye(3))
    a, b = 0.816497, -0.408248
    np.testing.assert_allclose(m, [[a, b, b], [b, a, b], [b, b, a]], atol=1e-6)
    np.testing.assert_allclose(m.T @ m, [[1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1]], atol=1e-6)


def test_counts_of_the_long_tail():
    assert long_tail(5000, 0.02, 10) == [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100]


def test_more_classes_than_features_start_from_random_directions():
    m = sparse_frame(3, 6, 0, zeros=0.0, length=1.0, steps=500, lr=1e-2)
    assert m.shape == (3, 6)
    np.testing.assert_allclose(m.norm(dim=0), np.ones(6), atol=0.3)
    unit = (m / m.norm(dim=0)).numpy()
    assert (unit.T @ unit - 2 * np.eye(6)).max() < 0.5  # six directions of an octahedron are at 0


def test_realignment_by_hand():
    np.testing.assert_allclose(realigned(W_G), [[1.02, 1.36], [0, 1.7], [0, 1.7]], atol=1e-6)
    h = torch.ones(2)
    assert (W_G @ h).tolist() == [7, 2, 1]
    np.testing.assert_allclose(realigned(W_G) @ h, [2.38, 1.7, 1.7], atol=1e-6)
    np.testing.assert_allclose(realigned(W_G, 2.0, 0.0), 2 * W_G)
    assert realigned(torch.zeros(2, 3)).isfinite().all()


def test_local_realignment_by_hand():
    own = torch.tensor([[6.0, 8.0], [0.0, 1.0], [1.0, 0.0]])
    assert localised(W_G, own).tolist() == [[30, 40], [0, 2], [0, 1]]
    assert ((localised(W_G, own) + own) @ torch.ones(2)).tolist() == [84, 3, 2]


def test_the_frame_never_changes_and_its_zeros_stay():
    run, _ = carried_out(rounds=3)
    frame = run.state.frame
    assert torch.equal(frame, run.method.init(run.fed).frame)
    assert int((frame == 0).sum()) == int(0.6 * 8 * 4)
    np.testing.assert_allclose(frame, sparse_frame(8, 4, 0, length=1.0, steps=20).T)
    w = run.state.params["4.weight"]
    other = replace(run.method, scale=2.0, power=0.5).model(run.state)["4.weight"]
    torch.testing.assert_close(other, 2 * w / w.norm(dim=1, keepdim=True).sqrt())


def test_rounds_against_plain_torch():
    """Two steps with momentum at each client: three optimisers, and the heads see the features before the backbone's step."""
    task = make_task()
    options = {"epochs": 2, "batch_size": 1000, "lr": 0.2, "head_rate": 2.0}
    run, _ = carried_out(task, rounds=2, partition="quantity:1", options=options)
    frame, initial = run.state.frame, two_headed(run)[1]
    common = run.fed.init_params().vector
    own = {c: (initial["4.own_weight"].clone(), initial["4.own_bias"].clone()) for c in range(2)}
    rows = [run.fed.engine.setup.split(c)[0] for c in range(2)]
    assert len(rows[0]) != len(rows[1])
    for _ in range(2):
        total = torch.zeros_like(common)
        for client in range(2):
            trained, own[client] = trained_by_hand(task, rows[client], common, frame, *own[client])
            total += len(rows[client]) * trained
        common = total / sum(map(len, rows))
    for client in range(2):
        np.testing.assert_allclose(run.store[client]["head"]["4.own_weight"], own[client][0], atol=2e-5)
        np.testing.assert_allclose(run.store[client]["head"]["4.own_bias"], own[client][1], atol=2e-5)
    np.testing.assert_allclose(run.state.params.vector, common, atol=2e-5)


def trained_by_hand(task, rows, common, frame, weight, bias):
    """Return the backbone with the global head after two steps, and the own head."""
    x, y, module, own = task.train.x[rows], task.train.y[rows], task.build(0), nn.Linear(8, 4)
    nn.utils.vector_to_parameters(common.clone(), module.parameters())
    own.weight.data, own.bias.data = weight.clone(), bias.clone()
    body = torch.optim.SGD(module[:-1].parameters(), 0.2, momentum=0.5)
    heads = [torch.optim.SGD(layer.parameters(), 0.4, momentum=0.5) for layer in (module[-1], own)]
    for _ in range(2):
        h = module[:-1](x)
        losses = [F.cross_entropy(h @ frame.T, y), *(F.cross_entropy(layer(h.detach()), y) for layer in (module[-1], own))]
        for optimizer, loss in zip([body, *heads], losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return nn.utils.parameters_to_vector(module.parameters()).detach(), (own.weight.detach(), own.bias.detach())


def test_the_heads_leave_the_backbone_alone():
    objective = FedLoGe().objective(torch.zeros(4, 8))
    module = two_headed(carried_out()[0])[0].module
    module.zero_grad()
    objective(module, torch.randn(6, 12), torch.arange(6) % 4).backward()
    assert all(not p.grad.any() for name, p in module.named_parameters() if not name.startswith("4."))
    assert all(p.grad.any() for name, p in module.named_parameters() if name.startswith("4."))


def two_headed(run):
    from paceline.blocks.architectures import architectures

    return architectures(run.fed).two_headed(run.state.params.layout)


@dataclass(frozen=True)
class AsFedLoGe(FedLoGe):
    """The trainable head in the place of the frame, and no step of its own."""

    judge: str = "raw"

    def objective(self, frame):
        return lambda module, x, y: (
            F.cross_entropy(module(x), y)
            + F.cross_entropy(F.linear(features(module, x).detach(), module[-1].own_weight, module[-1].own_bias), y)
        )


def test_with_the_trainable_head_in_place_of_the_frame_it_is_fedavg():
    local = {"lr": 0.1, "epochs": 2, "batch_size": 10, "momentum": 0.5}
    common = {"clients": 4, "cohort": 3, "rounds": 3, "partition": "dirichlet:0.5"}
    ours = carried_out(method=f"{__name__}:AsFedLoGe", options=local, **common)[1]
    assert FedAvg(**local)
    assert ours.model_sha256 == carried_out(method="fedavg", options=local, **common)[1].model_sha256


def test_what_the_global_model_is():
    run, _ = carried_out(rounds=2)
    state, raw = run.state, run.state.params
    head = run.method.model(state)
    norms = raw["4.weight"].norm(dim=1, keepdim=True)
    np.testing.assert_allclose(head["4.weight"], 1.7 * raw["4.weight"] / norms, rtol=1e-5)
    assert torch.equal(head["4.bias"], raw["4.bias"])
    assert replace(run.method, judge="raw").model(state) is raw
    frame = replace(run.method, judge="frame").model(state)
    assert torch.equal(frame["4.weight"], state.frame)
    assert not frame["4.bias"].any()
    assert torch.equal(frame["0.weight"], raw["0.weight"])


class Owner:
    """A client of class counts (2, 0, 1, 0) with or without a head of its own."""

    def __init__(self, model, memory):
        self.model, self.memory, self.problem = model, memory, make_task()
        self.train = ClientData(torch.zeros(3, 12), torch.tensor([0, 2, 0]), torch.arange(3))


@pytest.mark.parametrize("trained", [True, False])
def test_a_personal_model_by_hand(trained):
    run, _ = carried_out()
    kept = run.store[0]["head"]
    params = run.state.params
    model = run.method.personal_model(Owner(run.fed.engine.here.model, {"head": kept} if trained else {}), params)
    h = np.random.default_rng(0).normal(size=8)
    w, b = params["4.weight"].numpy(), params["4.bias"].numpy()
    own, own_bias = kept["4.own_weight"].numpy(), kept["4.own_bias"].numpy()
    expected = [np.linalg.norm(own[c]) * (w[c] @ h) + own[c] @ h + own_bias[c] if trained else w[c] @ h + b[c] for c in range(4)]
    logits = model["4.weight"].numpy() @ h + model["4.bias"].numpy()
    np.testing.assert_allclose(logits[[0, 2]], [expected[0], expected[2]], atol=1e-5)
    assert (logits[[1, 3]] < -1e5).all()


def test_tuning_changes_the_adapted_head_only():
    common = {"clients": 4, "cohort": 4, "rounds": 2, "evaluation": "clients", "partition": "shards:2"}
    plain, tuned = (carried_out(options={"tuning_epochs": epochs}, **common)[1] for epochs in (0, 3))
    assert plain.model_sha256 == tuned.model_sha256
    assert plain.history[-1]["loss"] != tuned.history[-1]["loss"]


def test_the_tuning_is_of_scores_without_a_bias():
    seen, module = {}, make_task().build(0)
    client = SimpleNamespace(sgd=lambda params, **options: seen.update(options) or SimpleNamespace(params=params))
    FedLoGe(tuning_epochs=2).tuned(client, None)
    x, y = torch.randn(6, 12), torch.arange(6) % 4
    with torch.no_grad():
        module[-1].bias.add_(torch.arange(4.0))
    torch.testing.assert_close(seen["hooks"].objective(module, x, y), F.cross_entropy(module[:-1](x) @ module[-1].weight.T, y))
    assert seen["epochs"] == 2


@pytest.mark.parametrize("buffers", ["average", "local", "recompute"])
def test_learns_global_and_personal_models_of_a_long_tail(buffers):
    def with_norm():
        return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))

    task = replace(make_task(model=with_norm), buffers=buffers)
    options = {"epochs": 3, "frame_steps": 300, "frame_lr": 1e-2, "lr": 0.05, "head_rate": 5.0}
    common = {"clients": 4, "cohort": 4, "rounds": 8, "partition": "longtail:0.3/1", "options": options}
    if buffers != "local":
        assert carried_out(task, **common)[1].accuracy > 0.9
    assert carried_out(task, evaluation="clients", **common)[1].accuracy > 0.88


def test_a_class_that_nobody_has_is_not_predicted():
    """Its rows step away from all features, so the server needs no counts to exclude it."""
    task = make_task()
    rows, (x, y) = torch.nonzero(task.train.y < 3).flatten(), (task.test.x, task.test.y)
    split = Partition("lacking", rows, torch.tensor([0, 60, len(rows)]), torch.tensor([60, len(rows)]))
    run, _ = carried_out(task, rounds=6, split=split, options={"epochs": 3, "head_rate": 3.0, "lr": 0.1})
    for judge in ("realigned", "raw", "frame"):
        module = task.build(0)
        module.load_state_dict(dict(replace(run.method, judge=judge).model(run.state).items()))
        with torch.no_grad():
            scores = module(x[y < 3])
        assert scores.isfinite().all()
        assert (scores.argmax(1) < 3).all()
        assert float((scores.argmax(1) == y[y < 3]).float().mean()) > 0.8


def test_secure_sums_with_a_drop_out():
    assert_masks_change_nothing(make_task(), "fedloge", options=QUICK)


def test_a_head_without_bias_is_refused():
    task = make_task(model=lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)))
    with pytest.raises(PlanError, match="bias=True"):
        carried_out(task)
