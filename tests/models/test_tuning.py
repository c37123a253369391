"""What trains: counts on ViT-B/16, adapters that change nothing at first, prompts and their places, frozen norms."""

from functools import partial

import pytest
import torch
from torch import nn

from paceline.core.errors import ConfigError, MissingExtraError
from paceline.models.transformer import char_model, vit
from paceline.models.tuning import Prompts, Tuning, tuned

SMALL = partial(vit, shape=(1, 8, 8), num_classes=5, dim=8, depth=3, heads=2, patch=4)
BASE = partial(vit, shape=(3, 224, 224), num_classes=100, dim=768, depth=12, heads=12, patch=16)
HEAD = 76_900


@pytest.fixture
def made():
    """Return a maker of tuned modules that are always initialised alike."""

    def make(model, *args, **options):
        torch.manual_seed(3)
        return tuned(model, Tuning(*args, **options))

    return make


def size(module, names):
    parameters = dict(module.named_parameters())
    return sum(parameters[n].numel() for n in names)


@pytest.mark.parametrize(
    ("tuning", "count"),
    [
        (Tuning("full"), 85_798_656 + HEAD),
        (Tuning("head"), HEAD),
        (Tuning("bias"), 102_912 + HEAD),
        (Tuning("norm"), 2 * 768 * 25 + HEAD),
        (Tuning("adapter", width=8), 156_768 + HEAD),
        (Tuning("prompt", tokens=10, deep=True), 92_160 + HEAD),
        (Tuning("prompt", tokens=10, deep=False), 7_680 + HEAD),
        (Tuning("ssf"), 205_824 + HEAD),
        (Tuning("lora", rank=4, targets=("q_proj", "v_proj")), 147_456),
        (Tuning("lora", rank=4, targets=("q_proj", "v_proj"), with_head=True), 147_456 + HEAD),
        (Tuning("bias", with_head=False), 102_912),
    ],
    ids=str,
)
def test_counts_on_the_base_vision_transformer(tuning, count):
    with torch.device("meta"):
        module = tuned(BASE, tuning)
    assert size(module, tuning.names(module)) == count


def test_an_adapter_changes_nothing_at_first(made):
    x = torch.randn(4, 1, 8, 8)
    plain, module = made(SMALL, "full"), made(SMALL, "adapter", width=3)
    assert module(x).equal(plain(x))
    with torch.no_grad():
        module.blocks[1].after.up.weight[0, 0] = 0.5
    assert not module(x).equal(plain(x))


def test_scale_and_shift_change_nothing_at_first_and_then_every_output(made):
    x = torch.randn(4, 1, 8, 8)
    plain, module = made(SMALL, "full"), made(SMALL, "ssf")
    assert module(x).equal(plain(x))
    h, layer = torch.randn(5, 8), module.blocks[0].fc1
    with torch.no_grad():
        layer.ssf.scale.normal_()
        layer.ssf.shift.normal_()
        torch.testing.assert_close(layer(h), plain.blocks[0].fc1(h) * layer.ssf.scale + layer.ssf.shift)
    assert not module(x).equal(plain(x))
    assert not hasattr(module.head, "ssf")


def test_scale_and_shift_of_channels_and_norms(made):
    def network():
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2))

    x = torch.randn(4, 1, 8, 8)
    plain, module = made(network, "full").eval(), made(network, "ssf")
    torch.testing.assert_close(module(x), plain(x))
    with torch.no_grad():
        module[0].ssf.scale.copy_(torch.tensor([2.0, 1.0, 1.0]))
        module[1].ssf.shift.copy_(torch.tensor([0.0, 5.0, 0.0]))
        inside = module[:2](x)
        first = plain[0](x) * torch.tensor([2.0, 1.0, 1.0]).view(-1, 1, 1)
        torch.testing.assert_close(inside, plain[1](first) + torch.tensor([0.0, 5.0, 0.0]).view(-1, 1, 1))
    assert size(module, Tuning("ssf").names(module)) == 2 * 3 + 2 * 3 + 3 * 36 * 2 + 2


