"""Convolutions from views against torch's, for stacked kernels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap

from paceline.engines.stacking import linear
from paceline.engines.stacking.convolution import convolve, fits
from tests.conftest import make_task
from tests.engines.test_vectorized import go, ragged

SETTINGS = [
    {},
    {"padding": 1},
    {"padding": 4},
    {"stride": 2, "padding": 1},
    {"stride": (3, 2), "padding": (2, 0)},
    {"padding": "same"},
    {"padding": "valid"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("kernel", "bias"), [((3, 3), True), ((1, 1), False), ((5, 3), True)])
def test_values_and_gradients(settings, kernel, bias):
    if settings == {"padding": "same"} and kernel == (1, 1):
        settings = {}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, 9, 8, generator=generator).requires_grad_()
    weight = torch.randn(3, 5, 4, *kernel, generator=generator).requires_grad_()
    added = torch.randn(3, 5, generator=generator).requires_grad_() if bias else None
    leaves = [x, weight] + ([added] if added is not None else [])

    def run(fn):
        dims = (0, 0, 0 if bias else None)
        out = vmap(lambda x, w, b: fn(x, w, b, **settings), dims)(x, weight, added)
        slope = torch.linspace(-1, 1, out.numel()).view(out.shape)
        return [out, *torch.autograd.grad(out, leaves, slope)]

    assert fits(x[0], weight[0], None, **settings)
    for found, wanted in zip(run(convolve), run(F.conv2d), strict=True):
        assert found.shape == wanted.shape
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"groups": 2}, {"dilation": 2}])
def test_what_does_not_fit_stays_with_torch(settings):
    assert not fits(torch.ones(1, 4, 9, 9), torch.ones(4, 2, 3, 3), None, **settings)
    assert not fits(torch.ones(4, 9, 9), torch.ones(4, 4, 3, 3))
    assert not fits(torch.ones(1, 4, 9, 9), torch.ones(4, 4, 2, 2), padding="same")


def network():
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)),
        nn.Conv2d(1, 3, 2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 4),
    )


@pytest.mark.parametrize(("kernels", "calls"), [("views", 2), ("views=4x3x3x3", 1), ("views=9x9x3x3", 0), ("plain", 0)])
def test_a_run_uses_the_chosen_forms_and_keeps_its_results(kernels, calls, monkeypatch):
    seen = set()

    def counted(*args, **kwargs):
        seen.add(tuple(args[1].shape))
        return convolve(*args, **kwargs)

    monkeypatch.setattr(linear, "convolve", counted)
    images = make_task(model=network)
    _, _, alone = go(images, ragged(), vectorize="off", chunk=1)
    prepared, _, stacked = go(images, ragged(), kernels=kernels)
    assert prepared.fed.engine.notes == {}
    assert len(seen) == calls
    assert float((alone - stacked).norm() / alone.norm()) < 1e-5


def test_the_forms_reach_workers():
    images = make_task(model=network)
    shas = {go(images, ragged(), kernels="views,graph", workers=workers)[1].model_sha256 for workers in (1, 2)}
    assert len(shas) == 1
