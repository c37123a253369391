"""Operations on pictures against Pillow's, and their levels."""

import math

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from paceline.blocks.operations import OPERATIONS, chosen_operation, every_operation, level_value

SIZE = (7, 10)
"""Height and width."""


def pictures(channels=3, count=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(20, 230, (count, channels, *SIZE), generator=generator).float() / 255


def image(x):
    array = (x * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array if x.shape[0] == 3 else array[..., 0])


def tensor(made):
    data = torch.frombuffer(bytearray(made.tobytes()), dtype=torch.uint8).view(SIZE[0], SIZE[1], -1)
    return data.permute(2, 0, 1).float() / 255


def affine(made, *matrix):
    return made.transform(made.size, Image.Transform.AFFINE, matrix)


PILLOW = {
    "shear-x": lambda i, v: affine(i, 1, v, 0, 0, 1, 0),
    "shear-y": lambda i, v: affine(i, 1, 0, 0, v, 1, 0),
    "translate-x": lambda i, v: affine(i, 1, 0, v * i.width, 0, 1, 0),
    "translate-y": lambda i, v: affine(i, 1, 0, 0, 0, 1, v * i.height),
    "rotate": lambda i, v: i.rotate(v),
    "auto-contrast": lambda i, v: ImageOps.autocontrast(i),
    "invert": lambda i, v: ImageOps.invert(i),
    "equalize": lambda i, v: ImageOps.equalize(i),
    "solarize": lambda i, v: ImageOps.solarize(i, v),
    "posterize": lambda i, v: ImageOps.posterize(i, int(v)),
    "contrast": lambda i, v: ImageEnhance.Contrast(i).enhance(v),
    "color": lambda i, v: ImageEnhance.Color(i).enhance(v),
    "brightness": lambda i, v: ImageEnhance.Brightness(i).enhance(v),
    "sharpness": lambda i, v: ImageEnhance.Sharpness(i).enhance(v),
    "flip": lambda i, v: ImageOps.mirror(i),
    "identity": lambda i, v: i,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PILLOW)
def test_operations_are_those_of_pillow(name, channels):
    x, levels = pictures(channels), torch.tensor([0.03, 0.3, 0.71, 0.95])
    one, place = torch.ones(4), torch.rand(4, 2)
    found = chosen_operation(x, [name], torch.zeros(4, dtype=torch.long), levels, one, place)
    low, high = OPERATIONS[name]
    for row, level in enumerate(levels.tolist()):
        wanted = tensor(PILLOW[name](image(x[row]), low + level * (high - low)))
        assert (found[row] - wanted).abs().max() <= 1.5 / 255, (name, level)


def test_levels():
    assert float(level_value("rotate", torch.tensor(0.75))) == 15.0
    assert float(level_value("posterize", torch.tensor(0.75))) == 7.0
    assert level_value("posterize", torch.tensor([0.0, 0.74, 1.0])).tolist() == [4.0, 6.0, 8.0]
    assert level_value("solarize", torch.tensor([-0.1, 1.2])).tolist() == [0.0, 256.0]


def test_identity_and_eight_bits_return_the_picture_bit_for_bit():
    x = torch.rand(3, 3, *SIZE)
    for name in ("identity", "posterize"):
        assert torch.equal(every_operation(x, [name], torch.ones(3, 1), torch.ones(3), torch.rand(3, 2))[:, 0], x)


def test_a_sign_turns_geometric_operations_alone():
    x, levels, place = pictures(), torch.full((4, 2), 0.9), torch.rand(4, 2)
    there, back = (every_operation(x, ["rotate", "brightness"], levels, sign * torch.ones(4), place) for sign in (1.0, -1.0))
    assert torch.equal(there[:, 1], back[:, 1])
    turned = tensor(image(x[0]).rotate(-24.0))
    assert (back[0, 0] - turned).abs().max() < 0.01
    assert not torch.allclose(there[0, 0], back[0, 0])


def test_each_picture_gets_its_own_operation():
    x, names, which = pictures(), ["invert", "translate-x", "identity", "cutout"], torch.arange(4)
    levels, sign, place = torch.full((4,), 0.8), torch.ones(4), torch.full((4, 2), 0.5)
    found = chosen_operation(x, names, which, levels, sign, place)
    every = every_operation(x, names, levels[:, None].expand(4, 4), sign, place)
    assert torch.equal(found, every[which, which])
    assert torch.equal(found[0], 1 - x[0])
    assert torch.equal(found[2], x[2])


def test_cutout_fills_a_share_of_the_side():
    x = torch.zeros(1, 3, 20, 20)
    out = every_operation(x, ["cutout"], torch.ones(1, 1), torch.ones(1), torch.full((1, 2), 0.5))[0, 0]
    assert (out[0] > 0).sum() == 16  # a fifth of the side
    assert out[:, 10, 10].tolist() == pytest.approx([125 / 255, 123 / 255, 114 / 255])
    assert math.isclose(float(out[:, 0, 0].sum()), 0.0)


def test_a_channel_of_one_brightness_stays_as_it_is():
    x = torch.full((2, 1, *SIZE), 0.4)
    for name in ("auto-contrast", "equalize"):
        assert torch.equal(every_operation(x, [name], torch.ones(2, 1), torch.ones(2), torch.rand(2, 2))[:, 0], x)