def test_lora_changes_nothing_at_first(made):
    x = torch.randn(4, 1, 8, 8)
    assert made(SMALL, "lora")(x).equal(made(SMALL, "full")(x))
    module = made(SMALL, "lora", rank=2, alpha=6.0, targets=("q_proj",))
    layer = module.blocks[0].attention.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        h = torch.randn(5, 8)
        torch.testing.assert_close(layer(h), layer.base_layer(h) + 3.0 * h @ a.T @ b.T)


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_lengthen_the_sequence_once_and_change_the_outputs(made, deep):
    x = torch.randn(2, 1, 8, 8)
    module = made(SMALL, "prompt", tokens=6, deep=deep)
    seen = []
    for block in module.blocks:
        block.register_forward_hook(lambda block, given, out: seen.append(given[0]))
    out = module(x)
    assert [s.shape[1] for s in seen] == [1 + 6 + 4] * 3
    fresh = [bool((s[:, 1:7] == module.prompts.values[i if deep else 0]).all()) for i, s in enumerate(seen)]
    assert fresh == ([True] * 3 if deep else [True, False, False])
    assert not out.equal(made(SMALL, "full")(x))
    reach = (6 / (16 + 8)) ** 0.5
    assert 0.8 * reach < float(module.prompts.values.detach().abs().max()) <= reach


def test_prompts_are_put_behind_the_class_token():
    prompts = Prompts(2, 3, 2, 1.0)
    x = torch.arange(12.0).view(1, 4, 3)
    first = prompts(x, 0)
    assert first[:, 0].equal(x[:, 0])
    assert first[:, 3:].equal(x[:, 1:])
    second = prompts(first, 1)
    assert second[:, 1:3].equal(prompts.values[1][None])
    assert second.shape == first.shape


def test_biases_are_those_of_layers_and_not_all_that_is_called_bias(made):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.relative_position_bias = nn.Parameter(torch.zeros(3))
            self.layer, self.norm, self.head = nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2)
            self.bias = nn.Parameter(torch.zeros(3))

    Odd.head_name = "head"
    names = Tuning("bias").names(made(Odd, "bias"))
    assert names == ["layer.bias", "norm.bias", "head.weight", "head.bias"]
    assert Tuning("bias", with_head=False).names(Odd()) == ["layer.bias", "norm.bias"]
    assert Tuning("norm").names(Odd()) == ["norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_frozen_norms_keep_their_statistics_in_training(made):
    def make():
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))

    module = made(make, "head")
    before = {n: t.clone() for n, t in module.state_dict().items()}
    module.train()
    module(torch.randn(16, 4) + 3).sum().backward()
    assert all(t.equal(before[n]) for n, t in module.state_dict().items() if "num_batches" not in n)
    assert not [n for n, b in module.named_buffers() if b.is_floating_point()]
    assert Tuning("head").names(module) == ["2.weight", "2.bias"]


@pytest.mark.parametrize(
    ("prototype", "reported"), [("adapter", "does not support adapters"), ("prompt", "does not support prompts")]
)
def test_a_model_without_a_place_is_named(made, prototype, reported):
    with pytest.raises(ConfigError, match=reported):
        made(lambda: nn.Sequential(nn.Linear(2, 2)), prototype)
    if prototype == "prompt":
        with pytest.raises(ConfigError, match=reported):
            made(partial(char_model, shape=(6,), num_classes=4, dim=4, heads=1), prototype)


def test_unknown_targets_are_named(made):
    with pytest.raises(ConfigError, match=r"\['w_pack'\].*q_proj"):
        made(SMALL, "lora", targets=("w_pack",))


def test_a_missing_library_is_named_with_the_command(made, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'paceline\[peft\]'"):
        made(SMALL, "lora")


def test_pictures_that_do_not_suit_are_named():
    with pytest.raises(ConfigError, match="sides must be multiples of patch"):
        vit(shape=(1, 9, 8), patch=4)
    with pytest.raises(ConfigError, match="use sequences"):
        char_model(shape=(1, 8, 8))
