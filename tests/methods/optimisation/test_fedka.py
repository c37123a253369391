"""FedKA: alpha, both phases against torch's Adam, votes, the server's training, and FedAvg without alignment."""

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import paceline as pl
from paceline.blocks.voting import elected
from paceline.core.client import AdamW, Client
from paceline.core.errors import ConfigError, PlanError
from paceline.core.hooks import StepStream
from paceline.core.method import on_client
from paceline.core.random import derive
from paceline.core.training import Job
from paceline.core.update import Update
from paceline.methods.optimisation.fedka import Workspace
from paceline.run import RunConfig, prepare
from paceline.tasks import load_task
from paceline.tasks.domains import held_out
from tests.conftest import make_task
from tests.methods.masked import assert_masks_change_nothing
from tests.methods.oracles import gauss

FedKA = pl.methods.FedKA
QUICK = {"steps": 4, "batch_size": 10, "lr": 0.01, "horizon": 4, "collect": 2, "vote_batches": 3}


def normed():
    """Return a model without a bias before its norm: Adam would make steps of the noise in its gradient, which is 0."""
    return nn.Sequential(nn.Linear(12, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def prepared(method, task=None, **values):
    common = {"task": "own", "vectorize": "off", "clients": 3, "cohort": 3, "rounds": 2, "partition": "iid"}
    return prepare(RunConfig.build(common | values), task=task or make_task(model=normed), method=method)


def finished(method, task=None, **values):
    run = prepared(method, task, **values)
    run.go()
    return run


def test_alpha_is_that_of_the_sheet():
    alpha = FedKA(horizon=10, steps=10).alpha
    found = [alpha(1, 0), alpha(2, 0), alpha(6, 0), alpha(11, 0), alpha(50, 3)]
    assert found == pytest.approx([0.0, 0.244919, 0.848284, 0.986614, 0.986614], abs=1e-6)
    assert alpha(1, 5) == alpha(1, 5) > alpha(1, 4)


@dataclass(frozen=True)
class Uniform(pl.methods.FedAvg):
    """FedAvg with Adam, in which all clients count alike."""

    @on_client
    def train(self, client, message):
        local = client.sgd(message, optimizer=AdamW(0.01), steps=4, batch_size=10)
        return Update(delta=local.params - message, weight=min(client.num_samples, 1))


def test_without_alignment_and_votes_it_is_uniform_fedavg_bit_for_bit():
    values = {"partition": "quantity:0.5"}
    plain = FedKA(**QUICK, align="none", voting=False)
    for task in (make_task(), make_task(model=normed)):
        found, wanted = finished(plain, task, **values).state.params, finished(Uniform(), task, **values).state.params
        for name, value in wanted.items():
            assert torch.equal(found[f"model.{name}"], value), name


def test_at_alpha_zero_only_the_discriminator_learns_more():
    """In the first batch neither a reversed gradient nor a distance counts."""
    ends = {}
    for align in ("none", "adversarial", "matching", "both"):
        ends[align] = finished(
            FedKA(**QUICK | {"steps": 1, "collect": 1}, align=align, voting=False), make_task(), rounds=1
        ).state.params
    for name, value in ends["none"].items():
        for align in ("adversarial", "matching", "both"):
            same = torch.equal(ends[align][name], value)
            running = "running" in name or name.endswith(("1.bias", "0.bias"))
            assert same == (name.startswith("model.") or align == "matching") or running, (align, name)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, alpha):
        ctx.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope):
        return -ctx.alpha * slope, None


def networks(first):
    body, top = nn.Sequential(nn.Linear(12, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 4)
    domain = nn.Sequential(nn.Linear(8, 100, bias=False), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 2))
    parts = {"model.": nn.Sequential(*body, top), "domain.": domain}
    for prefix, module in parts.items():
        module.load_state_dict({n.removeprefix(prefix): v.clone() for n, v in first.items() if n.startswith(prefix)}, strict=False)
    return body, top, domain, parts


