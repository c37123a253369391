"""Losses of distillation, contrast and matching against worked examples and loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from paceline.blocks.contrastive import info_nce, koleo, model_contrast, negative_cosine, sinkhorn, supervised_contrast
from paceline.blocks.distillation import feature_loss, relation_loss, soft_cross_entropy, soft_targets_loss
from paceline.blocks.matching import gradient_distance, mean_covariance_distance, mmd, reverse_gradient


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def soft(z, t=1.0):
    e = np.exp(z.numpy().astype(float) / t)
    return e / e.sum(1, keepdims=True)


def test_soft_targets():
    student, teacher = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    assert float(soft_targets_loss(student, teacher, 2.0)) == pytest.approx(0.354652, abs=1e-6)
    student, teacher = drawn(5, 4), drawn(5, 4, seed=1)
    p, q = soft(teacher, 3.0), soft(student, 3.0)
    assert float(soft_targets_loss(student, teacher, 3.0)) == pytest.approx(9 * (p * np.log(p / q)).sum(1).mean(), rel=1e-5)
    assert float(soft_targets_loss(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-6)
    teacher.requires_grad_(True)
    soft_targets_loss(student.requires_grad_(True), teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_soft_labels():
    scores, labels = drawn(6, 3), torch.arange(6) % 3
    assert torch.allclose(soft_cross_entropy(scores, F.one_hot(labels, 3)), F.cross_entropy(scores, labels))
    t = torch.tensor([[0.25, 0.0, 0.75]])
    w, r = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), torch.tensor([0.25, 1.5])
    assert float(soft_cross_entropy((w @ r)[None], t)) == pytest.approx(1.381056, abs=1e-6)


def test_features_and_relations():
    a, b = drawn(6, 4), drawn(6, 4, seed=1)
    assert float(feature_loss(a, b)) == pytest.approx(float(((a - b) ** 2).mean()))
    assert float(feature_loss(3 * a, a, normalise=True)) == pytest.approx(0, abs=1e-6)
    turned = 2.5 * a @ torch.linalg.qr(drawn(4, 4, seed=2))[0] + 1.0
    assert float(relation_loss(turned, a, angle=2.0)) == pytest.approx(0, abs=1e-6)
    assert float(relation_loss(b, a, angle=2.0)) > 0.01

    def distances(x):
        d = torch.tensor([[float((p - q).norm()) for q in x] for p in x])
        return d / (d.sum() / (len(x) * (len(x) - 1)))

    def cosines(x):
        n = len(x)
        unit = [[(x[i] - x[j]) / max(float((x[i] - x[j]).norm()), 1e-12) for i in range(n)] for j in range(n)]
        return torch.tensor([[[float(unit[j][i] @ unit[j][k]) for k in range(n)] for i in range(n)] for j in range(n)])

    wanted = F.smooth_l1_loss(distances(b), distances(a)) + 2 * F.smooth_l1_loss(cosines(b), cosines(a))
    assert float(relation_loss(b, a, angle=2.0)) == pytest.approx(float(wanted), abs=1e-5)
    b = b.requires_grad_(True)
    relation_loss(b, a, angle=1.0).backward()
    assert torch.isfinite(b.grad).all()


def test_supervised_contrast():
    z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], requires_grad=True)
    loss = supervised_contrast(z, torch.tensor([0, 0, 1]), 0.07)
    assert loss.item() == pytest.approx(0.971059, abs=1e-6)
    loss.backward()
    assert torch.isfinite(z.grad).all()
    lonely = supervised_contrast(drawn(3, 2), torch.arange(3))
    assert float(lonely) == 0


def test_info_nce_is_that_of_a_loop():
    a, b = drawn(4, 3), drawn(4, 3, seed=1)
    z = np.concatenate([v.numpy() / np.linalg.norm(v.numpy(), axis=1, keepdims=True) for v in (a, b)])
    terms = []
    for i in range(8):
        others = sum(math.exp(z[i] @ z[k] / 0.5) for k in range(8) if k != i)
        terms.append(-math.log(math.exp(z[i] @ z[(i + 4) % 8] / 0.5) / others))
    assert float(info_nce(a, b, 0.5)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_model_contrast_and_cosine():
    z, near, far = (drawn(5, 3, seed=s) for s in range(3))

    def cos(a, b):
        return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))

    close, apart = (cos(z, v) / 0.5 for v in (near, far))
    wanted = -(close.exp() / (close.exp() + apart.exp())).log().mean()
    assert torch.allclose(model_contrast(z, near, far), wanted)
    assert torch.allclose(negative_cosine(z, near), -cos(z, near).mean())
    for constant in (near, far):
        constant.requires_grad_(True)
    (model_contrast(z.requires_grad_(True), near, far) + negative_cosine(z, near)).backward()
    assert near.grad is None
    assert far.grad is None
    assert z.grad is not None


def test_koleo_and_sinkhorn():
    assert float(koleo(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))) == pytest.approx(0.342621, abs=1e-6)
    q = sinkhorn(torch.tensor([[1.0, 0.0], [0.5, 0.2], [0.0, 1.0]]), 0.5, 3)
    wanted = [[0.846549, 0.153451], [0.576345, 0.423655], [0.09177, 0.90823]]
    np.testing.assert_allclose(q, wanted, atol=1e-6)
    np.testing.assert_allclose(q.sum(0), [1.514664, 1.485336], atol=1e-6)
    extreme = sinkhorn(1e4 * drawn(4, 3), 1.0)
    np.testing.assert_allclose(extreme.sum(1), 1, atol=1e-6)


def test_mmd():
    x, y = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    assert float(mmd(x, y)) == pytest.approx(3.564948, abs=1e-6)
    assert float(mmd(x, x)) == 0
    assert float(mmd(drawn(40, 3), drawn(40, 3, seed=1))) < 0.3 < float(mmd(drawn(40, 3), drawn(40, 3, seed=1) + 2))


def test_the_width_of_the_kernels_is_a_constant():
    x, y = drawn(4, 3).requires_grad_(True), drawn(4, 3, seed=1)
    mmd(x, y).backward()
    both = torch.cat([x.detach(), y])
    base = float(((both[:, None] - both[None]) ** 2).sum()) / (64 - 8) / 4
    again = x.detach().clone().requires_grad_(True)
    both = torch.cat([again, y])
    square = ((both[:, None] - both[None]) ** 2).sum(2)
    kernel = sum(torch.exp(-square / (base * 2**k)) for k in range(5))
    (kernel[:4, :4] + kernel[4:, 4:] - kernel[:4, 4:] - kernel[4:, :4]).mean().backward()
    torch.testing.assert_close(x.grad, again.grad, atol=1e-5, rtol=1e-4)


def test_mean_and_covariance():
    x, y = drawn(7, 3).numpy(), drawn(5, 3, seed=1).numpy()
    wanted = ((x.mean(0) - y.mean(0)) ** 2).mean() + ((np.cov(x.T) - np.cov(y.T)) ** 2).mean()
    assert float(mean_covariance_distance(torch.tensor(x), torch.tensor(y))) == pytest.approx(wanted, rel=1e-4)


def test_gradient_distance():
    g, s = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    bias = torch.ones(3)
    assert float(gradient_distance([g, bias], [s, -bias])) == pytest.approx(0.292894, abs=2e-6)
    assert float(gradient_distance([7 * g], [s])) == pytest.approx(0.292894, abs=2e-6)
    assert float(gradient_distance([g], [g])) == pytest.approx(0, abs=2e-6)
    assert float(gradient_distance([bias], [bias])) == 0
    filters = drawn(2, 3, 2, 2)
    assert float(gradient_distance([filters], [-filters])) == pytest.approx(4, abs=1e-4)


def test_a_reversed_gradient():
    x = torch.tensor([0.1, 7.0], requires_grad=True)
    out = reverse_gradient(x, 0.5)
    assert torch.equal(out, x)
    (3 * out).sum().backward()
    assert x.grad.tolist() == [-1.5, -1.5]
