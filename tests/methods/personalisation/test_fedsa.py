"""FedSA: the worked numbers, which gradients a term has, and equality with local training."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from paceline.blocks.architectures import architectures
from paceline.blocks.prototypes import FAR, ClassSums, distances, nearest
from paceline.core.errors import PlanError
from paceline.methods.personalisation.fedsa import FedSA, contrast, gap, projected, pull
from paceline.models import build
from paceline.models.split import features, head
from paceline.run import prepare
from tests.methods.resuming import assert_resumes

A = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
OFF = {"pull": 0.0, "contrast": 0.0, "calibration": 0.0}


def test_the_gap_is_the_mean_distance_to_the_nearest_row():
    assert gap(A) == pytest.approx(5.0)
    assert gap(torch.tensor([[0.0], [1.0], [4.0]])) == pytest.approx((1 + 1 + 3) / 3)
    assert gap(A[:1]) == gap(A[:0]) == -math.inf


def test_terms_by_hand():
    f, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    np.testing.assert_allclose(distances(f, A)[0], [1, 4.472136, 9.433981], atol=1e-5)
    assert float(contrast(f, A, y, 5.0)) == pytest.approx(1.729987, abs=1e-5)
    assert float(contrast(f, A, y, 0.0)) == pytest.approx(0.030789, abs=1e-5)
    assert float(pull(f, A, y)) == pytest.approx(0.5)


def test_distances_have_a_finite_gradient_at_zero():
    f = A[:1].clone().requires_grad_()
    contrast(f, A, torch.tensor([0]), 1.0).backward()
    assert bool(torch.isfinite(f.grad).all())


def test_each_term_reaches_only_its_part():
    module = build("mlp", shape=(5,), num_classes=3, hidden=2)
    x, y = torch.randn(7, 5), torch.randint(0, 3, (7,))
    body = [p for n, p in module.named_parameters() if n.startswith("1.")]
    own_head = list(head(module).parameters())
    anchors = A.clone()

    def touched(loss, parameters):
        found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        return any(g is not None and bool((g != 0).any()) for g in found)

    f = features(module, x)
    calibration = F.cross_entropy(head(module)(anchors), torch.arange(3))
    assert not touched(calibration, body)
    assert touched(calibration, own_head)
    for term in (pull(f, anchors, y), contrast(f, anchors, y, 1.0)):
        assert touched(term, body)
        assert not touched(term + 0 * own_head[0].sum(), own_head)
    assert not anchors.requires_grad


def test_the_objective_is_the_sum_of_its_terms():
    module = build("mlp", shape=(5,), num_classes=3, hidden=2)
    x, y = torch.randn(7, 5), torch.randint(0, 3, (7,))
    f, h = features(module, x), head(module)
    expected = F.cross_entropy(h(f), y) + 2 * ((f - A[y]) ** 2).sum() / (7 * 2)
    expected = expected + 3 * contrast(f, A, y, 0.7) + 4 * F.cross_entropy(h(A), torch.arange(3))
    method = FedSA(pull=2.0, contrast=3.0, calibration=4.0)
    assert torch.allclose(method.objective(A, 0.7)(module, x, y), expected, rtol=1e-6)


def test_anchors_at_the_start():
    anchors = projected(10, 32, seed=4)
    assert torch.equal(anchors, projected(10, 32, seed=4))
    assert not torch.equal(anchors, projected(10, 32, seed=5))
    assert float(anchors.min()) == 0
    assert 0.3 < float((anchors == 0).float().mean()) < 0.7
    assert 0.2 < float(anchors.mean()) < 0.7


def test_unweighted_and_weighted_means_from_sums():
    parts = [ClassSums(torch.tensor([[0.0]]), torch.tensor([1])), ClassSums(torch.tensor([[12.0]]), torch.tensor([3]))]

    def total(parts):
        return ClassSums(sum(p.sums for p in parts), sum(p.counts for p in parts)).means().item()

    assert total([p.unweighted() for p in parts]) == 2
    assert total(parts) == 3


def test_unknown_centres_lose():
    scores = nearest(torch.zeros(1, 2), A, torch.tensor([False, True, True]))
    assert scores.argmax().item() == 1
    assert scores[0, 0] <= -FAR


@pytest.mark.parametrize("weighted", [False, True])
def test_anchors_follow_the_prototypes_of_classes_that_were_seen(networks, weighted):
    """One class nobody has; the others move by 1 - beta towards the mean of the clients' class means."""
    summary, run, kept = networks(
        "fedsa", rounds=1, partition="groups:0-1/1-2", options={"beta": 0.9, "weighted": weighted, "epochs": 1}
    )
    state, split, task = run.state, run.fed.engine.setup.split, run.task
    means, counts = np.zeros((6, 4, 8)), np.zeros((6, 4))
    for client, params in kept.items():
        module = architectures(run.fed).build(run.method.models[client % 3])
        for name, p in module.named_parameters():
            p.data = params[name].clone()
        rows = split(client)[0]
        with torch.no_grad():
            f = features(module.eval(), task.train.x[rows]).numpy()
        y = task.train.y[rows].numpy()
        for c in range(4):
            counts[client, c] = (y == c).sum()
            if counts[client, c]:
                means[client, c] = f[y == c].mean(0)
    weights = counts if weighted else (counts > 0).astype(float)
    expected = np.einsum("kc,kcd->cd", weights, means)[:3] / weights.sum(0)[:3, None]
    np.testing.assert_allclose(state.prototypes[:3], expected, atol=1e-5)
    np.testing.assert_allclose(state.anchors[:3], 0.9 * state.first[:3].numpy() + 0.1 * expected, atol=1e-5)
    assert torch.equal(state.anchors[3], state.first[3])
    assert state.known.tolist() == [True, True, True, False]
    assert summary.history[0]["note_anchor_shift"] > 0


