"""pFedPG: what is sent and kept, both forms against each other and against local training by hand."""

import hashlib

import pytest
import torch

from paceline.blocks.architectures import architectures
from paceline.blocks.prompts import PromptGenerator
from paceline.core.errors import ConfigError
from paceline.methods.personalisation.pfedpg import PFedPG, PFedPGSum
from paceline.run import RunConfig, prepare
from tests.conftest import make_task
from tests.methods.forms import in_patches
from tests.methods.masked import assert_masks_change_nothing
from tests.methods.quadratics import by_size

QUICK = {"tokens": 2, "epochs": 1, "batch_size": 20, "lr": 0.25}


def started(method, split=None, drop=None, **values):
    common = {"task": "own", "clients": 5, "cohort": 3, "rounds": 3, "vectorize": "off", "evaluation": "clients"} | values
    return prepare(RunConfig.build(common), task=in_patches(make_task()), method=method, split=split, drop=drop)


def finished(method, split=None, **values):
    run = started(method, split, **values)
    run.go()
    return run


def frozen(module):
    """Return the digest of all that is not trained."""
    whole = hashlib.sha256()
    for name, value in module.state_dict().items():
        if not name.startswith(("prompts.", "head.")):
            whole.update(value.numpy().tobytes())
    return whole.hexdigest()


