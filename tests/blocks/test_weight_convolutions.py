"""Operators over weights: the worked numbers, shapes, and that gradients reach the operators alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paceline.blocks.generated_weights import GeneratedModel, WeightedSum
from paceline.blocks.weight_convolutions import WeightConvolution, activated, convolved
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.submodels.cut import Cutter

X = torch.arange(16.0).view(1, 4, 4)
QUARTERS = torch.full((1, 2, 2), 0.25)


def test_the_activation():
    x = torch.tensor([2.0, -2.0])
    np.testing.assert_allclose(activated(x), [1.7, -0.002], rtol=1e-6)
    np.testing.assert_allclose(activated(x, 2), [1.445, -2e-6], rtol=1e-6)
    assert torch.equal(activated(x, 0), x)


def test_a_convolution_and_a_transposed_one_by_hand():
    y = convolved(X, QUARTERS)
    assert y[0].tolist() == [[2.5, 3.5, 4.5], [6.5, 7.5, 8.5], [10.5, 11.5, 12.5]]
    np.testing.assert_allclose(activated(y)[0], [[2.125, 2.975, 3.825], [5.525, 6.375, 7.225], [8.925, 9.775, 10.625]], rtol=1e-6)
    back = convolved(y, QUARTERS, transposed=True)[0]
    assert back[0].tolist() == [0.625, 1.5, 2.0, 1.125]
    assert back[1].tolist() == [2.25, 5.0, 6.0, 3.25]
    assert back[3].tolist() == [2.625, 5.5, 6.0, 3.125]


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1568, 10),
    )  # fmt: skip


@pytest.fixture
def full():
    torch.manual_seed(0)
    module = cnn()
    return module, Params.of(module, Layout.of(module))


def kernels(operator):
    return {e.name: tuple(m.direction.shape) for e, m in zip(operator.entries, operator.maps, strict=True)}


@pytest.mark.parametrize(
    ("label", "widths", "sizes"),
    [(1, (12, 24, 1176), (5, 9, 393)), (2, (9, 18, 882), (8, 15, 687))],
)
def test_shapes_of_kernels_and_models(full, label, widths, sizes):
    module, w = full
    part = Cutter(module, w.layout, torch.zeros(1, 1, 28, 28)).first(0.75**label)
    down, up = WeightConvolution(w.layout, part.layout), WeightConvolution(part.layout, w.layout)
    shapes = {e.name: e.shape for e in part.layout.entries}
    assert (shapes["0.weight"], shapes["4.weight"], shapes["8.weight"]) == (
        (widths[0], 1, 3, 3), (widths[1], widths[0], 3, 3), (10, widths[2]),
    )  # fmt: skip
    expected = {
        "0.weight": (9, sizes[0], 1), "0.bias": (1, 1, sizes[0]), "1.weight": (1, 1, sizes[0]), "1.bias": (1, 1, sizes[0]),
        "4.weight": (9, sizes[1], sizes[0]), "4.bias": (1, 1, sizes[1]), "8.weight": (1, 1, sizes[2]), "8.bias": (1, 1, 1),
    }  # fmt: skip
    assert kernels(down) == kernels(up) == expected
    small = down.fill(w, part.extract(w))
    assert torch.equal(small["1.running_var"], torch.ones(widths[0]))
    assert {n: t.shape for n, t in up(small).items()} == {e.name: e.shape for e in w.layout.entries if e.kind == "param"}


def test_an_operator_against_numpy():
    """Projections, kernels and activations of a matrix, a convolution and a vector, with random values."""
    large = Layout.build([("c", (4, 3, 2, 1), "param"), ("m", (4, 3), "param"), ("v", (4,), "param")])
    small = Layout.build([("c", (3, 2, 2, 1), "param"), ("m", (2, 3), "param"), ("v", (2,), "param")])
    generator = torch.Generator().manual_seed(0)
    operator = WeightConvolution(large, small, times=1)
    with torch.no_grad():
        for p in operator.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    source = Params(torch.randn(large.size, generator=generator), large)
    made = operator(source)
    for name, maps in zip(("c", "m", "v"), operator.maps, strict=True):
        x = source[name].double().numpy().reshape(*((1, 4) if name == "v" else source[name].shape[:2]), -1)
        for place in range(x.shape[2]):
            image, v = x[:, :, place], maps.direction[place].detach().double().numpy()
            kernel = maps.length[place].item() * v / np.sqrt((v**2).sum())
            if name != "v":
                image = maps.scale[place].item() * image + maps.shift[place].item() + (image if name == "c" else 0.0)
            rows, columns = image.shape[0] - v.shape[0] + 1, image.shape[1] - v.shape[1] + 1
            out = np.array(
                [[(image[r : r + v.shape[0], c : c + v.shape[1]] * kernel).sum() for c in range(columns)] for r in range(rows)]
            )
            out = np.where(out > 0, 0.85 * out, 0.001 * out)
            found = made[name].detach().reshape(*((1, 2) if name == "v" else made[name].shape[:2]), -1)[:, :, place]
            np.testing.assert_allclose(found, out, atol=1e-5)


def test_first_kernels_average_their_window_or_select_the_first_units(full):
    module, w = full
    part = Cutter(module, w.layout, torch.zeros(1, 1, 28, 28)).first(0.75)
    prefix = WeightConvolution(w.layout, part.layout, times=0, start="corner").fill(w, part.extract(w))
    assert torch.equal(prefix.vector, part.extract(w).vector)
    back = WeightConvolution(part.layout, w.layout, times=0, start="corner").fill(prefix, w.zeros())
    assert torch.equal(part.extract(back)["4.weight"], part.extract(w)["4.weight"])
    assert back["4.weight"].count_nonzero() == prefix["4.weight"].count_nonzero()
    mean = WeightConvolution(w.layout, part.layout, times=0)(w)
    torch.testing.assert_close(mean["8.weight"][3, 5], w["8.weight"][3, 5 : 5 + 393].mean())
    torch.testing.assert_close(mean["4.weight"][2, 1, 0, 2], w["4.weight"][2:11, 1:6, 0, 2].mean())


def test_gradients_reach_the_operator_and_not_the_model(full):
    module, w = full
    part = Cutter(module, w.layout, torch.zeros(1, 1, 28, 28)).first(0.75)
    w.vector.requires_grad_(True)
    operator = WeightConvolution(w.layout, part.layout)
    made = GeneratedModel(part.resident().module, part.extract(w.clone()), operator, lambda maps: maps(w))
    x = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    F.cross_entropy(made(x), torch.arange(6)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in operator.parameters())
    assert any(p.grad.abs().max() > 0 for p in operator.parameters())
    assert w.vector.grad is None
    assert {name.split(".")[0] for name in made.layout().by_name} == {"generator"}


def test_a_weighted_sum():
    layout = Layout.build([("a", (2,), "param"), ("b", (1,), "param")])
    total = WeightedSum(torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]), layout)
    assert {k: v.tolist() for k, v in total().items()} == {"a": [11.0, 22.0], "b": [33.0]}
    with torch.no_grad():
        total.omega[1] = torch.tensor([0.0, 1.0, 2.0])
    assert {k: v.tolist() for k, v in total().items()} == {"a": [1.0, 22.0], "b": [63.0]}
