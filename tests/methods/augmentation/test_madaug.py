"""MADAug: its default transform, curriculum and exploration, what is sent, and what a small client does."""

import math

import pytest
import torch
from torch import nn

import paceline as pl
from paceline.blocks.augmentations import compose, crop, cutout, flip, inputs_only
from paceline.core.client import Client
from paceline.core.errors import ConfigError
from paceline.core.hooks import Hooks
from paceline.methods.augmentation.madaug import MADAug
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.forms import pictured
from tests.methods.masked import assert_masks_change_nothing
from tests.methods.quadratics import by_size

QUICK = {"batch_size": 10, "lr": 0.1, "weight_decay": 0.0, "operations": ("rotate", "translate-x", "invert"), "period": 2}
PLAIN = {"smoothing": 0.0, "clip": 0.0, "weight_decay": 0.0}


def finished(method, split=None, **values):
    common = {"task": "own", "clients": 4, "cohort": 4, "rounds": 2, "vectorize": "off"} | values
    run = prepare(RunConfig.build(common), task=pictured(make_task()), method=method, split=split)
    run.go()
    return run


class Transformed(FedAvg):
    """FedAvg with the default transform."""

    def hooks(self, client, start):
        return Hooks(augment=inputs_only(compose(crop(1), flip(), cutout(0.5))))


def test_without_policy_and_curriculum_it_is_fedavg_with_the_default_transform_bit_for_bit():
    """rho is 0.01, so of ten pictures none is augmented."""
    method = MADAug(**QUICK | PLAIN, policy="frozen", scale=1e9, margin=1)
    wanted = finished(Transformed(lr=0.1, batch_size=10)).state.params
    found = finished(method).state.params
    assert all(torch.equal(found[f"model.{name}"], wanted[name]) for name in wanted)
    moved = finished(MADAug(**QUICK | PLAIN, policy="frozen", scale=0.0, margin=1)).state.params
    assert not torch.equal(moved["model.1.weight"], wanted["1.weight"])
    plain = finished(FedAvg(lr=0.1, batch_size=10)).state.params
    assert not torch.equal(plain["1.weight"], wanted["1.weight"])


@pytest.fixture
def jobs(monkeypatch):
    """Return the list of (client, data, hooks, optimizer) of all trainings."""
    seen, sgd = [], Client.sgd

    def watched(self, *args, **values):
        seen.append((self, values["data"], values["hooks"], values["optimizer"]))
        return sgd(self, *args, **values)

    monkeypatch.setattr(Client, "sgd", watched)
    return seen


