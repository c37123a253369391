import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from paceline.core.errors import LayoutError
from paceline.core.layout import Layout
from paceline.core.params import Params, Resident


class Scaled(nn.Module):
    """A scalar parameter, tied weights, an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.one = nn.Linear(3, 3, bias=False)
        self.two = nn.Linear(3, 3, bias=False)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.norm(self.two(self.one(x)))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))


def test_parameters_come_first_then_float_buffers() -> None:
    layout = Layout.of(net())
    assert [e.name for e in layout.entries] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "3.weight",
        "3.bias",
        "1.running_mean",
        "1.running_var",
    ]
    assert [e.offset for e in layout.entries] == [0, 12, 15, 18, 21, 27, 29, 32]
    assert layout.size == 35
    assert layout.num_params == 29
    assert Layout.of(net(), buffers="local").size == 29


def test_trainable_takes_patterns_predicates_and_flags() -> None:
    module = net()
    assert list(Layout.of(module, ["3.*"], "local").by_name) == ["3.weight", "3.bias"]
    assert list(Layout.of(module, lambda n: n.endswith("bias"), "local").by_name) == [
        "0.bias",
        "1.bias",
        "3.bias",
    ]
    module[0].requires_grad_(False)
    assert "0.weight" not in Layout.of(module).by_name
    with pytest.raises(LayoutError, match=r"trainable=\['head\.\*'\] matches no parameter"):
        Layout.of(module, ["head.*"])
    with pytest.raises(LayoutError, match=r"must be float32.*0\.weight"):
        Layout.of(nn.Sequential(nn.Linear(2, 2).to(torch.complex64)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_module_of_another_dtype_is_exchanged_in_float32(dtype: torch.dtype) -> None:
    module = net().to(dtype)
    module[3].float()
    layout = Layout.of(module)
    start = Params.of(module, layout)
    assert start.vector.dtype == torch.float32
    model = Resident(module, layout)
    assert model.params.vector.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    model.load(start * 3.0)
    assert model.snapshot().vector.equal(start.vector * 3.0)
    assert [module[0].weight.dtype, module[3].weight.dtype, module[1].running_var.dtype] == [dtype, torch.float32, dtype]
    assert module[0].weight.float().equal((start * 3.0)["0.weight"].to(dtype).float())
    assert module[3].weight.equal((start * 3.0)["3.weight"])
    module[1].running_mean.fill_(0.5)
    model.sync_buffers()
    assert model.snapshot()["1.running_mean"].eq(0.5).all()


def test_the_digest_is_of_names_shapes_and_kinds() -> None:
    layout = Layout.build([("a", (2, 3), "param"), ("b", (), "param")])
    assert layout.digest == Layout.build([("a", (2, 3), "param"), ("b", (), "param")]).digest
    others = [
        [("a", (3, 2), "param"), ("b", (), "param")],
        [("a", (2, 3), "param"), ("b", (1,), "param")],
        [("a", (2, 3), "param"), ("c", (), "param")],
        [("a", (2, 3), "param"), ("b", (), "buffer")],
    ]
    digests = {Layout.build(other).digest for other in others}  # type: ignore[arg-type]
    assert len(digests | {layout.digest}) == 5


def test_views_have_shapes_and_share_memory() -> None:
    layout = Layout.build([("w", (2, 3), "param"), ("s", (), "param"), ("e", (0, 4), "param")])
    params = Params(torch.arange(7.0), layout)
    params["w"][1, 2] = 50.0
    assert params.vector[5] == 50.0
    assert params["s"].shape == ()
    assert params["s"] == 6.0
    assert params["e"].shape == (0, 4)
    stacked = torch.arange(14.0).reshape(2, 7)
    assert layout.view(stacked, "w").shape == (2, 2, 3)
    assert layout.view(stacked, "s").tolist() == [6.0, 13.0]
    with pytest.raises(LayoutError, match=r"no tensor 'x'"):
        params["x"]
    assert "w" in params
    assert "x" not in params
    assert dict(params.items()).keys() == {"w", "s", "e"}
    assert len(params) == 7
    with pytest.raises(LayoutError, match=r"shape \(3,\) does not match a layout of 7"):
        Params(torch.zeros(3), layout)


def test_arithmetic_is_that_of_vectors() -> None:
    module = net()
    layout = Layout.of(module)
    a = Params.of(module, layout)
    b = Params(torch.linspace(-1, 1, layout.size), layout)
    x, y = a.vector, b.vector
    cases: list[tuple[Any, torch.Tensor]] = [
        (a + b, x + y),
        (a - b, x - y),
        (a * b, x * y),
        (a / (b + 3.0), x / (y + 3.0)),
        (2.0 * a - 1, 2.0 * x - 1),
        (1 - a, 1 - x),
        (a**2, x**2),
        (-a, -x),
        (sum([a, b]), x + y),
        (torch.tensor(0.5) * a, 0.5 * x),
        (torch.tensor(0.5) - a, 0.5 - x),
        (x + b, x + y),
        (np.float64(0.5) * a, 0.5 * x),
        (np.float32(0.5) + a, 0.5 + x),
        (np.float64(0.5) - a, 0.5 - x),
        (a * np.float64(0.5), 0.5 * x),
        (a.map(torch.sign), torch.sign(x)),
        (a.zeros(), torch.zeros_like(x)),
    ]
    for got, want in cases:
        assert isinstance(got, Params)
        assert got.vector.dtype == torch.float32
        assert torch.equal(got.vector, want)
    assert torch.isclose(a.dot(b), (x * y).sum())
    assert torch.isclose(a.norm(), (x * x).sum().sqrt())


def test_layouts_do_not_mix() -> None:
    a = Params(torch.zeros(4), Layout.build([("w", (4,), "param")]))
    b = Params(torch.zeros(4), Layout.build([("v", (4,), "param")]))
    same = Params(torch.ones(4), Layout.build([("w", (4,), "param")]))
    for operate in (lambda: a + b, lambda: a - b, lambda: a * b, lambda: a.dot(b)):
        with pytest.raises(LayoutError, match="different layouts"):
            operate()
    assert (a + same).vector.tolist() == [1.0] * 4


def test_copies_are_copies() -> None:
    module = nn.Linear(2, 1, bias=False)
    params = Params.of(module, Layout.of(module))
    copy = params.clone()
    params.vector.zero_()
    assert module.weight.abs().sum() > 0
    assert copy.vector.abs().sum() > 0
    assert not params.vector.requires_grad
    assert params.to("cpu").vector is params.vector


def test_the_hash_is_of_the_bytes() -> None:
    params = Params(torch.tensor([1.0, -0.0]), Layout.build([("w", (2,), "param")]))
    assert params.sha256() == hashlib.sha256(np.array([1.0, -0.0], dtype="<f4").tobytes()).hexdigest()
    assert params.sha256() != (params + 0.0).sha256()


def test_a_resident_module_lives_in_its_vector() -> None:
    module, plain = net(), net()
    resident = Resident(module, Layout.of(module))
    x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        resident.grads.vector.zero_()
        nn.functional.cross_entropy(module(x), y).backward()
        with torch.no_grad():
            resident.params.vector.add_(resident.grads.vector, alpha=-0.1)
        optimiser.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        optimiser.step()
    want = Params.of(plain, resident.layout)
    assert torch.equal(resident.params.vector, want.vector)
    assert resident.grads.vector[resident.layout.num_params :].abs().sum() == 0
    assert module[1].num_batches_tracked == 3


def test_loading_is_one_copy_that_the_module_sees() -> None:
    module, other = net(), net()
    resident = Resident(module, Layout.of(module))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
        other[1].running_mean.fill_(3.0)
    resident.load(Params.of(other, resident.layout))
    other.eval()
    module.eval()
    x = torch.randn(5, 4)
    assert torch.equal(module(x), other(x))
    snapshot = resident.snapshot()
    resident.params.vector.zero_()
    assert snapshot.vector.abs().sum() > 0
    with pytest.raises(LayoutError, match="this module's layout"):
        resident.load(Params(torch.zeros(2), Layout.build([("w", (2,), "param")])))


def test_the_first_difference_of_two_layouts_is_named() -> None:
    def layout(*entries: tuple[str, tuple[int, ...], str]) -> Layout:
        return Layout.build(list(entries))  # type: ignore[arg-type]

    mine = layout(("w", (2, 3), "param"), ("b", (2,), "param"))
    assert mine.difference(mine) == ""
    wide = layout(("w", (2, 5), "param"), ("b", (2,), "param"))
    assert mine.difference(wide) == "w is param [2, 3] in the vector, but param [2, 5] in the module"
    buffered = layout(("w", (2, 3), "param"), ("b", (2,), "buffer"))
    assert mine.difference(buffered) == "b is param [2] in the vector, but buffer [2] in the module"
    assert mine.difference(layout(("w", (2, 3), "param"))) == "b [2] of the vector is missing from the module"
    assert mine.difference(layout(("w", (2, 3), "param"), ("c", (2,), "param"))) == "b [2] of the vector is missing from the module"
    assert layout(("w", (2, 3), "param")).difference(mine) == "b [2] of the module is missing from the vector"


def test_scalars_and_tied_weights_live_in_the_vector_too() -> None:
    module = Scaled()
    resident = Resident(module, Layout.of(module))
    assert list(resident.layout.by_name) == [
        "scale",
        "one.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
    ]
    module(torch.randn(4, 3)).square().sum().backward()
    assert resident.grads["scale"].shape == ()
    assert resident.grads["scale"] != 0
    assert module.one.weight.data_ptr() == module.two.weight.data_ptr() == resident.params["one.weight"].data_ptr()


def test_only_what_is_trainable_has_gradients() -> None:
    module = net()
    resident = Resident(module, Layout.of(module, ["3.*"], "local"))
    module(torch.randn(4, 4)).sum().backward()
    assert resident.grads.vector.abs().sum() > 0
    assert module[0].weight.grad is None
    assert not module[0].weight.requires_grad


def test_local_buffers_stay_outside() -> None:
    module = net()
    resident = Resident(module, Layout.of(module, buffers="local"))
    assert resident.stateful
    assert not Resident(net(), Layout.of(net())).stateful
    saved = resident.local_buffers()
    assert set(saved) == {"1.running_mean", "1.running_var"}
    module.train()
    module(torch.randn(8, 4) + 5)
    assert not torch.equal(module[1].running_mean, saved["1.running_mean"])
    resident.load_buffers(saved)
    assert torch.equal(module[1].running_mean, saved["1.running_mean"])
