"""FRAug: three networks against three optimizers of torch, cyclic labels, and FedAvg where nothing is synthetic."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import paceline as pl
from paceline.core.random import torch_rng
from paceline.core.training import Job
from paceline.methods.personalisation.fraug import cyclic_labels, less_sure
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing
from tests.methods.oracles import gauss

FRAug = pl.methods.FRAug


def normed():
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def finished(method, task, **values):
    common = {"task": "own", "vectorize": "off", "clients": 3, "cohort": 3, "rounds": 2, "partition": "dirichlet:0.5"}
    run = prepare(RunConfig.build(common | values), task=task, method=method)
    run.go()
    return run


def test_the_ramp_is_that_of_the_sheet():
    ramp = FRAug(gamma=0.01, horizon=300)
    found = [ramp.alpha(round) for round in (1, 101, 201, 232)]
    assert found == pytest.approx([0.049787, 0.135335, 0.367879, 0.501576], abs=1e-6)
    assert ramp.alpha(1000) == 1.0
    assert FRAug(ramp="half").alpha(7) == 0.5
    assert FRAug(ramp="inverse", gamma=0.1).alpha(11) == pytest.approx(0.5)
    assert FRAug(ramp="off").alpha(300) == 0.0


def test_labels_are_cyclic_over_the_classes_that_were_seen():
    assert cyclic_labels(4, torch.tensor(12), torch.ones(10, dtype=torch.bool)).tolist() == [2, 3, 4, 5]
    seen = torch.tensor([False, True, False, True, True])
    assert cyclic_labels(5, torch.tensor(2), seen).tolist() == [4, 1, 3, 4, 1]


def test_shifts_follow_the_steps_of_all_rounds(monkeypatch):
    augmented, shifts = Job.augmented, []

    def watched(job, step, x, y):
        (x, z, shift), y = augmented(job, step, x, y)
        assert shift.unique().numel() == 1
        shifts.append(int(shift[0]))
        return (x, z, shift), y

    monkeypatch.setattr(Job, "augmented", watched)
    finished(FRAug(steps=5, batch_size=4), make_task(), clients=1, cohort=1)
    assert shifts == [4 * it for it in range(10)]
    assert [shift % 10 for shift in shifts][3] == 2


def test_without_a_rate_the_model_has_that_of_the_task():
    task = make_task()
    ends = [finished(FRAug(lr=lr, steps=2, batch_size=10), task).state.params.vector for lr in (None, task.lr)]
    assert torch.equal(*ends)


def test_the_oracle_is_right():
    x, y = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    assert float(gauss(x, y)) == pytest.approx(3.564948, abs=1e-5)


def chain(*widths):
    layers = []
    for given, wanted in itertools.pairwise(widths):
        layers += [nn.Linear(given, wanted), nn.BatchNorm1d(wanted), nn.ReLU()]
    return layers


@pytest.mark.parametrize(
    "fields",
    [
        {"interpolate": True, "generator_distance": "mmd", "transform_distance": "l2"},
        {"near": 0.3, "apart": 0.7, "generator_distance": "l2", "transform_distance": "mmd", "weight_decay": 0.1},
    ],
    ids=["mixed", "digits"],
)
def test_three_steps_are_those_of_three_optimizers(monkeypatch, fields):
    """One client with one batch; the noise is what the run drew."""
    drawn, augmented, noise = [], Job.augmented, 4
    monkeypatch.setattr(Job, "augmented", lambda job, *rest: drawn.append(augmented(job, *rest)) or drawn[-1])
    method = FRAug(steps=3, batch_size=20, ramp="exp", gamma=0.25, horizon=2, **fields)
    run = prepare(
        RunConfig.build({"task": "own", "clients": 1, "cohort": 1, "rounds": 1}), task=make_task(20, model=normed), method=method
    )
    body, head = nn.Sequential(*chain(12, 8)), nn.Linear(8, 4)
    g = nn.Sequential(*chain(noise + 4, 8, 8))
    t = nn.Sequential(nn.Linear(8 + 4, noise), nn.BatchNorm1d(noise), nn.ReLU(), nn.Linear(noise, 8), nn.BatchNorm1d(8))
    names = {"model.": nn.Sequential(*body, head), "generator.body.": g, "transform.body.": t}
    first = run.fed.engine.init_params()
    for prefix, module in names.items():
        own = {n.removeprefix(prefix): v.clone() for n, v in first.items() if n.startswith(prefix)}
        module.load_state_dict(own, strict=False)
    run.go()

    whole = [*body.parameters(), *head.parameters()]
    decay = fields.get("weight_decay", 0.0)
    rates = ((whole, 0.01), (g.parameters(), 0.05), (t.parameters(), 0.05))
    rules = [torch.optim.SGD(p, lr, 0.5, weight_decay=decay) for p, lr in rates]
    a = float(torch.exp(torch.tensor(0.25 * (0 - 2))))  # above 1/2, so that b is another number
    b, means = min(0.5, a), torch.zeros(4, 8)
    far, close = (gauss if fields[f"{of}_distance"] == "mmd" else F.mse_loss for of in ("generator", "transform"))
    near, apart = fields.get("near", 1.0), fields.get("apart", 1.0)

    def switch(*training):
        for module, on in zip((body, g, t), training, strict=True):
            module.train(on)

    def generate(z, y):
        return g(torch.cat([z, torch.eye(4)[y]], 1))

    def change(v, reference, y):
        return reference + t(torch.cat([v, torch.eye(4)[y]], 1))

    for (x, z, shift), y in drawn:
        switch(True, False, False)
        f = body(x)
        for c in range(4):
            means[c] = 0.7 * means[c] + 0.3 * f[y == c].mean(0).detach()
        cyclic = torch.tensor([(k + int(shift[0])) % 4 for k in range(len(y))])
        m = means[cyclic].clone()
        with torch.no_grad():
            v = [generate(z[:, k], label) for k, label in enumerate((cyclic, y, cyclic, y))]
            tilde, hat = change(v[0], m, cyclic), change(v[1], f, y)
            if fields.get("interpolate"):
                tilde, hat = a * tilde + (1 - a) * m, a * hat + (1 - a) * f
        synthetic = (F.cross_entropy(head(tilde), cyclic) + F.cross_entropy(head(hat), y)) / 2
        slopes = [torch.autograd.grad(b * synthetic + (1 - b) * F.cross_entropy(head(f), y), whole)]

        switch(False, True, False)
        quiet, made = body(x).detach(), generate(z[:, 4], cyclic)
        loss = F.cross_entropy(head(made), cyclic) - apart * far(made, quiet if far is gauss else m)
        slopes.append(torch.autograd.grad(loss, list(g.parameters())))

        switch(False, False, True)
        loss = 0.0
        for given, label, reference in ((v[2], cyclic, m), (v[3], y, quiet)):
            u = change(given, reference, label)
            p = F.softmax(head(u), 1)
            loss = loss + ((p * p.log()).sum(1).mean() + near * close(u, reference)) / 2
        slopes.append(torch.autograd.grad(loss, list(t.parameters())))
        for rule, gradients in zip(rules, slopes, strict=True):
            for parameter, gradient in zip(rule.param_groups[0]["params"], gradients, strict=True):
                parameter.grad = gradient
            rule.step()

    end = dict(run.state.params.items()) | dict(run.store[0]["own"].items())
    torch.testing.assert_close(end["means.values"], means, atol=1e-5, rtol=1e-4)
    for prefix, module in names.items():
        for name, value in module.state_dict().items():
            if "num_batches" not in name:
                torch.testing.assert_close(end[prefix + name], value, atol=2e-5, rtol=1e-3)


def classifier(run):
    return {name.removeprefix("model."): value for name, value in run.state.params.items() if name.startswith("model.")}


def test_without_synthetic_features_it_is_fedavg_bit_for_bit():
    plain = pl.methods.FedAvg(lr=0.1, momentum=0.5, batch_size=10, epochs=2)
    off = FRAug(lr=0.1, batch_size=10, epochs=2, steps=None, ramp="off", shared_statistics=True)
    found, wanted = classifier(finished(off, make_task(model=normed))), finished(plain, make_task(model=normed)).state.params
    assert found.keys() == dict(wanted.items()).keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_with_own_statistics_it_is_fedavg_with_local_ones():
    task = make_task(model=normed)
    plain = pl.methods.FedAvg(lr=0.1, momentum=0.5, batch_size=10, epochs=2)
    wanted = finished(plain, dataclasses.replace(task, buffers="local"))
    run = finished(FRAug(lr=0.1, batch_size=10, epochs=2, steps=None, ramp="off"), task)
    found = classifier(run)
    assert sorted(found) == sorted(wanted.state.params.layout.by_name)
    for name, value in wanted.state.params.items():
        assert torch.equal(found[name], value), name
    kept = [(run.store[c]["own"]["model.1.running_mean"], wanted.store[c]["_buffers"]["1.running_mean"]) for c in range(3)]
    assert all(torch.equal(*pair) for pair in kept)
    assert not torch.equal(kept[0][0], kept[1][0])


def test_what_stays_on_the_client():
    task, module = make_task(model=normed), FRAug().fit_task(make_task(model=normed))[1].build(0)
    for fields, more in (({}, []), ({"generator_norms": "local"}, ["generator.body.1", "generator.body.4"])):
        own = FRAug(**fields).own(module)
        names = {n for n, _ in [*module.named_parameters(), *module.named_buffers()] if own(n)}
        wanted = {
            n
            for n, _ in [
                *module.transform.named_parameters(prefix="transform"),
                *module.transform.named_buffers(prefix="transform"),
            ]
        }
        wanted |= {"means.values", "model.1.running_mean", "model.1.running_var"}
        wanted |= {f"{n}.{leaf}" for n in more for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
        assert names == wanted
    run = finished(FRAug(steps=2), task)
    assert not any(name.startswith(("transform", "means")) for name in run.state.params.layout.by_name)


def test_means_of_absent_classes_stay_zero_and_are_not_generated():
    task = make_task(model=normed)
    keep = task.train.y != 3
    run = finished(
        FRAug(steps=4), dataclasses.replace(task, train=task.train.subset(torch.nonzero(keep).flatten())), partition="iid"
    )
    for client in range(3):
        means = run.store[client]["own"]["means.values"]
        assert (means[3] == 0).all()
        assert (means[:3].abs().sum(1) > 0).all()


def test_the_transform_learns_to_stay_near_the_features():
    """D_T between u2 and f, against the transform before any training."""
    task = make_task(model=normed)
    near, ends = FRAug(steps=10, transform_lr=0.2, near=10.0, transform_distance="l2"), []
    for rounds in (1, 4):
        run = finished(near, task, clients=1, cohort=1, rounds=rounds, partition="iid")
        ends.append(run)
    module = ends[0].fed.engine.here.model.module
    f = module.features(task.train.x).detach()
    v = torch.rand(len(f), f.shape[1], generator=torch_rng(0, "v"))
    distances = []
    for own in (dict(ends[0].fed.engine.init_params().items()), ends[0].store[0]["own"], ends[1].store[0]["own"]):
        with torch.no_grad():
            for name, value in [*module.transform.named_parameters(), *module.transform.named_buffers()]:
                if "num_batches" not in name:
                    value.copy_(own[f"transform.{name}"])
            module.transform.train()
            distances.append(float((module.transform(v, f, task.train.y) - f).square().mean()))
    assert distances[2] < 0.5 * distances[0]


def test_harder_labels_lower_their_probability():
    sure, unsure = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    assert less_sure(sure, torch.tensor([0])) > less_sure(unsure, torch.tensor([0]))
    p = torch.tensor([[0.7, 0.2, 0.1]])
    wanted = -((0.9 + 0.1 / 3) * (1 - p[0, 0]).log() + 0.1 / 3 * ((1 - p[0, 1]).log() + (1 - p[0, 2]).log()))
    torch.testing.assert_close(less_sure(p.log(), torch.tensor([0])), wanted)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_a_generator_that_is_driven_away_stays_finite(distance):
    run = finished(
        FRAug(apart=10.0, generator_distance=distance, generator_lr=0.5, steps=30, batch_size=20), make_task(model=normed), rounds=1
    )
    assert torch.isfinite(run.state.params.vector).all()
    assert run.state.params.vector.abs().max() < 100


@pytest.mark.parametrize(
    "fields", [{"harden": "label"}, {"noise": "normal"}, {"noise_size": 3}, {"interpolate": True}, {"ema": 0.5}]
)
def test_every_option_changes_the_head(fields):
    heads = [
        classifier(finished(FRAug(steps=3, ramp="half", **more), make_task(model=normed)))["3.weight"] for more in ({}, fields)
    ]
    assert not torch.allclose(*heads, atol=1e-7)


def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic():
    assert_masks_change_nothing(make_task(), "fraug", options={"steps": 2, "batch_size": 20})
