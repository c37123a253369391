"""`fontwriters`: letters and digits drawn in handwriting fonts. Synthetic writers, not FEMNIST.

A writer is a font family with one of four pens. A pen determines slant, width, height, stroke, ink and noise; each
sample is randomly rotated, shifted, scaled and distorted a little. All glyphs of one family have the same outline before
that, so a writer varies less than a person.
"""

from __future__ import annotations

import io
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paceline.core.errors import ConfigError, DataError
from paceline.core.random import numpy_rng
from paceline.data.fetch import Package
from paceline.data.raw import Array, Part, RawData
from paceline.data.sources.families import FAMILIES, VERSION
from paceline.data.sources.source import Source

__all__ = ["CLASSES", "FONTWRITERS", "PENS", "Pen", "draw_writer"]

CLASSES = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)
PENS = 4
"""Writers per family."""

_SIDE = 28
_FINE = 3 * _SIDE
"""Size of the canvas, three times as fine as the image; glyphs are averaged down."""
_GRID = 3
"""Number of distortion cells per side."""


@dataclass(frozen=True)
class Pen:
    """Properties of one writer common to all letters; lengths in pixels of the fine canvas."""

    slant: float
    width: float
    height: float
    stroke: int
    ink: float
    noise: float

    @staticmethod
    def draw(rng: np.random.Generator) -> Pen:
        """Draw a random pen."""
        return Pen(
            slant=float(rng.uniform(-0.25, 0.3)),
            width=float(rng.uniform(0.82, 1.15)),
            height=float(rng.uniform(0.82, 1.1)),
            stroke=int(rng.integers(0, 4)),
            ink=float(rng.uniform(0.7, 1.0)),
            noise=float(rng.uniform(0.0, 0.07)),
        )


def draw_writer(
    font: bytes, family: str, pen_number: int, per_class: int, seed: int = 0, classes: Sequence[str] = CLASSES
) -> Array:
    """Draw `per_class` samples of each of the classes; white on black, uint8 [classes, per_class, 28, 28].

    The same arguments produce the same bytes (with the same version of FreeType).
    """
    rng = numpy_rng(seed, "fontwriters", family, pen_number)
    pen = Pen.draw(rng)
    size = _fitting_size(font)
    face = ImageFont.truetype(io.BytesIO(font), size)
    out = np.empty((len(classes), per_class, _SIDE, _SIDE), dtype=np.uint8)
    for code, letter in enumerate(classes):
        glyph = _glyph(face, letter, pen)
        for k in range(per_class):
            bent = glyph.transform((_FINE, _FINE), Image.Transform.MESH, _mesh(pen, rng), Image.Resampling.BILINEAR)
            fine = np.asarray(bent, dtype=np.float32).reshape(_SIDE, 3, _SIDE, 3).mean(axis=(1, 3))
            noisy = fine * pen.ink + rng.normal(0.0, 255 * pen.noise, fine.shape)
            out[code, k] = noisy.clip(0, 255).round().astype(np.uint8)
    return out


def _fitting_size(font: bytes) -> int:
    """Return the font size at which capitals are about 16 pixels high."""
    trial = ImageFont.truetype(io.BytesIO(font), 100)
    _, top, _, bottom = trial.getbbox("H")
    return max(8, round(100 * 16 * 3 / max(bottom - top, 1)))


def _glyph(face: ImageFont.FreeTypeFont, letter: str, pen: Pen) -> Image.Image:
    """Draw one letter, horizontally centred, on a common baseline; shrunk if it does not fit."""
    canvas = Image.new("L", (_FINE, _FINE), 0)
    left, top, right, bottom = face.getbbox(letter, anchor="ls", stroke_width=pen.stroke)
    room = _FINE - 12
    if right - left > room or bottom - top > room:
        face = face.font_variant(size=int(face.size * room / max(right - left, bottom - top)))
        left, top, right, bottom = face.getbbox(letter, anchor="ls", stroke_width=pen.stroke)
    base = min(max(62.0, 4 - top), _FINE - 4 - bottom)
    ImageDraw.Draw(canvas).text(
        ((_FINE - left - right) / 2, base), letter, fill=255, font=face, anchor="ls", stroke_width=pen.stroke
    )
    return canvas


