"""FAL: the worked step, an independent adversarial training, FedAvg where nothing attacks, and robust evaluation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import paceline as pl
from paceline.blocks.adversarial import attacked
from paceline.core.errors import ConfigError
from paceline.core.random import torch_rng
from paceline.data.raw import Part, RawData
from paceline.methods.robust import fal
from paceline.run import RunConfig, prepare
from paceline.tasks import from_data
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing


def logistic(scores, y):
    return F.softplus(-y * scores.flatten()).mean()


def linear():
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0]]))
    return module


def finished(method, task, **values):
    run = prepare(RunConfig.build({"method": "fal", "task": "own", "vectorize": "off", **values}), task=task, method=method)
    return run, run.go()


def vector(method, task, **values):
    run, _ = finished(method, task, **values)
    return run.method.model(run.state).vector


def test_the_worked_step():
    task = pl.Task.from_tensors(torch.tensor([[0.5, 0.5]] * 2), torch.ones(2), linear, loss=logistic, test=0.5)
    fal = pl.methods.FAL(adversary="fgsm", radius=0.1, steps=1, lr=0.5, batch_size=1)
    np.testing.assert_allclose(vector(fal, task, clients=1, cohort=1, rounds=1), [1.137995, -1.793008], atol=1e-6)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_one_client_and_one_step_is_central_adversarial_training(norm):
    task = make_task()
    fal = pl.methods.FAL(steps=1, batch_size=240, radius=0.4, attack_steps=3, attack_size=0.2, start="zero", norm=norm, lr=0.1)
    found = vector(fal, task, clients=1, cohort=1, rounds=3)
    module = task.build(0)
    run = prepare(RunConfig.build({"clients": 1, "cohort": 1, "task": "own"}), task=task)
    start = run.fed.init_params()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(start[name])
    x, y = task.train.x, task.train.y
    for _ in range(3):
        delta = torch.zeros_like(x)
        for _ in range(3):
            leaf = (x + delta).requires_grad_(True)
            (g,) = torch.autograd.grad(F.cross_entropy(module(leaf), y, reduction="sum"), leaf)
            if norm == "inf":
                delta = (delta + 0.2 * g.sign()).clamp(-0.4, 0.4)
            else:
                delta = delta + 0.2 * g / (g.norm(dim=1, keepdim=True) + 1e-12)
                delta = delta * (0.4 / delta.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        module.zero_grad()
        F.cross_entropy(module(x + delta), y).backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.1 * parameter.grad
    np.testing.assert_allclose(found, torch.cat([p.detach().flatten() for p in module.parameters()]), atol=1e-5)


@pytest.mark.parametrize("fields", [{"adversary": "none"}, {"radius": 0.0}])
def test_without_an_adversary_it_is_fedavg_bit_for_bit(fields):
    common = {"clients": 5, "cohort": 3, "rounds": 3, "partition": "dirichlet:0.5"}
    fal = pl.methods.FAL(steps=None, epochs=2, batch_size=None, importance="samples", **fields)
    fedavg = pl.methods.FedAvg(epochs=2)
    assert torch.equal(vector(fal, make_task(), **common), vector(fedavg, make_task(), **common))


def test_clients_count_equally_by_default():
    values = {"clients": 4, "cohort": 4, "rounds": 1, "partition": "quantity:0.5"}
    both = [
        vector(pl.methods.FAL(steps=2, adversary="none", importance=kind), make_task(), **values) for kind in ("uniform", "samples")
    ]
    assert not torch.allclose(*both)


def test_the_attack_does_not_use_the_training_streams():
    """With a radius of almost 0, dropout and the order of samples are those of training without an attack."""

    def dropping():
        return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))

    values = {"clients": 3, "cohort": 3, "rounds": 2}
    near = vector(pl.methods.FAL(radius=1e-7, attack_steps=2), make_task(model=dropping), **values)
    none = vector(pl.methods.FAL(adversary="none"), make_task(model=dropping), **values)
    torch.testing.assert_close(near, none, atol=1e-5, rtol=1e-4)


def test_batch_norm_statistics_are_those_of_training_alone():
    """One pass over batches of adversarial examples, none over those of the attack."""

    def normed():
        return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    values = {"clients": 3, "cohort": 3, "rounds": 1}
    ends = []
    for fields in ({"radius": 1e-7}, {"adversary": "none"}):
        run, _ = finished(pl.methods.FAL(steps=3, **fields), make_task(model=normed), **values)
        model = run.method.model(run.state)
        ends.append(model.vector[model.layout.num_params :])
    torch.testing.assert_close(*ends, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "fields", [{"attack_on": "global"}, {"clean": 0.5}, {"start": "zero"}, {"adversary": "fgsm"}, {"norm": "2"}]
)
def test_every_option_changes_the_result(fields):
    values = {"clients": 3, "cohort": 3, "rounds": 1}
    usual = vector(pl.methods.FAL(steps=3, radius=0.5), make_task(), **values)
    assert not torch.allclose(usual, vector(pl.methods.FAL(steps=3, radius=0.5, **fields), make_task(), **values))


def test_an_attack_on_the_global_weights_is_that_of_the_first_step():
    """With one local step, the current weights are the global ones."""
    values = {"clients": 3, "cohort": 3, "rounds": 2}
    one, other = (vector(pl.methods.FAL(steps=1, attack_on=on), make_task(), **values) for on in ("local", "global"))
    torch.testing.assert_close(one, other)


def test_a_share_of_clean_samples_mixes_both_losses():
    values = {"clients": 1, "cohort": 1, "rounds": 1}
    fields = {"steps": 1, "batch_size": 240, "start": "zero", "lr": 0.1}
    ends = [vector(pl.methods.FAL(**fields, **f), make_task(), **values) for f in ({"clean": 0.25}, {}, {"adversary": "none"})]
    torch.testing.assert_close(ends[0], 0.75 * ends[1] + 0.25 * ends[2], atol=1e-6, rtol=1e-5)


def test_it_is_more_robust_than_fedavg_on_attacked_samples(monkeypatch):
    """One input tells the class in nine of ten samples and cannot be moved far enough; forty tell it always, and can."""
    y, stream = torch.arange(400) % 2, torch_rng(0, "x")
    x = 0.12 * y[:, None] - 0.06 + 0.02 * torch.randn(400, 41, generator=stream)
    x[:, 0] = 0.8 * (y ^ (torch.rand(400, generator=stream) < 0.1)) - 0.4
    task = pl.Task.from_tensors(x, y, lambda: nn.Linear(41, 2), lr=0.5)
    options, attacks = {"partition": "iid", "clients": 4, "cohort": 4, "rounds": 10, "client_test": 0.25}, []
    monkeypatch.setattr(fal, "attacked", lambda *given: attacks.append(given[4]) or attacked(*given))
    scores = {
        (adversary, judge, how): finished(
            pl.methods.FAL(adversary=adversary, attack_steps=3, judge=judge), task, **options, evaluation=how
        )[1].accuracy
        for adversary, judge, how in (
            ("none", "clean", "federated"),
            ("none", "robust", "federated"),
            ("pgd", "robust", "federated"),
            ("pgd", "robust", "clients"),
        )
    }
    assert {(attack.steps, attack.size) for attack in attacks} == {(20, None)}
    assert scores["none", "clean", "federated"] > 0.97
    assert scores["none", "robust", "federated"] < 0.2
    assert scores["pgd", "robust", "federated"] > 0.8
    assert scores["pgd", "robust", "clients"] > 0.8


def test_inputs_that_are_codes_are_refused():
    task = pl.Task.from_tensors(
        torch.randint(5, (40, 3)), torch.arange(40) % 2, lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2))
    )
    with pytest.raises(ConfigError, match="one tensor of floats"):
        finished(pl.methods.FAL(), task, clients=2, cohort=2, rounds=1)
    assert finished(pl.methods.FAL(adversary="none"), task, clients=2, cohort=2, rounds=1)[1].rounds == 1


def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic():
    assert_masks_change_nothing(make_task(), "fal", options={"steps": 2, "attack_steps": 2})


@pytest.mark.parametrize("fields", [{}, {"attack_on": "global", "start": "zero"}])
def test_pictures_of_three_channels_are_attacked_alike_stacked_and_alone(fields):
    rng = np.random.default_rng(0)
    part = Part(rng.integers(0, 256, (90, 8, 8, 3), dtype=np.uint8), np.arange(90) % 3)
    raw = RawData(part, part, ("a", "b", "c"))
    task = from_data.make_task("pictures", "tiny_cnn", {}, from_data.Defaults(batch_size=10, lr=0.1), raw, "", None, 0)
    fal, ends = pl.methods.FAL(steps=4, attack_steps=2, **fields), []
    for how in ("off", "on"):
        values = {"clients": 4, "cohort": 4, "rounds": 2, "partition": "quantity:5", "vectorize": how, "chunk": 4}
        run, _ = finished(fal, task, **values)
        assert run.fed.engine.notes == {}
        ends.append(run.method.model(run.state).vector)
    torch.testing.assert_close(*ends, atol=1e-4, rtol=1e-3)
