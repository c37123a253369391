"""Losses by name, against torch's own and against what they leave out; and where scores are found."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.losses import LOSSES, NamedLoss, counted, named_loss, scores, target

G = torch.Generator().manual_seed(0)
OUT, VALUES = torch.randn(8, 5, generator=G), torch.randn(8, 5, generator=G)
CLASSES, BITS = torch.randint(0, 5, (8,), generator=G), torch.randint(0, 2, (8, 5), generator=G).float()
LOGS, COUNTS = OUT.log_softmax(1), torch.randint(0, 6, (8, 5), generator=G).float()
TOKENS, NEXT = torch.randint(0, 5, (8, 4), generator=G), torch.randn(8, 4, 5, generator=G)

CASES = {
    "cross_entropy": (OUT, CLASSES, F.cross_entropy(OUT, CLASSES)),
    "nll": (LOGS, CLASSES, F.nll_loss(LOGS, CLASSES)),
    "bce": (OUT, BITS, F.binary_cross_entropy_with_logits(OUT, BITS)),
    "mse": (OUT, VALUES, F.mse_loss(OUT, VALUES)),
    "l1": (OUT, VALUES, F.l1_loss(OUT, VALUES)),
    "huber": (OUT, VALUES, F.huber_loss(OUT, VALUES)),
    "poisson": (OUT, COUNTS, F.poisson_nll_loss(OUT, COUNTS)),
    "next_token": (NEXT, TOKENS, F.cross_entropy(NEXT[:, :3].reshape(-1, 5), TOKENS[:, 1:].reshape(-1))),
    "dice": (
        OUT,
        BITS,
        1 - ((2 * (OUT.sigmoid() * BITS).sum(1) + 1) / (OUT.sigmoid().sum(1) + BITS.sum(1) + 1)).mean(),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_named_loss_is_the_mean_that_torch_has(name):
    out, y, wanted = CASES[name]
    assert torch.allclose(NamedLoss(name)(out, y), wanted)
    assert torch.allclose(NamedLoss(name)({"logits": out}, {"y": y}), wanted)
    slopes = vmap(grad(lambda o, t: NamedLoss(name, ignore_index=77)(o, t)))(torch.stack([out, 2 * out]), torch.stack([y, y]))
    for factor, slope in zip((1, 2), slopes, strict=True):
        leaf = (factor * out).requires_grad_()
        (own,) = torch.autograd.grad(NamedLoss(name)(leaf, y), leaf)
        assert torch.allclose(slope, own, atol=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "nll", "next_token"])
def test_what_is_ignored_neither_adds_nor_counts(name):
    out, y, _ = CASES[name]
    for ignored, loss in ((255, NamedLoss(name, ignore_index=255)), (-100, NamedLoss(name))):
        changed = y.clone()
        changed[2:] = ignored
        other = out.clone()
        other[2:] = 7.0
        assert torch.allclose(loss(out, changed), NamedLoss(name)(out[:2], y[:2]))
        assert torch.allclose(loss(other, changed), loss(out, changed))
        assert loss(out, torch.full_like(y, ignored)) == 0


@pytest.mark.parametrize("name", ["bce", "mse", "l1", "huber", "poisson", "dice", "cross_entropy"])
def test_a_mask_says_which_targets_count(name):
    out, y, _ = CASES[name]
    mask = torch.arange(8) < 3
    wanted = NamedLoss(name)(out[:3], y[:3])
    if name == "dice":  # its samples without targets have the coefficient 1
        wanted = wanted * 3 / 8
        mask = mask[:, None].expand(8, 5)
    assert torch.allclose(NamedLoss(name, mask="kept")(out, {"y": y, "kept": mask}), wanted)
    assert counted({"y": y, "kept": mask}, None, "kept").sum() == mask.sum()


def test_dice_of_classes_is_that_of_each_class():
    y = torch.randint(0, 3, (4, 6, 6), generator=G)
    perfect = 50 * F.one_hot(y, 3).movedim(3, 1).float()
    assert NamedLoss("dice")(perfect, y) < 1e-4
    hidden = torch.where(torch.arange(6) < 2, 255, y)
    loss = NamedLoss("dice", ignore_index=255)
    assert torch.allclose(loss(perfect, hidden), NamedLoss("dice")(perfect[..., 2:], y[..., 2:]))


def test_a_last_dimension_of_one_is_no_trap():
    out, y = torch.randn(8, 1, generator=G), torch.randn(8, generator=G)
    assert torch.allclose(NamedLoss("mse")(out, y), F.mse_loss(out[:, 0], y))
    assert torch.allclose(NamedLoss("mse")(out[:, 0], y[:, None]), F.mse_loss(out[:, 0], y))
    assert torch.allclose(NamedLoss("bce")(out, (y > 0).long()), F.binary_cross_entropy_with_logits(out[:, 0], (y > 0).float()))
    with pytest.raises(ConfigError, match=r"shape \[8, 2\] for targets of shape \[8\]"):
        NamedLoss("mse")(torch.zeros(8, 2), y)


def test_scores_are_found_in_what_models_return():
    Named = namedtuple("Named", "hidden logits")
    for outputs in ({"hidden": VALUES, "logits": OUT}, {"x": OUT}, {"out": OUT, "aux": VALUES}, (OUT, VALUES), Named(VALUES, OUT)):
        assert scores(outputs) is OUT
    assert scores(SimpleNamespace(logits=OUT)) is OUT
    assert scores({"a": VALUES, "b": OUT}, "b") is OUT
    assert scores((VALUES, OUT), 1) is OUT
    with pytest.raises(ConfigError, match=r"returns a dict with a, b, .*output="):
        scores({"a": VALUES, "b": OUT})
    with pytest.raises(ConfigError, match="returns a list"):
        scores(["a"])
    with pytest.raises(ConfigError, match="one tensor of targets, not 2"):
        target({"a": VALUES, "b": OUT})


def test_a_half_precision_score_is_summed_in_float32():
    out, y, wanted = CASES["mse"]
    assert NamedLoss("mse")(out.bfloat16(), y).dtype == torch.float32
    assert torch.allclose(NamedLoss("mse")(out.bfloat16(), y), wanted, rtol=0.02)


def test_cross_entropy_that_ignores_nothing_is_torchs_own():
    assert named_loss("cross_entropy") is F.cross_entropy
    assert named_loss("cross_entropy", -100) is F.cross_entropy
    assert named_loss("cross_entropy", 255) == NamedLoss("cross_entropy", 255)
    with pytest.raises(UnknownNameError, match="mse"):
        named_loss("msee")