def test_a_round_is_that_of_torch(monkeypatch):
    """Two clients with one batch each: both phases, the mean, votes, and the server's steps with its own Adam."""
    augmented, seen = Job.augmented, []
    monkeypatch.setattr(Job, "augmented", lambda job, *rest: seen.append(augmented(job, *rest)) or seen[-1])
    task = make_task(40, model=normed)
    method = FedKA(steps=4, batch_size=20, lr=0.01, horizon=3, collect=2, vote_batches=2)
    run = prepared(method, task, clients=2, cohort=2, rounds=3)
    state = first = run.fed.init_params()
    moments = None
    for round in range(2):
        seen.clear()
        run.step()
        batches = [batch for batch in seen if isinstance(batch[0], tuple)]
        assert len(batches) == 2 * (4 + 2)
        ends, told = [], []
        begin = dict(state.items())
        order = torch.randperm(80, generator=pl.core.random.torch_rng(0, "target", round + 1))[:40]
        u, labels = task.test.x[order], task.test.y[order]
        for client in range(2):
            body, top, domain, parts = networks(begin)
            body.eval()
            hidden = body(u).detach()
            body.train()
            all_ = [p for part in parts.values() for p in part.parameters()]
            adam = torch.optim.Adam(all_, 0.01)
            own = batches[client * 6 : client * 6 + 6]
            for i, ((x, target, given), y) in enumerate(own[:4]):
                alpha = 2 / (1 + np.exp(-5 * (i + round * 4) / 12)) - 1
                np.testing.assert_allclose(given, alpha, rtol=1e-5, atol=1e-7)
                assert all((u == row).all(1).any() for row in target)
                adam.zero_grad()
                f, g = body(x), body(target)
                loss = F.cross_entropy(top(f), y)
                loss = loss + F.cross_entropy(domain(Reversed.apply(f, alpha)), torch.zeros(len(y), dtype=torch.int64))
                loss = loss + F.cross_entropy(domain(Reversed.apply(g, alpha)), torch.ones(len(y), dtype=torch.int64))
                loss.backward()
                adam.step()
            adam = torch.optim.Adam(body.parameters(), 0.01)
            for step, ((x, h, given), _) in enumerate(own[4:]):
                assert len(x) == 20  # a batch, of the two that a step may have
                assert all((hidden - row).abs().sum(1).min() < 1e-4 for row in h)
                alpha = 2 / (1 + np.exp(-5 * (2 * step + round * 4) / 12)) - 1
                np.testing.assert_allclose(given, alpha, rtol=1e-5, atol=1e-7)
                adam.zero_grad()
                (alpha * gauss(body(x), h)).backward()
                adam.step()
            ends.append({p + n: v.clone() for p, m in parts.items() for n, v in m.state_dict().items()})
            body.eval()
            told.append(top(body(u)).argmax(1))
        mean = {n: torch.stack([end[n].float() for end in ends]).mean(0) for n in ends[0]}
        body, top, domain, parts = networks(mean)
        elected = torch.tensor([np.bincount(pair, minlength=4).argmax() for pair in torch.stack(told, 1).numpy()])
        assert run.history[-1]["note_vote_accuracy"] == pytest.approx(float((elected == labels).float().mean()), abs=1e-6)
        body.eval()
        members = torch.stack([(t == labels).float().mean() for t in told]).mean()
        effect = members - (top(body(u)).argmax(1) == labels).float().mean()
        assert run.history[-1]["note_group_effect"] == pytest.approx(float(effect), abs=1e-6)
        body.train()
        whole = [p for part in parts.values() for p in part.parameters()]
        adam = torch.optim.Adam(whole, 0.01)
        if moments is not None:
            adam.load_state_dict(moments)
        alpha = 2 / (1 + np.exp(-5 * (3 + round * 4) / 12)) - 1
        rows = torch.randperm(40, generator=pl.core.random.torch_rng(derive(0, "server data", round + 1, "votes"), "order", 1))
        for part in rows.split(20):
            for p in whole:
                p.grad = torch.zeros_like(p)
            (alpha * F.cross_entropy(top(body(u[part])), elected[part])).backward()
            adam.step()
        moments = adam.state_dict()
        state = run.state.params
        for prefix, module in parts.items():
            for name, value in module.state_dict().items():
                if "num_batches" in name:
                    continue
                apart, moved = (float((state[prefix + name] - other).norm()) for other in (value, begin[prefix + name]))
                assert apart < 0.03 * moved, (round, name, apart, moved)  # Adam divides by gradients, however small
    assert run.state.taken == 4
    assert not torch.equal(first.vector, state.vector)


def test_batches_of_a_matching_step_are_whole_and_their_mean_counts(monkeypatch):
    losses = []

    def known(x, y):
        losses.append((len(x), len(y)))
        return x.sum() * 0 + 1.0

    monkeypatch.setattr("paceline.methods.optimisation.fedka.mmd", known)
    for last, wanted in ((False, [(10, 10)] * 3), (True, [(10, 10)])):
        losses.clear()
        method = FedKA(**QUICK | {"steps": 3, "collect": 4}, align="matching", voting=False, last_only=last)
        finished(method, make_task(35, model=normed), clients=1, cohort=1, rounds=1)
        assert losses == wanted
    losses.clear()
    finished(FedKA(**QUICK, align="matching", voting=False), make_task(7, model=normed), clients=1, cohort=1, rounds=1)
    assert set(losses) == {(7, 7)}


