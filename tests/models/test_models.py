"""Reference models: sizes, shapes, options, and that sub-models can be cut out of them."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch
from torch import fx

import paceline as pl
from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.layout import Layout
from paceline.models import build, model_options
from paceline.models.card import find_card, fitting
from paceline.models.mobilenet import InvertedResidual
from paceline.models.resnet import BasicBlock
from paceline.models.split import features, head, head_name
from paceline.registry import names
from paceline.results.predictor import load_predictor
from paceline.submodels.cut import Cutter
from paceline.tasks import load_task
from tests.conftest import fetched

GIVEN = {
    "logistic": {"shape": (1, 28, 28), "num_classes": 10},
    "mlp": {"shape": (1, 8, 8), "num_classes": 10},
}
SHAPES = {"vgg9": (3, 32, 32), "mlp": (1, 8, 8)}


WHOLE = {"vit", "char_model", "text_encoder"}
"""Transformers: the cutter of sub-models has no rule for attention."""

APART = {"lstm", "gru"}
"""Recurrent models: `torch.func` alone does not vectorise torch's fused kernels; the engine unrolls them."""


def example(name: str, count: int = 2) -> torch.Tensor:
    card = find_card(name)
    shape = SHAPES.get(name, card.shape)
    if card.takes == "text":
        return torch.arange(count * shape[0]).reshape(count, shape[0]) % 60 + 1
    return torch.rand(count, *shape)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("logistic", GIVEN["logistic"], 7_850),
        ("mlp", GIVEN["mlp"], 17_226),
        ("tiny_cnn", {}, 54_314),
        ("tiny_cnn", {"norm": "batch"}, 54_314 + 2 * (8 + 16 + 64)),
        ("cnn", {}, 1_663_370),
        ("cnn", {"num_classes": 62}, 1_690_046),
        ("femnist_cnn", {"num_classes": 62}, 410_022),
        ("vgg9", {}, 1_469_994),
        ("convnet", {}, 311_050),
        ("lstm", {}, 248_912 + 2 * 512),
        ("resnet18", {"norm": "batch"}, 11_173_962),  # published for CIFAR-10
        ("resnet18", {"shape": (3, 64, 64), "num_classes": 1000, "stem": "imagenet"}, 11_689_512),  # torchvision's
        ("mobilenet_v2", {"num_classes": 1000, "stem": "imagenet"}, 3_504_872),  # torchvision's
        ("mobilenet_v2", {}, 2_236_682),
        ("unet", {}, 134_500),
        ("cnn1d", {}, 32_615),
        ("gru", {}, 14_279),
        ("word_bag", {}, 10_000 * 64 + 65 * 20),
        ("text_encoder", {}, 133_514),
        ("tabular", {}, 20 * 2 * 8 + 161 * 64 + 65 * 2),
        ("tabular", {"shape": (7,), "categories": (0, 3, 0, 2), "dim": 4}, 2 * 2 * 4 + 5 * 4 + 17 * 64 + 65 * 2),
    ],
)
def test_number_of_parameters(name, options, size):
    assert sum(p.numel() for p in build(name, **options).parameters()) == size


@pytest.mark.parametrize("name", names("model"))
def test_outputs_have_one_row_a_sample_and_one_column_a_class(name):
    module = build(name, **GIVEN.get(name, {}))
    out = module(example(name, 3))
    assert out.shape[0] == 3
    assert out.shape[1] == find_card(name).num_classes
    spread = {"pixel": (64, 64), "position": (64,), "sample": ()}[find_card(name).gives]
    assert out.shape[2:] == spread
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", sorted(set(names("model")) - WHOLE))
def test_fx_can_trace_it_and_the_trace_agrees(name):
    module = build(name, **GIVEN.get(name, {}))
    x = example(name)
    assert torch.equal(fx.symbolic_trace(module)(x), module(x))


@pytest.mark.parametrize(
    ("name", "options"),
    [(n, {}) for n in names("model") if n != "logistic" and n not in WHOLE]
    + [("vgg9", {"norm": "group"}), ("vgg9", {"norm": "batch"}), ("resnet18", {"norm": "batch"}), ("unet", {"skip": "add"})],
)
def test_submodels_can_be_cut_out(name, options):
    module = build(name, **GIVEN.get(name, {}), **options)
    cutter = Cutter(module, Layout.of(module), example(name))
    assert 0 < cutter.share(0.5) < 1


@pytest.mark.parametrize("name", sorted(set(names("model")) - {"unet", "char_model"}))
def test_the_head_reads_the_features(name):
    module, x = build(name, **GIVEN.get(name, {})).eval(), example(name)
    assert isinstance(head(module), torch.nn.Linear)
    assert head_name(module)
    torch.testing.assert_close(head(module)(features(module, x)), module(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(names("model")) - APART))
def test_several_models_compute_as_one(name):
    modules = [build(name, **GIVEN.get(name, {})).eval() for _ in range(2)]
    x = torch.stack([example(name), example(name)])
    stacked = torch.vmap(lambda tensors, x: torch.func.functional_call(modules[0], tensors, (x,)))
    together = stacked(torch.func.stack_module_state(modules)[0] | torch.func.stack_module_state(modules)[1], x)
    for module, given, out in zip(modules, x, together, strict=True):
        torch.testing.assert_close(out, module(given), rtol=1e-4, atol=1e-4)


def test_concatenated_stages_of_a_unet_stay_whole_and_added_ones_do_not():
    share = {}
    for skip in ("cat", "add"):
        module = build("unet", skip=skip)
        share[skip] = Cutter(module, Layout.of(module), example("unet")).share(0.5)
    assert 0.25 < share["add"] < 0.3 < share["cat"] < 0.6


