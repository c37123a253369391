"""Common corruptions of pictures, in five severities, after Hendrycks and Dietterich (ICLR 2019), and styles, which have no severity.

Noise, light and colour follow that paper's tables; blurs and distortions are stated as shares of a picture's side, so that they suit
pictures of any size. The same stream produces the same pictures.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.data.raw import Array

__all__ = ["CORRUPTIONS", "corrupt"]

_CHUNK = 1000
_TAPS = 9
"""Samples along the path of a motion or zoom."""

Corruption = Callable[[Tensor, int, np.random.Generator], Tensor]
"""(pictures [N, C, H, W] in 0..1, severity - 1, stream) -> pictures, not yet clamped to 0..1."""


def _draw(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _gaussian(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * _draw(rng.standard_normal(x.shape, np.float32))


def _shot(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    photons = (60.0, 25.0, 12.0, 5.0, 3.0)[level]
    return _draw(rng.poisson(x.double().numpy() * photons)) / photons


def _impulse(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    share, drawn = (0.03, 0.06, 0.09, 0.17, 0.27)[level], _draw(rng.random(x.shape, np.float32))
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn < share, 1.0, x))


def _iso(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    """Add noise that grows with the light, and less of it on all channels of a pixel alike."""
    scale = (0.05, 0.08, 0.12, 0.18, 0.26)[level]
    own = _draw(rng.standard_normal(x.shape, np.float32)) * x.sqrt()
    common = _draw(rng.standard_normal((len(x), 1, *x.shape[2:]), np.float32))
    return x + scale * (own + 0.5 * common)


def _brightness(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    return x + 0.1 * (level + 1)


def _darkness(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    return x - 0.1 * (level + 1)


def _contrast(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean


def _fog(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    """Blend with a cloud: random fields of three scales."""
    dense, cloud = (0.3, 0.4, 0.5, 0.6, 0.7)[level], torch.zeros(len(x), 1, *x.shape[2:])
    for cells in (2, 4, 8):
        field = _draw(rng.random((len(x), 1, cells, cells), np.float32))
        cloud += F.interpolate(field, size=tuple(x.shape[2:]), mode="bilinear") / cells
    return (1 - dense) * x + dense * (0.5 + 0.5 * cloud / cloud.amax((2, 3), keepdim=True))


def _colour(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    """Multiply each channel by a factor of its own."""
    return x * torch.exp((0.1, 0.2, 0.3, 0.45, 0.6)[level] * _draw(rng.standard_normal((*x.shape[:2], 1, 1), np.float32)))


def _reflection(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    """Add a bright spot at a random place."""
    place = _draw(rng.uniform(-0.7, 0.7, (len(x), 2)))
    away = (_grid(x) - place[:, None, None]).square().sum(-1)
    width = (0.15, 0.2, 0.25, 0.3, 0.4)[level]
    return x + (0.4, 0.55, 0.7, 0.85, 1.0)[level] * torch.exp(-away / (2 * width**2)).unsqueeze(1)


def _resolution(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    size = [max(1, round(side * (0.75, 0.6, 0.5, 0.35, 0.25)[level])) for side in x.shape[2:]]
    return F.interpolate(F.interpolate(x, size=size, mode="area"), size=tuple(x.shape[2:]), mode="bilinear")


def _grid(x: Tensor) -> Tensor:
    """Return the coordinates (x, y) of each pixel in -1..1, shape [1, H, W, 2]."""
    rows, columns = ((2 * torch.arange(side) + 1) / side - 1 for side in x.shape[2:])
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).unsqueeze(0)


def _sample(x: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="reflection", align_corners=False)


def _defocus(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    radius = max(x.shape[2:]) * (0.025, 0.035, 0.045, 0.06, 0.08)[level]
    reach = int(np.ceil(radius))
    offsets = torch.arange(-reach, reach + 1).float()
    disk = (radius + 0.5 - (offsets[:, None] ** 2 + offsets**2).sqrt()).clamp(0, 1)
    kernel = (disk / disk.sum()).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, (reach,) * 4, mode="replicate"), kernel, groups=x.shape[1])


def _glass(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    reach = 2 * (0.01, 0.015, 0.02, 0.03, 0.045)[level]
    return _sample(x, _grid(x) + reach * _draw(rng.standard_normal((len(x), *x.shape[2:], 2), np.float32)))


def _motion(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    length, angle = (0.06, 0.09, 0.12, 0.16, 0.22)[level], rng.uniform(0, np.pi, len(x))
    along = _draw(np.stack([np.cos(angle), np.sin(angle)], -1))[:, None, None]
    return torch.stack([_sample(x, _grid(x) + 2 * length * t * along) for t in np.linspace(-0.5, 0.5, _TAPS).tolist()]).mean(0)


def _zoom(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    most = (1.1, 1.15, 1.2, 1.3, 1.4)[level]
    return torch.stack([_sample(x, _grid(x) / factor) for factor in np.linspace(1, most, _TAPS).tolist()]).mean(0)


def _lens(x: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    grid = _grid(x)
    return _sample(x, grid * (1 + (0.1, 0.2, 0.3, 0.4, 0.5)[level] * grid.square().sum(-1, keepdim=True)))


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": _gaussian,
    "shot-noise": _shot,
    "impulse-noise": _impulse,
    "iso-noise": _iso,
    "brightness": _brightness,
    "darkness": _darkness,
    "contrast": _contrast,
    "fog": _fog,
    "colour": _colour,
    "reflection": _reflection,
    "defocus-blur": _defocus,
    "glass-blur": _glass,
    "motion-blur": _motion,
    "zoom-blur": _zoom,
    "lens": _lens,
    "resolution": _resolution,
}
"""All corruptions, by name; a style is none."""


_TURNED = re.compile(r"turned-(\d{1,3})")


def _style(kind: str) -> Corruption | None:
    """Return what a style does, or None if it has no such name."""
    if kind == "inverted":
        return lambda x, level, rng: 1 - x
    if turned := _TURNED.fullmatch(kind):
        angle = np.deg2rad(int(turned[1]))
        cos, sin = np.cos(angle), np.sin(angle)
        rotation = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float32)  # y points down
        return lambda x, level, rng: _sample(x, _grid(x) @ rotation)
    return None


def corrupt(images: Array, kind: str, severity: int, rng: np.random.Generator) -> Array:
    """Return corrupted pictures, of the same shape and type.

    Args:
        images: uint8 pictures, shape [N, H, W] or [N, H, W, C]; not modified.
        kind: name of a corruption, or of a style, on which `severity` has no effect: ``clean``, ``inverted``, or ``turned-N``,
            counter-clockwise by N degrees.
        severity: from 1 to 5.
        rng: stream of the corruption.

    Raises:
        UnknownNameError: unknown corruption; lists the nearest names.
        ConfigError: the severity is not from 1 to 5, or the pictures are not uint8.

    Example:
        >>> grey = np.full((1, 4, 4), 100, dtype=np.uint8)
        >>> int(corrupt(grey, "brightness", 2, np.random.default_rng(0))[0, 0, 0])
        151
    """
    change = CORRUPTIONS.get(kind) or _style(kind)
    if change is None and kind != "clean":
        raise UnknownNameError("corruption", kind, ["clean", "inverted", "turned-90", *CORRUPTIONS])
    if severity not in (1, 2, 3, 4, 5):
        raise ConfigError(f"severity={severity} must be a whole number from 1 to 5")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ConfigError(
            f"corruptions need uint8 pictures of shape [N, H, W] or [N, H, W, C], not {images.dtype} of shape {images.shape}"
        )
    if change is None:
        return images.copy()
    out = np.empty_like(images)
    for start in range(0, len(images), _CHUNK):
        part: Any = torch.from_numpy(images[start : start + _CHUNK]).float() / 255
        x = part.unsqueeze(1) if images.ndim == 3 else part.permute(0, 3, 1, 2)
        with torch.no_grad():
            changed = change(x.contiguous(), severity - 1, rng).clamp(0, 1).mul(255).round().to(torch.uint8)
        out[start : start + _CHUNK] = (changed.squeeze(1) if images.ndim == 3 else changed.permute(0, 2, 3, 1)).numpy()
    return out