def test_objectives_are_those_of_the_formulas():
    """With features instead of inputs, and with two batches in a step of the matching."""
    torch.manual_seed(0)
    method = FedKA(**QUICK | {"steps": 8}, share="features", voting=False)
    module = method.fit_task(make_task())[1].build(0)
    x, y, hidden, client = torch.randn(20, 12), torch.arange(20) % 4, torch.rand(30, 8), SimpleNamespace(round=3)
    given = Workspace(None, hidden, None)
    stream = StepStream()
    stream.step = 1
    hooks = method.matching(client, given, 10)
    (x, h, alpha), _ = hooks.augment(x, y, stream)
    assert alpha.tolist() == pytest.approx([method.alpha(3, 2)] * 10 + [method.alpha(3, 3)] * 10)
    f = module.features(x)
    wanted = (method.alpha(3, 2) * gauss(f[:10], h[:10]) + method.alpha(3, 3) * gauss(f[10:], h[10:])) / 2
    torch.testing.assert_close(hooks.objective(module, (x, h, alpha), y), wanted)
    last = dataclasses.replace(method, last_only=True).matching(client, given, 10).objective(module, (x, h, alpha), y)
    torch.testing.assert_close(last, method.alpha(3, 3) * gauss(f[10:], h[10:]) / 2)
    hooks = method.adversarial(client, given)
    (x, u, alpha), _ = hooks.augment(x, y, stream)
    assert alpha.tolist() == pytest.approx([method.alpha(3, 1)] * 20)
    scores = [module.domain(value) for value in (f, u)]
    wanted = F.cross_entropy(module(x), y) + sum(F.cross_entropy(s, torch.full_like(y, k)) for k, s in enumerate(scores))
    torch.testing.assert_close(hooks.objective(module, (x, u, alpha), y), wanted)


def test_features_alone_are_sent_where_inputs_stay_at_the_server():
    sent, train = [], FedKA.train

    class Watching(FedKA):
        @on_client
        def train(self, client, message):
            sent.append(message)
            return train(self, client, message)

    run = finished(Watching(**QUICK, share="features", voting=False))
    assert all(message.inputs is None and message.hidden.shape == (30, 8) for message in sent)
    assert torch.isfinite(run.state.params.vector).all()
    with pytest.raises(PlanError, match="voting=false"):
        prepared(FedKA(share="features"))


def test_labels_of_the_target_are_not_used():
    task, ends = make_task(model=normed), []
    for y in (task.test.y, torch.zeros_like(task.test.y)):
        ends.append(finished(FedKA(**QUICK), dataclasses.replace(task, test=pl.tasks.Arrays(task.test.x, y))).state.params.vector)
    assert torch.equal(*ends)


def test_a_domain_is_held_out():
    task = load_task("corrupted", of="digits", kinds="clean/fog/contrast", limit=300)
    made = held_out(task, "fog")
    assert len(made.train) + len(made.target) == len(task.train)
    assert made.train.owners == ("clean", "contrast")
    for new, old in ((0, 0), (1, 2)):
        assert torch.equal(made.train.x[made.train.owner == new], task.train.x[task.train.owner == old])
    assert torch.equal(made.target.x, task.train.x[task.train.owner == 1])
    assert torch.equal(made.test.x, task.test.x[task.test.owner == 1])
    assert not made.parts()
    assert "target" in made.fingerprint
    with pytest.raises(ConfigError, match="clean, fog, contrast"):
        held_out(task, "rain")
    with pytest.raises(ConfigError, match="no test samples"):
        held_out(dataclasses.replace(task, test=task.test.subset(torch.nonzero(task.test.owner != 1).flatten())), "fog")
    with pytest.raises(ConfigError, match="none"):
        prepared(FedKA(target="fog"))
    run = prepared(FedKA(**QUICK, target="fog"), task, partition="natural", clients=2, cohort=2)
    run.go()
    assert run.history[-1]["accuracy"] >= 0


def test_votes_without_enough_agreement_do_not_count(monkeypatch):
    """Two of three votes for the first sample, one each for the second, and none of the others."""

    def split(total, least):
        total = torch.zeros_like(total)
        total[0, 1], total[0, 2], total[1, :3] = 2 / 3, 1 / 3, 1 / 3
        return elected(total, least)

    monkeypatch.setattr("paceline.methods.optimisation.fedka.elected", split)
    told = []
    for agreement, samples in ((0.0, 2), (0.5, 1), (0.9, 0)):
        run = finished(FedKA(**QUICK | {"batch_size": 1}, agreement=agreement), rounds=1)
        assert run.state.taken == samples
        told.append(run.history[-1])
    one = told[1]["note_used_votes"]
    assert [entry["note_used_votes"] for entry in told] == pytest.approx([2 * one, one, 0.0])
    assert one > 0
    assert told[1]["note_used_vote_accuracy"] in (0.0, 1.0)
    assert told[2]["note_used_vote_accuracy"] == 0.0
    assert len({entry["note_vote_accuracy"] for entry in told}) == 1  # of all votes, whichever are used
    monkeypatch.undo()
    frozen = finished(FedKA(**QUICK | {"lr": 0.0}, agreement=1.0), rounds=1)
    assert frozen.state.taken == 3


def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic():
    assert_masks_change_nothing(make_task(), "fedka", options=QUICK)


def test_the_server_s_loss_has_the_factor_of_the_last_batch(monkeypatch):
    """Adam hardly shows a factor of the loss, so it is read from the hook."""
    seen = []

    def watched(self, *args, hooks=None, **options):
        if hooks and hooks.loss:
            seen.append(float(hooks.loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))) / np.log(2))
        return sgd(self, *args, hooks=hooks, **options)

    sgd = Client.sgd
    monkeypatch.setattr(Client, "sgd", watched)
    method = FedKA(**QUICK)
    finished(method)
    assert seen == pytest.approx([method.alpha(1, 3), method.alpha(2, 3)], abs=1e-6)
