"""A pool around a frozen backbone: which members a sample uses, what they do, and sizes."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paceline.core.errors import ConfigError
from paceline.methods.foundation.fedins import FedIns
from paceline.models.pool import Pooled, PoolScaleShift, pooled
from paceline.models.transformer import vit
from paceline.tasks.tuning import tune_pool
from tests.conftest import make_task


def small(members=5, selected=2, spread=0.3):
    torch.manual_seed(0)
    made = Pooled(vit(shape=(1, 8, 8), num_classes=4, dim=8, depth=2, heads=2, patch=4), members, selected, spread)
    nn.init.normal_(made.keys)
    nn.init.normal_(made.bias)
    return made


def test_members_and_loss_are_those_of_the_sheet():
    module = Pooled(nn.Sequential(nn.Identity(), nn.Linear(3, 2)), 4, 2)
    with torch.no_grad():
        module.keys.copy_(torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]]))
    q = torch.tensor([[1.0, 1.0, 0.0]])
    cosines = F.cosine_similarity(q, module.keys)
    assert cosines.tolist() == pytest.approx([0.707107, 1.0, 0.0, 0.5], abs=1e-6)
    chosen, match = (value.detach() for value in module.choose(q))
    assert chosen.tolist() == [[0.5, 0.5, 0.0, 0.0]]
    assert float(match) == pytest.approx(1.707107, abs=1e-6)
    client = SimpleNamespace(problem=SimpleNamespace(loss=lambda scores, y: torch.tensor(1.0)))
    objective = FedIns(match=0.1).hooks(client, None).objective
    assert float(objective(module, q, torch.tensor([0])).detach()) == pytest.approx(0.829289, abs=1e-6)


def test_equal_keys_are_chosen_by_number():
    module = Pooled(nn.Sequential(nn.Identity(), nn.Linear(3, 2)), 6, 3)
    with torch.no_grad():
        module.keys.copy_(torch.ones(6, 3))
    assert (module.choose(torch.ones(1, 3))[0] > 0).tolist() == [[True] * 3 + [False] * 3]


def test_scales_and_shifts_are_those_of_the_sheet():
    place = PoolScaleShift(2, 0.0, 2)
    with torch.no_grad():
        place.scale.copy_(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        place.shift.copy_(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    h = torch.tensor([[2.0, 3.0]])
    assert place(h).tolist() == [[2.0, 3.0]]
    place.chosen = torch.tensor([[0.5, 0.5]])
    assert place(h).tolist() == [[5.0, 4.0]]
    pictures = PoolScaleShift(2, 0.5, 3, channels_first=True)
    pictures.chosen = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    x = torch.rand(2, 3, 4, 5)
    wanted = torch.stack([x[n] * pictures.scale[n].view(3, 1, 1) + pictures.shift[n].view(3, 1, 1) for n in range(2)])
    torch.testing.assert_close(pictures(x), wanted)


def test_every_picture_chooses_by_itself():
    """In the released layer the mean of scales was taken over the batch too; then these would differ."""
    module, x = small(), torch.randn(12, 1, 8, 8)
    together = module(x)
    assert len({tuple(row) for row in (module.choose(x)[0] > 0).tolist()}) > 1
    torch.testing.assert_close(torch.cat([module(one[None]) for one in x]), together, atol=1e-5, rtol=1e-5)
    order = torch.randperm(12)
    torch.testing.assert_close(module(x[order]), together[order], atol=1e-5, rtol=1e-5)
    for place in module.places:
        assert place.chosen is None
    mean, wrong = module.choose(x)[0].mean(0).expand(12, -1), module._features
    module._features = lambda x, chosen: wrong(x, None if chosen is None else mean)
    assert not torch.allclose(module(x), together, atol=1e-3)


def test_a_neutral_pool_is_the_frozen_model_with_its_head():
    module, x = small(spread=0.0), torch.randn(5, 1, 8, 8)
    own = module.backbone.head
    with torch.no_grad():
        module.weight.copy_(own.weight.expand_as(module.weight))
        module.bias.copy_(own.bias.expand_as(module.bias))
    torch.testing.assert_close(module(x), module.backbone(x))


def test_members_that_no_sample_chose_have_gradient_zero():
    module, x = small(members=8, selected=1), torch.randn(3, 1, 8, 8)
    used = (module.choose(x)[0] > 0).any(0)
    assert 0 < used.sum() < 8
    scores, match = module.matched(x)
    (F.cross_entropy(scores, torch.tensor([0, 1, 2])) - match.mean()).backward()
    for name, value in module.named_parameters():
        if ".ssf." in name or not name.startswith("backbone."):
            moved = value.grad.flatten(1).abs().sum(1) > 0
            assert not moved[~used].any(), name
            assert moved[used].any(), name


def test_the_size_of_the_published_pool():
    with torch.device("meta"):
        model = vit(shape=(3, 224, 224), num_classes=100, dim=768, depth=12, heads=12, patch=16)
        module = Pooled(model, 25, 3)
    sizes = {name: value.numel() for name, value in module.named_parameters()}
    assert sum(size for name, size in sizes.items() if ".ssf." in name) == 25 * 205_824
    assert sum(size for name, size in sizes.items() if ".ssf." in name or not name.startswith("backbone.")) == 7_087_300


def test_only_the_pool_is_trained_and_tuned_tasks_are_refused():
    task = tune_pool(make_task(), 4, 2)
    assert set(task.trainable) == {
        *(f"backbone.{layer}.ssf.{leaf}" for layer in (0, 2) for leaf in ("scale", "shift")),
        *("keys", "weight", "bias"),
    }
    with pytest.raises(ConfigError, match="already trains only a part"):
        tune_pool(task, 4, 2)
    with pytest.raises(ConfigError, match="selected=5"):
        pooled(make_task().model, 4, 5)
