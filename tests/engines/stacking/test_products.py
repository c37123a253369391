"""Own kernels of Triton for stacked layers. They run on a GPU, or with TRITON_INTERPRET=1 and Triton installed without one."""

import importlib.util
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap

from paceline.core.layout import Layout
from paceline.core.params import Params, Resident
from paceline.engines.stacking import products
from paceline.engines.stacking.kernels import Kernels, using
from paceline.engines.stacking.linear import StackedLinears
from paceline.engines.stacking.products import available, cast, convolved, slope_of_images, slope_of_kernels, stepped

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
own = pytest.mark.skipif(not (available(DEVICE) or INTERPRETED), reason="needs a GPU, or TRITON_INTERPRET=1 and Triton")

SHAPES = {
    "odd sizes": ((3, 2, 3, 8, 7), 5, (3, 3), (1, 1), (0, 0)),
    "padded": ((2, 2, 32, 9, 9), 40, (3, 3), (1, 1), (1, 1)),
    "unequal strides": ((2, 3, 16, 9, 8), 20, (3, 2), (2, 1), (1, 0)),
    "strided 1 x 1": ((2, 2, 4, 8, 8), 6, (1, 1), (2, 2), (0, 0)),
    "7 x 7": ((1, 2, 2, 7, 7), 3, (7, 7), (2, 2), (3, 3)),
    "one position": ((2, 5, 1280, 1, 1), 17, (1, 1), (1, 1), (0, 0)),
}


@own
@pytest.mark.parametrize("name", SHAPES)
def test_products_equal_convolutions_in_float64(name):
    (clients, images, channels, *size), outs, kernel, stride, padding = SHAPES[name]
    torch.manual_seed(0)
    x = torch.randn(clients, images, channels, *size, dtype=torch.float64, device=DEVICE, requires_grad=True)
    weight = torch.randn(clients, outs, channels, *kernel, dtype=torch.float64, device=DEVICE, requires_grad=True)
    bias = torch.randn(clients, outs, dtype=torch.float64, device=DEVICE)
    wanted = torch.stack([F.conv2d(a, w, b, stride, padding) for a, w, b in zip(x, weight, bias, strict=True)])
    slope = torch.randn_like(wanted)
    of_x, of_weight = torch.autograd.grad(wanted, (x, weight), slope)
    images_last, slopes_last = (t.detach().float().permute(0, 1, 3, 4, 2) for t in (x, slope))
    kernels = weight.detach().float().permute(0, 3, 4, 2, 1).flatten(1, 2)
    found = convolved(images_last, kernels, bias.float(), kernel[1], wanted.shape[-2:], stride, padding)
    near(found.permute(0, 1, 4, 2, 3), wanted)
    turned = weight.detach().float().permute(0, 3, 4, 1, 2).flatten(1, 2)
    near(slope_of_images(slopes_last, turned, kernel[1], size, stride, padding).permute(0, 1, 4, 2, 3), of_x)
    for first in (False, True):
        out = slope_of_kernels(images_last, slopes_last.contiguous(), kernel, stride, padding, first)
        out = out.permute(0, 2, 3, 1) if first else out
        near(out.reshape(clients, *kernel, channels, outs).permute(0, 4, 3, 1, 2), of_weight)


def near(found, wanted):
    assert float((found - wanted.detach()).norm()) <= 2e-6 * float(wanted.detach().norm())


@own
def test_a_model_with_own_kernels_has_the_gradients_of_plain_ones():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 20, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(80, 33), nn.ReLU(), nn.Linear(33, 5),
    ).to(DEVICE)  # fmt: skip
    tensors = {name: torch.randn(3, *p.shape, device=DEVICE) * 0.2 for name, p in net.named_parameters()}
    x, y = torch.randn(3, 4, 3, 10, 10, device=DEVICE), torch.randint(0, 5, (12,), device=DEVICE)

    def gradients(form):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        with using(Kernels.parse(form)), StackedLinears():
            out = vmap(lambda tensors, x: functional_call(net, tensors, (x,)))(leaves, x)
        return torch.autograd.grad(F.cross_entropy(out.flatten(0, 1), y), list(leaves.values()))

    for found, wanted in zip(gradients("triton"), gradients("plain"), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@own
@pytest.mark.parametrize("shared", [False, True])
def test_a_step_writes_its_part_of_each_row_only(shared):
    rows, slope, start = (
        torch.randn(4, 3000, device=DEVICE),
        torch.randn(4, 50, 50, device=DEVICE),
        torch.randn(2500, device=DEVICE),
    )
    before, at = rows.clone(), rows[:, 100:2600].view(4, 50, 50)
    base = start.view(1, 50, 50).expand(4, -1, -1) if shared else at
    wanted = base - 0.3 * slope
    stepped(at, base, slope, 0.3)
    torch.testing.assert_close(at, wanted)
    assert torch.equal(rows[:, :100], before[:, :100])
    assert torch.equal(rows[:, 2600:], before[:, 2600:])


def test_sums_are_split_by_their_shapes_only():
    for tiles, steps in ((1, 1), (1, 3), (50, 392), (3000, 18), (7, 9)):
        parts, share = products._parts(tiles, steps)
        assert (parts - 1) * share < steps <= parts * share
        assert parts == 1 or parts * tiles <= products._PROGRAMS


def test_factors_are_cast_only_in_mixed_precision():
    x, missing = cast(torch.ones(2), None)
    assert x.dtype == torch.float32
    assert missing is None
    with torch.autocast("cpu", torch.bfloat16):
        assert cast(torch.ones(2))[0].dtype == torch.bfloat16


def test_a_recurrent_layer_keeps_its_weights_in_the_vector():
    module = nn.LSTM(3, 4)
    model = Resident(module, layout := Layout.of(module))
    module.flatten_parameters()
    model.load(Params(torch.arange(float(layout.size)), layout))
    assert torch.equal(module.weight_ih_l0, model.params["weight_ih_l0"])
    assert module.flatten_parameters.__name__ == "_as_they_are"  # torch's own would move them on a GPU
