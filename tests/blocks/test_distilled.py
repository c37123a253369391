"""Dataset distillation: statistics by class, draws, matching against numpy, and the sheet's numbers of gradients and contrast."""

import numpy as np
import pytest
import torch
from torch import nn

from paceline.blocks.augmentations import alike, crop, cutout, flip, one_of, resized_crop, tilt
from paceline.blocks.contrastive import contrast_with, supervised_contrast
from paceline.blocks.distilled import at_most, chosen, class_statistics, drawn, match_features, match_gradient, redrawn, siamese
from paceline.blocks.matching import gradient_distance
from paceline.core.layout import Layout
from paceline.core.params import Resident
from paceline.core.random import torch_rng


def test_the_numbers_of_the_sheet():
    g, found = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert float(gradient_distance([g], [found])) == pytest.approx(0.292894, abs=2e-6)
    assert float(gradient_distance([7 * g, torch.ones(3)], [found, torch.zeros(3)])) == pytest.approx(0.292894, abs=2e-6)
    assert float(gradient_distance([g], [g])) == pytest.approx(0, abs=3e-6)
    z, y = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    assert float(supervised_contrast(z, y, 0.07)) == pytest.approx(0.971059, abs=1e-6)


def test_the_contrast_is_that_of_a_batch_and_all_anchors():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    x, y, anchors, classes = torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), torch.randn(2, 3), torch.tensor([0, 1])
    value = contrast_with(nn.functional.cross_entropy, anchors, classes, 0.3, 0.5)(module, x, y)
    z = module[:2](torch.cat([x, anchors])).detach().numpy().astype(float)
    z, labels = z / np.linalg.norm(z, axis=1, keepdims=True), np.array([0, 1, 1, 0, 0, 1])
    total = 0.0
    for i in range(6):
        others = [k for k in range(6) if k != i]
        below = sum(np.exp(z[i] @ z[k] / 0.5) for k in others)
        same = [k for k in others if labels[k] == labels[i]]
        total -= np.mean([np.log(np.exp(z[i] @ z[k] / 0.5) / below) for k in same])
    plain = float(nn.functional.cross_entropy(module(x), y))
    assert float(value) == pytest.approx(plain + 0.3 * total / 6, abs=1e-5)


def test_statistics_by_class_and_channel():
    x, y = torch.randn(20, 2, 3, 3), torch.tensor([0, 2] * 10)
    mean, deviation, counts = class_statistics(x, y, 4)
    for c in (0, 2):
        part = x[y == c].numpy().transpose(1, 0, 2, 3).reshape(2, -1)
        np.testing.assert_allclose(mean[c], part.mean(1), atol=1e-6)
        np.testing.assert_allclose(deviation[c], part.std(1), atol=1e-6)
    assert counts.tolist() == [10, 0, 10, 0]
    assert not mean[1].any()
    torch.testing.assert_close(class_statistics(x, y, 4, by_total=True)[0], mean / 2)
    flat = class_statistics(x.flatten(1), y, 4)[0]
    torch.testing.assert_close(flat[2], x.flatten(1)[y == 2].mean(0))


