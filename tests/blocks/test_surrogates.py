"""Surrogates against the numbers of a worked example, numpy, and differences."""

import math

import numpy as np
import pytest
import torch

from paceline.blocks import surrogates
from paceline.blocks.surrogates import Features, GaussianProcess, nearest, rescaled

X, Y = torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, 0.0])


def at(*x):
    return torch.tensor(x, dtype=torch.float64)


def test_gaussian_process_by_hand():
    gp = GaussianProcess(X, Y, length=1.0, jitter=0.01)
    assert gp.mean(at(0.5)) == pytest.approx(0.545920, abs=1e-6)
    assert float(gp.gradient(at(0.5))) == pytest.approx(-1.093636, abs=1e-6)
    assert float(gp.gradient(at(0.0))) == pytest.approx(-0.564041, abs=1e-6)
    found = gp.uncertainty(at(0.0, 0.5, 3.0)[:, None])
    assert found.tolist() == pytest.approx([0.430318, 0.034870, 0.901606], abs=1e-6)


@pytest.fixture
def two(monkeypatch):
    drawn = (torch.tensor([[1.0], [-0.5]], dtype=torch.float64), at(0.0, math.pi / 2))
    monkeypatch.setattr(surrogates, "_drawn", lambda features: drawn)
    return Features(2, 1, 1.0, 0)


def test_features_by_hand(two):
    assert two(X).T.tolist() == [
        pytest.approx([1.0, 0.0], abs=1e-6),
        pytest.approx([0.540302, 0.479426], abs=1e-6),
    ]
    nu = two.fit(X, Y, 0.01)
    assert nu.tolist() == pytest.approx([0.978310, -1.056566], abs=1e-6)
    assert float(two.gradient(nu, at(0.5))) == pytest.approx(-0.980887, abs=1e-6)
    phi = two(X)
    ridge = 0.01 * torch.eye(2, dtype=torch.float64)
    first = torch.linalg.solve(phi @ phi.T + ridge, phi @ Y.double())
    second = phi @ torch.linalg.solve(phi.T @ phi + ridge, Y.double())
    assert float((first - second).abs().max()) < 1e-9
    assert float((nu - first).abs().max()) < 1e-9


@pytest.mark.parametrize("count", [8, 60])
def test_features_solve_the_smaller_system_and_agree(count):
    rng = np.random.default_rng(count)
    x, y = torch.from_numpy(rng.normal(size=(20, 3))), torch.from_numpy(rng.normal(size=20))
    features = Features(count, 3, 1.3, 5)
    phi = features(x).numpy()
    expected = np.linalg.solve(phi @ phi.T + 1e-3 * np.eye(count), phi @ y.numpy())
    np.testing.assert_allclose(features.fit(x, y, 1e-3), expected, atol=1e-8)


def test_gradients_are_those_of_differences():
    rng = np.random.default_rng(1)
    x, y, p = (
        torch.from_numpy(rng.normal(size=(15, 4))),
        torch.from_numpy(rng.normal(size=15)),
        torch.from_numpy(rng.normal(size=4)),
    )
    features = Features(50, 4, 1.5, 3)
    nu = features.fit(x, y)

    def surrogate(q):
        return float(features(q[None])[:, 0] @ nu)

    pairs = [(surrogate, features.gradient(nu, p))]
    for kernel in ("rbf", "matern"):
        gp = GaussianProcess(x, y, 1.5, 1e-6, kernel)
        pairs.append((gp.mean, gp.gradient(p)))
    for value, gradient in pairs:
        steps = 1e-5 * torch.eye(4, dtype=torch.float64)
        differences = [(value(p + s) - value(p - s)) / 2e-5 for s in steps]
        np.testing.assert_allclose(gradient, differences, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kernel", ["rbf", "matern"])
def test_uncertainty_is_the_trace_of_the_variance(kernel):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(12, 5))
    gp = GaussianProcess(torch.from_numpy(x), torch.zeros(12), 1.7, 1e-4, kernel)
    inverse = np.linalg.inv(gp._k(torch.cdist(gp.points, gp.points)).numpy() + 1e-4 * np.eye(12))
    for p in rng.normal(size=(6, 5)):
        r = np.linalg.norm(p - x, axis=1)
        slopes = -gp._slope(torch.from_numpy(r)).numpy()[:, None] * (p - x)
        prior = (1 if kernel == "rbf" else 5 / 3) / 1.7**2
        expected = np.trace(prior * np.eye(5) - slopes.T @ inverse @ slopes)
        assert float(gp.uncertainty(torch.from_numpy(p)[None])) == pytest.approx(expected, abs=1e-9)


def test_averaged_surrogates_have_the_averaged_gradient():
    rng = np.random.default_rng(4)
    features = Features(80, 3, 1.0, 9)
    nus = [features.fit(torch.from_numpy(rng.normal(size=(10, 3))), torch.from_numpy(rng.normal(size=10))) for _ in range(4)]
    p = torch.from_numpy(rng.normal(size=3))
    together = features.gradient(torch.stack(nus).mean(0), p)
    apart = torch.stack([features.gradient(nu, p) for nu in nus]).mean(0)
    assert float((together - apart).abs().max()) < 1e-12


def test_seed_decides_and_constant_values_have_no_slope():
    assert Features(5, 2, 1.0, 1).drawn()[0].equal(Features(5, 2, 1.0, 1).drawn()[0])
    assert not Features(5, 2, 1.0, 1).drawn()[0].equal(Features(5, 2, 1.0, 2).drawn()[0])
    scaled, spread = rescaled(torch.full((4,), 3.0, dtype=torch.float64))
    assert (scaled.tolist(), spread) == ([0.0] * 4, 0.0)
    scaled, spread = rescaled(at(2.0, 4.0, 3.0))
    assert (scaled.tolist(), spread) == ([0.0, 1.0, 0.5], 2.0)


def test_duplicates_do_not_make_it_singular():
    gp = GaussianProcess(torch.zeros(3, 2), torch.ones(3), 1.0)
    assert gp.mean(at(0.0, 0.0)) == pytest.approx(1.0, abs=1e-3)


def test_the_nearest_points():
    points, values = nearest(at(0.0, 5.0, 1.0, 4.0)[:, None], at(1, 2, 3, 4), at(0.9), 2)
    assert (points[:, 0].tolist(), values.tolist()) == ([1.0, 0.0], [3.0, 1.0])