class Fixed(nn.Module):
    """Scores (2, 1, 0) of any picture."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))

    def levels(self, seen, temperature=1.0):
        self.temperatures = [*getattr(self, "temperatures", []), temperature]
        return torch.full((len(seen), 3), 0.5), torch.full((len(seen), 3), 1 / 3).log()

    def forward(self, x):
        self.shown = x
        return torch.tensor([2.0, 1.0, 0.0]).expand(len(x), 3)


def test_the_loss_is_smoothed(jobs):
    finished(MADAug(**QUICK))
    hooks = jobs[0][2]
    given, y = hooks.augmented(torch.rand(5, 1, 3, 4), torch.zeros(5, dtype=torch.long), 0, 1)
    assert len(given) == 7
    assert float(hooks.objective(Fixed(), given, y)) == pytest.approx(0.507606, abs=1e-6)
    given, y = hooks.augmented(torch.rand(5, 1, 3, 4), torch.zeros(5, dtype=torch.long), 0, 0)
    module = Fixed()
    assert float(hooks.objective(module, given, y)) == pytest.approx(0.507606, abs=1e-6), "exploration is not part of the loss"
    assert module.temperatures == [3.0, 1.0]


def test_the_first_part_of_a_batch_is_augmented_by_the_curriculum_of_its_round(jobs):
    method = MADAug(**QUICK | {"operations": ("invert", "solarize")}, scale=4.0, margin=0, mirror=False, erase=0.0, epochs=2)
    finished(method, rounds=4)
    x = torch.rand(9, 1, 3, 4) * 0.3 + 0.1
    for client, _, hooks, _ in jobs:
        module = Fixed()
        module.levels = lambda seen, temperature=1.0: (torch.full((9, 2), 0.01), torch.tensor([[0.0, -50.0]]).expand(9, 2))
        given, y = hooks.augmented(x, torch.zeros(9, dtype=torch.long), 0, 1)
        hooks.objective(module, given, y)
        epoch = 2 * (client.round - 1)
        count = math.floor(min(math.tanh(epoch / 4.0) + 0.01, 1.0) * 9)
        changed = (module.shown != x).flatten(1).any(1)
        assert changed.tolist() == [row < count for row in range(9)]
    assert count == 8


def test_exploration_is_in_each_second_step_and_moves_the_policy_alone(jobs):
    run = finished(MADAug(**QUICK))
    hooks = jobs[0][2]
    sizes = [len(hooks.augmented(torch.rand(5, 1, 3, 4), torch.arange(5) % 4, 0, step)[0]) for step in range(4)]
    assert sizes == [9, 7, 9, 7]
    frozen = finished(MADAug(**QUICK | {"scale": 1e9}, policy="frozen"))
    first = run.fed.init_params()
    assert torch.equal(frozen.state.params["policy.0.weight"], first["policy.0.weight"])
    assert not torch.equal(run.state.params["policy.0.weight"], first["policy.0.weight"])
    # a tenth of each client's samples is held out for exploration, so the model itself sees other batches than without


def test_a_policy_that_cannot_learn_changes_nothing_of_the_model():
    """The rate of theta is 0 in one run; exploration takes place in both."""
    still = finished(MADAug(**QUICK, policy_lr=0.0), rounds=1)
    learnt = finished(MADAug(**QUICK, policy_lr=1e-3), rounds=1)
    body = [name for name in still.state.params if name.startswith("model.")]
    assert all(torch.equal(still.state.params[name], learnt.state.params[name]) for name in body)
    assert not torch.equal(still.state.params["policy.0.bias"], learnt.state.params["policy.0.bias"])


def test_the_policy_steps_as_adam_does():
    """After one exploration each value of theta has moved by the rate, but for decay."""
    run = finished(MADAug(**QUICK | {"period": 100}, policy_decay=0.0), rounds=1)
    moved = run.state.params["policy.0.bias"] - run.fed.init_params()["policy.0.bias"]
    assert (moved.abs() <= 1e-3 + 1e-7).all()
    lone = finished(MADAug(**QUICK | {"period": 100}, policy_decay=0.0), rounds=1, clients=1, cohort=1)
    moved = lone.state.params["policy.0.bias"] - lone.fed.init_params()["policy.0.bias"]
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-3), rtol=0.01, atol=0)


def test_a_tenth_is_held_out_by_class_and_rotates(jobs):
    finished(MADAug(**QUICK), rounds=3)
    whole = {}
    for client, rest, hooks, _ in jobs:
        held = next(c.cell_contents for c in hooks.augment.__closure__ if type(c.cell_contents).__name__ == "ClientData")
        assert len(held) == client.num_samples // 10 == 6
        assert sorted([*held.known.tolist(), *rest.known.tolist()]) == sorted(client.train.known.tolist())
        counts = held.y[held.index].bincount(minlength=4)
        assert counts.max() - counts.min() <= 1
        whole.setdefault(client.id, set()).add(tuple(sorted(held.known.tolist())))
    assert all(len(sets) == 3 for sets in whole.values())


def test_a_small_client_trains_the_model_alone_and_does_not_count_for_the_policy(jobs):
    run = finished(MADAug(**QUICK), split=by_size([60, 19]), clients=2, cohort=2, rounds=1)
    assert [len(rest) for _, rest, _, _ in jobs] == [54, 19]
    alone = finished(MADAug(**QUICK), split=by_size([60, 0]), clients=2, cohort=2, rounds=1)
    assert torch.equal(run.state.params["policy.0.weight"], alone.state.params["policy.0.weight"])
    assert not torch.equal(run.state.params["model.1.weight"], alone.state.params["model.1.weight"])
    none = finished(MADAug(**QUICK), split=by_size([19, 19]), clients=2, cohort=2, rounds=1)
    assert torch.equal(none.state.params["policy.0.weight"], none.fed.init_params()["policy.0.weight"])


def test_no_exploration_before_its_start(jobs):
    run = finished(MADAug(**QUICK, start=2, epochs=2), rounds=1)
    assert all(len(rest) == client.num_samples for client, rest, _, _ in jobs)
    assert torch.equal(run.state.params["policy.0.weight"], run.fed.init_params()["policy.0.weight"])
    run = finished(MADAug(**QUICK, start=2, epochs=2))
    assert not torch.equal(run.state.params["policy.0.weight"], run.fed.init_params()["policy.0.weight"])


def test_a_local_policy_stays_with_its_client():
    run, shared = (finished(MADAug(**QUICK, policy=policy)) for policy in ("local", "global"))
    first = run.fed.init_params()
    assert torch.equal(run.state.params["policy.0.weight"], first["policy.0.weight"])
    own = [run.fed.engine.memories[client]["policy"] for client in range(4)]
    assert own[0].layout.size == 2 * 3 * (8 + 1)  # 2 J (d + 1)
    assert len({policy.sha256() for policy in own}) == 4
    assert shared.fed.totals.bytes_up - run.fed.totals.bytes_up >= 8 * 4 * own[0].layout.size


def test_a_local_policy_goes_on_where_its_client_left_it():
    """Each round has one exploration of one Adam step, so two rounds move some values by two steps."""
    options = QUICK | {"period": 100, "policy": "local", "policy_decay": 0.0}
    one, two = (finished(MADAug(**options), rounds=rounds) for rounds in (1, 2))
    first = one.fed.init_params()["policy.0.bias"]
    moved = [(run.fed.engine.memories[0]["policy"]["policy.0.bias"] - first).abs() for run in (one, two)]
    assert float(moved[0].max()) == pytest.approx(1e-3, rel=0.01)
    assert float(moved[1].max()) == pytest.approx(2e-3, rel=0.01)


def test_levels_are_spread_and_signs_are_drawn(jobs):
    finished(MADAug(**QUICK), rounds=1)
    given, _ = jobs[0][2].augmented(torch.rand(200, 1, 3, 4), torch.arange(200) % 4, 0, 1)
    jitter, sign = given[4], given[5]
    assert 0.28 < float(jitter.max()) <= 0.3
    assert -0.3 <= float(jitter.min()) < -0.28
    assert sign.unique().tolist() == [-1.0, 1.0]
    assert abs(float(sign.mean())) < 0.15


def test_only_the_gradient_of_the_model_is_clipped(jobs):
    run = finished(MADAug(**QUICK, clip=0.5))
    layout = run.state.params.layout
    gradient = run.state.params.zeros() + 1.0
    found = jobs[0][2].correct(gradient, gradient)
    body = torch.cat([found[name].flatten() for name in layout.by_name if name.startswith("model.")])
    assert float(body.norm()) == pytest.approx(0.5)
    assert (found["policy.0.weight"] == 1).all()
    small = jobs[0][2].correct(gradient * 1e-4, gradient)
    assert torch.equal(small.vector, gradient.vector * 1e-4)


def test_samples_that_are_no_pictures_are_refused():
    with pytest.raises(ConfigError, match="madaug augments pictures"):
        prepare(RunConfig.build({"task": "own"}), task=make_task(), method=MADAug())
    pixels = pl.Task.from_tensors(torch.rand(8, 1, 4, 4), torch.zeros(8, 4, 4).long(), lambda: nn.Conv2d(1, 2, 1), num_classes=2)
    with pytest.raises(ConfigError, match="with a class each"):
        prepare(RunConfig.build({"task": "own"}), task=pixels, method=MADAug())
    with pytest.raises(ConfigError, match="distinct, at least per_picture=2"):
        finished(MADAug(operations=("invert",)))


def test_a_saved_model_predicts_and_keeps_its_policy(tmp_path):
    """The policy can be carried over to other data."""
    run = pl.run(MADAug(**QUICK), pictured(make_task()), clients=4, rounds=1)
    assert 0 <= run.accuracy <= 1
    assert finished(MADAug(**QUICK, layers=1), rounds=1).state.params["policy.2.weight"].shape == (6, 128)


@pytest.mark.parametrize("policy", ["global", "local"])
def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic(policy):
    """However far Adam moves the policy, no coordinate of it is clipped."""
    options = QUICK | {"policy": policy, "period": 4, "operations": ["rotate", "invert"], "policy_lr": 0.2}
    ended = assert_masks_change_nothing(pictured(make_task()), "madaug", options=options)
    assert [record["note_clipped"] for record in ended.history] == [0, 0, 0]