def _mesh(pen: Pen, rng: np.random.Generator) -> list[tuple[tuple[int, int, int, int], tuple[float, ...]]]:
    """Return the source of each cell of the output, from the pen's shape and this sample's distortion."""
    turn, grow = rng.normal(0.0, 0.1), rng.normal(1.0, 0.06)
    shear = -pen.slant + rng.normal(0.0, 0.07)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.array([[1 / pen.width, -shear / pen.width], [0.0, 1 / pen.height]]) / max(grow, 0.5)
    ticks = np.linspace(0, _FINE, _GRID + 1)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1) - _FINE / 2
    source = points @ matrix.T + _FINE / 2 + rng.normal(0.0, 3.0, 2) + rng.normal(0.0, 2.2, points.shape)
    cells = []
    edges = [round(t) for t in ticks]
    for i in range(_GRID):
        for j in range(_GRID):
            box = (edges[j], edges[i], edges[j + 1], edges[i + 1])
            corners = (source[i, j], source[i + 1, j], source[i + 1, j + 1], source[i, j + 1])
            cells.append((box, tuple(float(v) for corner in corners for v in corner)))
    return cells


def _packages(options: Mapping[str, int]) -> tuple[Package, ...]:
    if not 1 <= options["families"] <= len(FAMILIES):
        raise ConfigError(f"families={options['families']} must be from 1 to {len(FAMILIES)}")
    chosen = list(FAMILIES.items())[: options["families"]]
    return tuple(
        Package("npm", f"@fontsource/{name}", VERSION, {f"package/files/{name}-latin-400-normal.woff2": sha})
        for name, sha in chosen
    )


def _decode(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    """Draw all writers; the last fifth (at least one) of each writer's samples of a class are the test part."""
    per_class = options["samples"]
    if per_class < 2:
        raise ConfigError("samples=1 must be at least 2 per class, one of them for tests")
    images, owners = [], []
    for key, font in files.items():
        family = key.partition(":")[0].removeprefix("@fontsource/")
        for pen in range(PENS):
            try:
                images.append(draw_writer(font, family, pen, per_class))
            except OSError as error:
                raise DataError(
                    f"Pillow cannot draw with the font {family} ({error}); install a build with FreeType and WOFF2"
                ) from error
            owners.append(f"{family}/{pen + 1}")
    x = np.stack(images)
    writers, classes = x.shape[:2]
    y = np.broadcast_to(np.arange(classes)[None, :, None], (writers, classes, per_class))
    owner = np.broadcast_to(np.arange(writers)[:, None, None], y.shape)
    held = max(1, per_class // 5)
    parts = []
    for rows in (slice(0, per_class - held), slice(per_class - held, per_class)):
        part = Part(
            x[:, :, rows].reshape(-1, _SIDE, _SIDE),
            y[:, :, rows].reshape(-1).astype(np.int64),
            owner[:, :, rows].reshape(-1).astype(np.int64),
        )
        parts.append(part)
    return RawData(parts[0], parts[1], CLASSES, tuple(owners)).arrays()


def _read(arrays: Mapping[str, Array], options: Mapping[str, int]) -> RawData:
    data = RawData.of(arrays)
    wanted = options["families"] * PENS
    if len(data.owners) <= wanted:
        return data
    train, test = (
        part.take(np.flatnonzero(part.owner < wanted))
        for part in (data.train, data.test)
        if part is not None and part.owner is not None
    )
    return RawData(train, test, data.classes, data.owners[:wanted])


FONTWRITERS = Source(
    "fontwriters",
    "62 letters and digits, 28 x 28 grey, drawn by 160 synthetic writers (40 handwriting fonts x 4 pens); NOT FEMNIST",
    "SIL OFL 1.1 (fonts)",
    6,
    _packages,
    _decode,
    _read,
    fetched={"families": len(FAMILIES), "samples": 5},
    nested="families",
)