def test_without_its_terms_it_is_local_training(networks):
    _, _, plain = networks("localonly")
    _, _, off = networks("fedsa", options=OFF)
    _, _, on = networks("fedsa")
    for client in range(6):
        assert torch.equal(off[client].vector, plain[client].vector)
        assert not torch.equal(on[client].vector, plain[client].vector)


def test_small_classes_are_not_told(networks):
    _, run, _ = networks("fedsa", rounds=1, options={"least": 1000})
    assert not bool(run.state.known.any())
    assert torch.equal(run.state.anchors, run.state.first)


def test_learns_by_prototype_anchor_and_head(networks):
    for predict in ("prototype", "anchor", "head"):
        summary, _, _ = networks("fedsa", rounds=15, options={"predict": predict, "beta": 0.9})
        assert summary.accuracy > 0.75
        assert summary.history[-1]["worst_client_accuracy"] <= summary.history[-1]["client_accuracy"]


def test_secure_sums_with_a_drop_out(federate):
    common = {
        "method": "fedsa",
        "clients": 10,
        "cohort": 10,
        "rounds": 2,
        "options": {"models": ["mlp:hidden=8", "mlp:hidden=6-8"], "beta": 0.5},
        "secure": {"threshold": 5, "gamma": 0.05, "bits": 20},
    }

    def drop(round, client, function):
        return round == 2 and client == 3 and function in ("secagg.masked", "train")

    arithmetic = federate(aggregation="secure-arithmetic", drop=drop, **common)
    secure = federate(aggregation="secure", drop=drop, **common)
    assert secure.model_sha256 == arithmetic.model_sha256
    assert secure.history[1]["dropped"] == 1
    plain = federate(drop=drop, **common)
    assert secure.accuracy == pytest.approx(plain.accuracy, abs=0.05)


def test_stacked_clients_learn_the_same(networks):
    _, _, one = networks("fedsa", models=())
    _, _, many = networks("fedsa", models=(), vectorize="on", chunk=6)
    for client in range(6):
        assert torch.allclose(one[client].vector, many[client].vector, atol=1e-4)


def test_resume_gives_the_same_bits(tmp_path, task):
    assert_resumes(tmp_path, task, method="fedsa", options={"models": ["mlp:hidden=8", "mlp:hidden=6-8"], "beta": 0.9})


def test_widths_must_agree(config, task):
    with pytest.raises(PlanError, match="different widths"):
        prepare(config(method="fedsa", options={"models": ["mlp:hidden=8", "mlp:hidden=9"]}), task=task)


def test_a_class_that_the_last_cohort_lacked_is_still_predicted(task, config):
    """Each client has one class, and each round one client: classes of earlier rounds keep their prototype."""
    prepared = prepare(config(method="fedsa", clients=4, cohort=1, partition="groups:0/1/2/3"), task=task)
    state, seen = prepared.method.init(prepared.fed), set()
    for number in range(1, 7):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
        seen |= set(prepared.fed.last.arrived)
        assert set(torch.nonzero(state.known).flatten().tolist()) == seen
    assert len(seen) > 1
