"""Augmentations: functions of their stream, each picture by itself, and what each one does."""

import math

import pytest
import torch

from paceline.blocks.augmentations import (
    compose,
    crop,
    cutout,
    flip,
    grey,
    inputs_only,
    jitter,
    noise,
    resized_crop,
    tilt,
    views,
    warp,
)

ALL = {
    "flip": flip(),
    "grey": grey(),
    "noise": noise(0.1),
    "jitter": jitter(),
    "crop": crop(2),
    "cutout": cutout(),
    "tilt": tilt(20, 0.1, 0.1),
    "resized": resized_crop(),
    "composed": compose(flip(), crop(1), jitter()),
}


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=64, channels=3):
    return torch.rand(count, channels, 8, 6, generator=stream(9))


@pytest.mark.parametrize("name", ALL)
def test_the_stream_decides_and_pictures_differ(name):
    x = pictures()
    before, drawn = x.clone(), torch.get_rng_state()
    one, again, other = (ALL[name](x, stream(seed)) for seed in (0, 0, 1))
    assert one.shape == x.shape
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(x, before)
    assert torch.equal(drawn, torch.get_rng_state())
    same = ALL[name](x[:1].expand(64, -1, -1, -1), stream())
    assert not torch.equal(same, same[:1].expand_as(same)), "all pictures got the same draw"


def test_flips_and_greys_are_whole_pictures():
    x = pictures(400)
    flipped = flip()(x, stream())
    which = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(flipped, x, strict=True)])
    assert all(torch.equal(a, b) for a, b, turned in zip(flipped, x, which, strict=True) if not turned)
    assert 0.4 < which.float().mean() < 0.6
    dull = grey(0.2)(x, stream())
    share = torch.tensor([float((p - p[:1]).abs().max()) == 0 for p in dull]).float().mean()
    assert 0.12 < share < 0.28


def test_crops_are_shifts():
    x = torch.zeros(200, 1, 9, 9)
    x[:, :, 4, 4] = 1
    out = crop(2)(x, stream())
    where = out.flatten(1).argmax(1)
    rows, columns = where // 9, where % 9
    assert (out.sum((1, 2, 3)) == 1).all()
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == 25


def test_cutouts_are_squares_inside():
    out = cutout(0.5, fill=-1.0)(torch.zeros(300, 2, 8, 8), stream())
    gone = (out == -1).float()
    assert (gone.sum((2, 3)) == 16).all()
    assert torch.equal(gone[:, 0], gone[:, 1])
    assert (gone[:, 0].mean(0) > 0).all()


def test_a_warp_by_the_identity_and_by_a_quarter_turn():
    x = pictures(3)[:, :, :6]
    eye = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(3, 2, 3)
    torch.testing.assert_close(warp(x, eye), x)
    turn = torch.tensor([[math.cos(math.pi / 2), -1.0, 0], [1.0, math.cos(math.pi / 2), 0]]).expand(3, 2, 3)
    torch.testing.assert_close(warp(x, turn), x.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_resized_crops_stay_inside():
    ramp = torch.linspace(-1, 1, 16).view(1, 1, 1, 16).expand(100, 1, 16, 16)
    out = resized_crop(0.25, 0.25)(ramp, stream())
    assert float(out.min()) >= -1
    assert float(out.max()) <= 1
    widths = out.amax(3) - out.amin(3)
    assert float((widths - 1.0).abs().max()) < 0.15


def test_views_are_independent_and_targets_stay():
    x, y = pictures(5), torch.arange(5)
    (a, b), kept = views(noise(1.0))(x, y, stream())
    assert kept is y
    assert not torch.equal(a, b)
    single, kept = inputs_only(noise(1.0))(x, y, stream())
    assert kept is y
    assert torch.equal(single, a)