def test_a_block_whose_layers_give_nothing_returns_its_input():
    x = torch.rand(2, 16, 8, 8)
    for block in (BasicBlock(16, 16, 1, "group", 4), InvertedResidual(16, 16, 1, 6, "group")):
        last = block.bn2 if isinstance(block, BasicBlock) else block.conv[-1]
        torch.nn.init.zeros_(last.weight)
        assert torch.equal(block(x), x)
    assert BasicBlock(16, 32, 2, "group", 4)(x).shape == (2, 32, 4, 4)
    assert InvertedResidual(16, 32, 2, 6, "group")(x).shape == (2, 32, 4, 4)


def test_padding_of_a_text_does_not_count():
    for name in ("word_bag", "text_encoder"):
        torch.manual_seed(0)
        module = build(name, shape=(12,), symbols=50).eval()
        x = torch.tensor([[7, 3, 9] + [0] * 9])
        short = module(x)
        with torch.no_grad():
            module.embed.weight[0] += 5
        assert torch.allclose(module(x), short, atol=1e-5)
        assert not torch.allclose(module(torch.where(x == 3, 4, x)), short, atol=1e-3)
        assert torch.isfinite(module(torch.zeros(1, 12, dtype=torch.int64))).all()


def test_pretrained_weights_are_those_of_imagenet():
    fetched("mobilenet-v2")
    options = {"stem": "imagenet", "pretrained": True, "shape": (3, 64, 64)}
    full, small = build("mobilenet_v2", num_classes=1000, **options), build("mobilenet_v2", num_classes=7, **options)
    body = full.state_dict()
    assert torch.equal(torch.stack([p.isfinite().all() for p in body.values()]), torch.ones(len(body), dtype=torch.bool))
    differs = [name for name, p in small.state_dict().items() if not torch.equal(p, body[name])]  # each was drawn anew
    assert differs == ["head.weight", "head.bias"]
    assert float(full.body[0][1].running_var.std()) > 0.1  # statistics too
    with pytest.raises(ConfigError, match="norm=batch"):
        build("mobilenet_v2", pretrained=True, norm="group")


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
    assert model_options("text_encoder") == ["dim", "depth", "heads"]


def test_models_by_what_they_take_and_give():
    assert fitting("text", "sample") == ["lstm", "word_bag", "text_encoder"]
    assert fitting("series", "sample") == ["logistic", "mlp", "cnn1d", "gru"]
    assert fitting("any", "sample") == ["logistic", "mlp"]
    assert fitting("table", "sample") == ["logistic", "mlp", "tabular"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cnn", {"shape": (80,)}),
        ("vgg9", {"shape": (3, 4, 4)}),
        ("convnet", {"shape": (3, 7, 9)}),
        ("convnet", {"width": 0}),
        ("vgg9", {"norm": "layer"}),
        ("vgg9", {"norm": "group", "groups": 5}),
        ("resnet18", {"shape": (3, 4, 4)}),
        ("resnet18", {"groups": 5}),
        ("resnet18", {"norm": "none"}),
        ("resnet18", {"stem": "small"}),
        ("mobilenet_v2", {"shape": (3, 8, 8)}),
        ("unet", {"shape": (1, 60, 64)}),
        ("unet", {"skip": "none"}),
        ("cnn1d", {"shape": (6, 4)}),
        ("cnn1d", {"kernel": 4}),
        ("gru", {"shape": (6,)}),
        ("word_bag", {"shape": (1, 8, 8)}),
        ("text_encoder", {"heads": 3}),
        ("tabular", {"shape": (1, 8, 8)}),
        ("tabular", {"shape": (4,), "categories": (0, 2)}),
    ],
)
def test_values_that_do_not_fit_are_refused(name, options):
    with pytest.raises(ConfigError):
        build(name, **options)


def test_each_category_has_a_vector_and_numbers_bend():
    module = build("tabular", shape=(6,), categories=(0, 3, 2), dim=4)
    rows = torch.tensor([[0.5, 0, 1, 0, 0, 0], [0.5, 0, 0, 1, 0, 1], [-0.5, 0, 0, 0, 1, 0]])
    found = module[0](rows)
    number, first, second = module[0].columns
    torch.testing.assert_close(found[:, :4], (rows[:, :1] @ number.weight.T + number.bias).clamp(min=0))
    assert found[0, 4:8].equal(first.weight[:, 1])
    assert found[1, 4:8].equal(first.weight[:, 2])
    assert found[2, 4:8].abs().sum() == 0  # a category that the schema does not have
    assert found[0, 8:].abs().sum() == 0
    assert found[1, 8:].equal(second.weight[:, 1])
    assert bool((found[:, 4:8] < 0).any())


def test_a_table_gives_its_columns(tmp_path):
    lines = [f"{i % 7},{'abc'[i % 3]},{i % 5 / 2},{'yn'[i % 3 == 1]}" for i in range(90)]
    (tmp_path / "t.csv").write_text("\n".join(["n,c,m,y", *lines]))
    task = load_task(f"csv:{tmp_path / 't.csv'}?categories=n", "tabular")
    module = task.build(0)
    assert module[0].categories == (7, 3, 0)
    result = pl.run(
        "fedavg", f"csv:{tmp_path / 't.csv'}?categories=n", model="tabular", clients=3, rounds=12, folder=tmp_path / "run"
    )
    assert result.accuracy > 0.9
    assert load_predictor(tmp_path / "run").predict(tmp_path / "t.csv").accuracy > 0.9
