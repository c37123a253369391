"""`emoji`: pictures of emoji with their names."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import numpy as np
from PIL import Image

from paceline.core.errors import DataFormatError
from paceline.data.fetch import Package
from paceline.data.raw import Array, Part, RawData, encode
from paceline.data.sources.source import Source

__all__ = ["EMOJI"]

_PACKAGE = "emoji-datasource-twitter"
_LIST = "package/emoji.json"
_FOLDER = "package/img/twitter/64/"
_SIDE = 32


def _decode(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    """Decode pictures on white, 32 x 32, with category and words of the name and group."""
    listed = json.loads(files[f"{_PACKAGE}:{_LIST}"])
    images, categories, words = [], [], []
    for entry in sorted(listed, key=lambda entry: int(entry["sort_order"])):
        name = f"{_PACKAGE}:{_FOLDER}{entry['image']}"
        if name not in files or entry["category"] == "Component":
            continue
        try:
            with Image.open(io.BytesIO(files[name])) as picture:
                shown = picture.convert("RGBA")
        except OSError as error:
            raise DataFormatError(f"{name}: not a picture ({error})") from None
        white = Image.new("RGBA", shown.size, "white")
        white.alpha_composite(shown)
        images.append(np.asarray(white.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)))
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
    lambda options: (
        Package(
            "npm",
            _PACKAGE,
            "16.0.0",
            {
                _LIST: "1d602e65be88772bf8cc368ce16b855d719eeddbafe128d471b80203f494d29f",
                f"{_FOLDER}*.png": "b39270682bebd973efefbda12a6104d0685dd227dddd2a8316304db25c9a4fe2",
            },
        ),
    ),
    _decode,
    _read,
)