def test_without_a_server_step_each_client_restarts_from_the_same_prompts():
    """An oracle: torch's SGD on prompts and head, from the same prompts in each round, with the head of the last one."""
    run = started(PFedPG(**QUICK | {"server_lr": 0.0, "batch_size": 100, "weight_decay": 0.01}), cohort=5, rounds=2)
    first = run.method.init(run.fed)
    before = frozen(run.fed.engine.here.model.module)
    run.go()
    assert torch.equal(run.state.descriptors, first.descriptors)
    assert torch.equal(run.state.generator.vector, first.generator.vector)
    assert frozen(run.fed.engine.here.model.module) == before
    prompts = run.method.generate(run.fed.engine.here.model)(first.generator, first.descriptors)
    x, y = run.task.train.x, run.task.train.y
    for client in range(5):
        net, rows = run.task.build(0), run.fed.engine.setup.split(client)[0]
        net.load_state_dict(architectures(run.fed).build().state_dict())
        for _ in range(2):
            with torch.no_grad():
                net.prompts.values.copy_(prompts[client][None])
            rule = torch.optim.SGD([net.prompts.values, net.head.weight, net.head.bias], 0.25, weight_decay=0.01)
            rule.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            rule.step()
        kept = run.fed.engine.memories[client]
        torch.testing.assert_close(kept["head"]["head.weight"], net.head.weight.detach(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(kept["prompts"], net.prompts.values[0].detach(), atol=1e-6, rtol=1e-5)


def test_only_the_present_clients_descriptors_move_and_each_sends_its_prompts_change():
    run = started(PFedPG(**QUICK, server_lr=0.5), rounds=1)
    first = run.method.init(run.fed)
    seen, sent, each = {}, [], run.fed.each

    def watched(*args, **values):
        seen.update(each(*args, **values))
        sent.append(run.fed.last.bytes_up)
        return dict(seen)

    run.fed.each = watched
    run.go()
    assert len(seen) == 3
    assert all(change.shape == (2, 8) for change in seen.values())
    for client in range(5):
        assert torch.equal(run.state.descriptors[client], first.descriptors[client]) == (client not in seen)
    assert sent == [3 * (4 * 2 * 8 + 16)]  # K l numbers and their shape
    made = run.method.generate(run.fed.engine.here.model)
    gain = (made(run.state.generator, run.state.descriptors) - made(first.generator, first.descriptors))[sorted(seen)]
    assert float((gain * torch.stack([seen[c] for c in sorted(seen)])).sum()) > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_lost_reply_leaves_its_descriptor_as_it_was(optimizer):
    """The generator steps along the changes of the others, each drawn back through its own descriptor."""
    method = PFedPG(**QUICK, server_lr=20.0, server_optimizer=optimizer)
    run = started(method, drop=lambda round, client, function: client == 2 and function == "train", cohort=5, rounds=1)
    first, each, replies = run.method.init(run.fed), run.fed.each, {}

    def watched(*args, **values):
        replies.update(each(*args, **values))
        return replies

    run.fed.each = watched
    run.go()
    moved = (run.state.descriptors != first.descriptors).flatten(1).any(1)
    assert moved.tolist() == [True, True, False, True, True]
    if optimizer == "adam":
        assert (run.state.moments[-1][2] == 0).all()
        return
    made, whole = run.method.generate(run.fed.engine.here.model), 0.0
    for client in (0, 1, 3, 4):
        slope, own = made.pull(first.generator, first.descriptors[client : client + 1], replies[client][None])
        whole = whole + slope.vector
        torch.testing.assert_close(run.state.descriptors[client], first.descriptors[client] - 20 * own[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(run.state.generator.vector, first.generator.vector - 20 * whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_both_forms_have_the_same_state(monkeypatch, optimizer, reduce):
    """All descriptors begin alike, as their draws differ otherwise; cohorts are parts of the population, and a client has no samples."""
    monkeypatch.setattr(PromptGenerator, "describe", lambda self, stream: torch.linspace(-0.3, 0.4, 16).view(2, 8))
    options = QUICK | {"server_lr": 0.05, "server_optimizer": optimizer, "reduce": reduce}
    one, two = (finished(cls(**options), by_size([40, 60, 0, 30, 80]), rounds=4) for cls in (PFedPG, PFedPGSum))
    within = 1e-6 if optimizer == "sgd" else 1e-4  # Adam divides differences of sums by small roots
    torch.testing.assert_close(one.state.generator.vector, two.state.generator.vector, atol=within, rtol=1e-3)
    for client in range(5):
        own = two.fed.engine.memories[client]["descriptor"]
        torch.testing.assert_close(one.state.descriptors[client], own, atol=within, rtol=1e-3)
    first = one.method.init(one.fed)
    assert not torch.allclose(one.state.generator.vector, first.generator.vector, atol=1e-4)


@pytest.mark.parametrize("cls", [PFedPG, PFedPGSum])
def test_the_mean_form_divides_by_the_clients_with_samples(cls):
    split = by_size([40, 60, 0, 30, 0])
    ends = [finished(cls(**QUICK, server_lr=30.0, reduce=reduce), split, rounds=1, cohort=5) for reduce in ("sum", "mean")]
    first = ends[0].method.init(ends[0].fed).generator.vector
    whole, part = (end.state.generator.vector - first for end in ends)
    torch.testing.assert_close(whole, 3 * part, atol=1e-5, rtol=1e-4)
    assert float(part.abs().max()) > 1e-3
    none = finished(cls(**QUICK, reduce="mean"), by_size([0] * 4 + [40]), rounds=3, cohort=1)
    assert none.state.generator.vector.isfinite().all()


def test_a_change_per_step_is_the_mean_gradient():
    ends = []
    for per_step in (False, True):
        run = finished(PFedPG(**QUICK, server_lr=0.1, per_step=per_step), rounds=1, cohort=5)
        ends.append(run.state.generator.vector - run.method.init(run.fed).generator.vector)
    torch.testing.assert_close(ends[1], ends[0] / (0.25 * 3), atol=1e-5, rtol=1e-4)  # 48 samples are 3 steps


@pytest.mark.parametrize("cls", [PFedPG, PFedPGSum])
def test_clients_are_judged_by_tuned_or_by_generated_prompts(monkeypatch, cls):
    start, last = cls.personal_start, {}

    def watched(self, client, prompts):
        last[self.judge, client.id] = prompts.clone()
        return start(self, client, prompts)

    monkeypatch.setattr(cls, "personal_start", watched)
    tuned, generated = (started(cls(**QUICK, judge=judge), cohort=5) for judge in ("tuned", "generated"))
    losses = [run.go().loss for run in (tuned, generated)]
    assert losses[0] != losses[1]
    assert torch.equal(tuned.state.generator.vector, generated.state.generator.vector)
    [(message, _), *_] = tuned.method.personal(tuned.state, [0, 1])
    made = tuned.method.generate(tuned.fed.engine.here.model)
    assert torch.equal(last["tuned", 0], tuned.store[0]["prompts"])
    own = generated.state.descriptors[0] if cls is PFedPG else generated.store[0]["descriptor"]
    torch.testing.assert_close(last["generated", 0], made(generated.state.generator, own))
    if cls is PFedPG:
        torch.testing.assert_close(message, made(tuned.state.generator, tuned.state.descriptors[0]))


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match="heads=3 must divide the width 8"):
        started(PFedPG(**QUICK, heads=3))
    assert finished(PFedPG(**QUICK, heads=2, descriptor="vector"), rounds=1).state.descriptors.shape == (5, 1, 8)


def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic():
    assert_masks_change_nothing(in_patches(make_task()), "pfedpgsum", options=QUICK)
