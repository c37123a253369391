"""Reference models: sizes, shapes, options, and that sub-models can be cut out of them."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch
from torch import fx

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.layout import Layout
from paceline.models import build, model_options
from paceline.registry import names
from paceline.submodels.cut import Cutter

GIVEN = {
    "logistic": {"shape": (1, 28, 28), "num_classes": 10},
    "mlp": {"shape": (1, 8, 8), "num_classes": 10},
}
SHAPES = {"vgg9": (3, 32, 32), "mlp": (1, 8, 8)}


WHOLE = {"vit", "char_model"}
"""Transformers: the cutter of sub-models has no rule for attention."""


def example(name: str, count: int = 2) -> torch.Tensor:
    if name == "char_model":
        return torch.arange(count * 20).reshape(count, 20) % 96
    if name == "lstm":
        return torch.arange(count * 20).reshape(count, 20) % 80
    return torch.rand(count, *SHAPES.get(name, (1, 28, 28)))


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("logistic", GIVEN["logistic"], 7_850),
        ("mlp", GIVEN["mlp"], 17_226),
        ("tiny_cnn", {}, 54_314),
        ("cnn", {}, 1_663_370),
        ("cnn", {"num_classes": 62}, 1_690_046),
        ("femnist_cnn", {"num_classes": 62}, 410_022),
        ("vgg9", {}, 1_469_994),
        ("lstm", {}, 248_912 + 2 * 512),
    ],
)
def test_number_of_parameters(name, options, size):
    assert sum(p.numel() for p in build(name, **options).parameters()) == size


@pytest.mark.parametrize("name", names("model"))
def test_outputs_have_one_row_a_sample_and_one_column_a_class(name):
    module = build(name, **GIVEN.get(name, {}))
    out = module(example(name, 3))
    assert out.shape[0] == 3
    assert out.shape[1] == {"femnist_cnn": 62, "lstm": 80, "char_model": 96}.get(name, 10)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", sorted(set(names("model")) - WHOLE))
def test_fx_can_trace_it_and_the_trace_agrees(name):
    module = build(name, **GIVEN.get(name, {}))
    x = example(name)
    assert torch.equal(fx.symbolic_trace(module)(x), module(x))


@pytest.mark.parametrize(
    ("name", "options"),
    [(n, {}) for n in names("model") if n != "logistic" and n not in WHOLE]
    + [("vgg9", {"norm": "group"}), ("vgg9", {"norm": "batch"})],
)
def test_submodels_can_be_cut_out(name, options):
    module = build(name, **GIVEN.get(name, {}), **options)
    cutter = Cutter(module, Layout.of(module), example(name))
    assert 0 < cutter.share(0.5) < 1


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_vgg9_norms(norm):
    module = build("vgg9", norm=norm)
    kinds = [type(m).__name__ for m in module.modules()]
    assert kinds.count("GroupNorm") == (6 if norm == "group" else 0)
    assert kinds.count("BatchNorm2d") == (6 if norm == "batch" else 0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_lstm_reads_codes_of_any_integer_type(dtype):
    torch.manual_seed(0)
    module = build("lstm", num_classes=30)
    x = torch.arange(24).reshape(2, 12)
    assert torch.equal(module(x.to(dtype)), module(x))


def test_a_maker_of_models_can_be_sent_to_workers():
    make = pickle.loads(pickle.dumps(partial(build, "mlp", shape=(4,), num_classes=2, hidden=(3,))))
    assert make()(torch.zeros(1, 4)).shape == (1, 2)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match=r"did you mean .*vgg9"):
        build("vgg")
    with pytest.raises(UnknownNameError, match="option of model vgg9"):
        build("vgg9", nrom="group")
    assert build("tiny-cnn") is not None


def test_options_beside_shape_and_classes():
    assert model_options("vgg9") == ["norm", "groups"]
    assert model_options("cnn") == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cnn", {"shape": (80,)}),
        ("vgg9", {"shape": (3, 4, 4)}),
        ("vgg9", {"norm": "layer"}),
        ("vgg9", {"norm": "group", "groups": 5}),
    ],
)
def test_values_that_do_not_fit_are_refused(name, options):
    with pytest.raises(ConfigError):
        build(name, **options)
