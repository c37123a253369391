"""Large linear layers on oneDNN: values, gradients, and the calls that must stay with torch."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paceline.core import linears as module
from paceline.core.layout import Layout
from paceline.core.linears import linears, uses_onednn
from paceline.core.params import Resident
from paceline.core.samples import ClientData
from paceline.core.training import Job, train

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not uses_onednn(), reason="this build of torch has no oneDNN linear layer")


class Counted:
    def __init__(self, monkeypatch):
        self.calls, real = 0, module._product

        def product(*args):
            self.calls += 1
            return real(*args)

        monkeypatch.setattr(module, "_product", product)


@pytest.fixture
def counted(monkeypatch):
    return Counted(monkeypatch)


def gradients(layer, x, target):
    x = x.clone().requires_grad_()
    loss = (layer(x) - target).square().mean()
    return [loss, *torch.autograd.grad(loss, [x, *layer.parameters()])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (8, 8)])
def test_a_large_layer_has_the_values_and_gradients_of_torch(bias, shape, counted):
    torch.manual_seed(0)
    layer = nn.Linear(256, 80, bias=bias)
    x, target = torch.randn(*shape, 256), torch.randn(*shape, 80)
    wanted = gradients(layer, x, target)
    with linears(layer, 64, CPU):
        found = gradients(layer, x, target)
    assert counted.calls == 3  # forward, and both products of the backward pass
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    layer(x)
    assert counted.calls == 3  # the context has ended


@pytest.mark.parametrize(("rows", "least"), [(63, 0), (64, 1)])
def test_which_layers_use_it_depends_on_sizes_alone(rows, least, counted):
    layer = nn.Linear(256, 64)  # 64 rows are 2^20 multiplications
    with linears(layer, 10**6, CPU):
        layer(torch.randn(rows, 256))
    assert counted.calls == least


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_other_kinds_and_transformations_stay_with_torch(counted):
    layer, x = nn.Linear(256, 80), torch.randn(64, 256)
    weights = {k: v.detach() for k, v in layer.named_parameters()}

    def value(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).sum()

    with linears(layer, 64, CPU):
        torch.func.grad(value)(weights, x)
        torch.func.vmap(value, (None, 0))(weights, x.expand(2, -1, -1))
        torch.func.jvp(lambda x: value(weights, x), (x,), (x,))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        layer.double()(x.double())
    assert counted.calls == 0
    with linears(layer, 64, CPU, mixed=True), linears(layer, 64, torch.device("meta")):
        assert "forward" not in layer.__dict__


def test_a_gradient_of_the_gradient_is_that_of_torch():
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 80), torch.randn(64, 256)

    def second():
        (slope,) = torch.autograd.grad(layer(x).square().mean(), layer.weight, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), layer.weight)[0]

    wanted = second()
    with linears(layer, 64, CPU):
        found = second()
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-7)


def test_nested_contexts_and_errors_leave_the_module_as_it_was():
    layer = nn.Linear(256, 80)
    with pytest.raises(RuntimeError), linears(layer, 64, CPU), linears(layer, 64, CPU):
        layer(torch.randn(64, 3))
    assert "forward" not in layer.__dict__
    assert F.linear(torch.ones(1, 256), layer.weight, layer.bias).shape == (1, 80)


@pytest.mark.filterwarnings("ignore:TF32")
def test_torchs_own_switch_counts(counted):
    layer = nn.Linear(256, 80)
    with torch.backends.mkldnn.flags(enabled=False), linears(layer, 64, CPU):
        layer(torch.randn(64, 256))
    assert counted.calls == 0


@pytest.mark.parametrize("own", [True, False])
def test_a_prepared_module_uses_it_where_its_layers_are_torchs(own, counted):
    model = Resident(layer := nn.Linear(256, 128), Layout.of(layer))
    data = ClientData(torch.randn(64, 256), torch.zeros(64, dtype=torch.int64), torch.arange(64))

    @contextmanager
    def prepare(module):
        if own:
            module.__dict__["forward"] = lambda x: 2 * F.linear(x, module.weight, module.bias)
        yield
        if own:
            del module.__dict__["forward"]

    job = Job(model, data, model.snapshot(), F.cross_entropy, 0.1, 1, 64, lambda: torch.Generator().manual_seed(0), prepare=prepare)
    train(job)
    assert bool(counted.calls) != own
    assert "forward" not in layer.__dict__