def test_draws_have_the_statistics_of_their_class():
    mean, deviation = torch.tensor([[5.0, -5.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    images = drawn(mean, deviation, 500, (2, 4, 4), torch_rng(0)).view(2, 500, 2, 16).permute(0, 2, 1, 3).flatten(2)
    torch.testing.assert_close(images.mean(2), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(images.std(2), deviation, atol=0.1, rtol=0)


def test_balanced_choices():
    y = torch.tensor([0] * 30 + [2] * 5 + [1] * 12)
    rows = at_most(y, 10, torch_rng(0))
    assert torch.bincount(y[rows]).tolist() == [10, 10, 5]
    assert len(set(rows.tolist())) == 25
    assert rows.tolist() == sorted(rows.tolist())
    assert not rows.equal(at_most(y, 10, torch_rng(1)))
    assert at_most(y, 30, torch_rng(0)).equal(torch.arange(47))
    x = torch.arange(47.0).unsqueeze(1)
    images = chosen(x, y, 4, 8, torch_rng(0)).flatten().long()
    assert y[images[:24]].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert [len(set(images[k : k + 8].tolist())) for k in (0, 8, 16)] == [8, 8, 5]
    assert not images[24:].any()


def test_features_are_matched_as_numpy_does_it():
    """A linear embedding: the gradient with respect to a sample of class c is 2 (m_c - r_c) W / n_c."""
    torch.manual_seed(0)
    x, y, w = torch.randn(12, 3), torch.tensor([0, 1, 3] * 4), torch.randn(2, 3)
    images, labels = torch.randn(8, 3), torch.arange(4).repeat_interleave(2)
    options = {"steps": 3, "lr": 0.2, "momentum": 0.5, "seed": 0}
    found, losses = match_features(images, labels, (x, y), lambda step: lambda v: v @ w.T, **options)
    s, v, loss = images.numpy().astype(float), 0.0, []
    for _ in range(3):
        g = np.zeros_like(s)
        total = 0.0
        for c in (0, 1, 3):
            gap = (s[labels == c].mean(0) - x[y == c].numpy().mean(0)) @ w.numpy().T
            total += (gap**2).sum()
            g[labels == c] = gap @ w.numpy()  # 2 / n_c = 1
        v = 0.5 * v + g
        s = s - 0.2 * v
        loss.append(total)
    np.testing.assert_allclose(found, s, atol=1e-5)
    np.testing.assert_allclose([float(value) for value in losses], loss, rtol=1e-5)
    assert found[4:6].equal(images[4:6]), "nothing is known of a class without real samples"


def test_a_gradient_is_matched_as_numpy_does_it():
    """A linear model, by finite differences."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2).double()
    images, labels = torch.randn(4, 3).double(), torch.tensor([0, 0, 1, 1])
    target = {"weight": torch.randn(2, 3).double(), "bias": torch.randn(2).double()}
    found, losses = match_gradient(images, labels, module, target, steps=1, lr=0.1, momentum=0.5)

    def distance(x):
        z = x @ module.weight.detach().numpy().T + module.bias.detach().numpy()
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True) - np.eye(2)[labels]
        g, t = p.T @ x / 4, target["weight"].numpy()
        return sum(1 - g[o] @ t[o] / (np.linalg.norm(g[o]) * np.linalg.norm(t[o]) + 1e-6) for o in range(2))

    x, slope = images.numpy(), np.zeros((4, 3))
    for k in np.ndindex(4, 3):
        step = np.zeros((4, 3))
        step[k] = 1e-6
        slope[k] = (distance(x + step) - distance(x - step)) / 2e-6
    assert float(losses[0]) == pytest.approx(distance(x))
    np.testing.assert_allclose(found, x - 0.1 * slope, atol=1e-7)


def test_random_networks_depend_on_the_seed_alone():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model = Resident(module, Layout.of(module))
    first = [p.clone() for p in redrawn(model, 1).parameters()]
    other = [p.clone() for p in redrawn(model, 2).parameters()]
    state = torch.random.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(first, redrawn(model, 1).parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.random.get_rng_state().equal(state)


@pytest.mark.parametrize("change", [flip(0.5), crop(2), tilt(30.0), cutout(0.5), resized_crop(0.5), one_of(flip(1.0), crop(3))])
def test_all_pictures_of_equal_streams_are_changed_alike(change):
    x, changed = torch.randn(5, 2, 8, 8), 0
    for seed in range(8):
        whole, alone = (alike(change)(part, torch_rng(seed)) for part in (x, x[2:3]))
        torch.testing.assert_close(whole[2:3], alone, atol=1e-5, rtol=1e-5)
        changed += not torch.equal(whole, x)
    assert changed > 2


def test_one_change_of_several_is_drawn_for_each_batch():
    x = torch.randn(1, 1, 8, 8)
    made = [siamese(8)(x, torch_rng(seed)) for seed in range(30)]
    assert len({tuple(one.flatten().tolist()) for one in made}) > 15
    assert siamese(8)(x, torch_rng(3)).equal(made[3])
    both = [one_of(lambda v, _: v + 1, lambda v, _: v - 1)(x, torch_rng(seed)) - x for seed in range(20)]
    assert {round(float(d.mean())) for d in both} == {1, -1}
