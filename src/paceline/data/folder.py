"""Images in one folder per class: ``train/<class>/*.png`` and ``test/<class>/*.png``, or ``<class>/*.png``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from paceline.core.errors import ConfigError, DataFormatError
from paceline.data.raw import Part, RawData

__all__ = ["ENDS", "read_image_folder"]

ENDS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
"""Extensions of image files."""
_TESTS = ("test", "val", "valid")


def read_image_folder(folder: Path, size: int = 32, grey: bool = False) -> RawData:
    """Read images, scaled to `size` x `size` pixels.

    Args:
        folder: folder of the classes.
        size: width and height, 1 to 1024.
        grey: convert to grey levels instead of RGB.

    Raises:
        ConfigError: `size` is out of range.
        DataFormatError: there is no class, or a file is not an image.
    """
    if not 1 <= size <= 1024:
        raise ConfigError(f"size={size} must be from 1 to 1024 pixels")
    roots = [folder, None] if not (folder / "train").is_dir() else [folder / "train", _first_test(folder)]
    classes = sorted({p.name for root in roots if root for p in root.iterdir() if p.is_dir() and _pictures(p)})
    if not classes:
        raise DataFormatError(f"{folder}: no sub-folder contains pictures; create one per class")
    parts = [None if root is None else _part(root, classes, size, grey) for root in roots]
    if parts[0] is None:
        raise DataFormatError(f"{folder / 'train'}: contains no pictures; create one sub-folder of pictures per class")
    return RawData(parts[0], parts[1], tuple(classes))


def _first_test(folder: Path) -> Path | None:
    return next((folder / name for name in _TESTS if (folder / name).is_dir()), None)


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDS and p.is_file())


def _part(root: Path, classes: list[str], size: int, grey: bool) -> Part | None:
    images, labels = [], []
    for code, name in enumerate(classes):
        for path in _pictures(root / name) if (root / name).is_dir() else []:
            try:
                with Image.open(path) as opened:
                    picture = opened.convert("L" if grey else "RGB").resize((size, size), Image.Resampling.BILINEAR)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataFormatError(f"{path}: not a readable picture ({error})") from error
            images.append(np.asarray(picture))
            labels.append(code)
    return Part(np.stack(images), np.array(labels, dtype=np.int64)) if images else None
