"""Single pictures as arrays, without loss: bit depth, transparency, palettes and the camera's orientation are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from paceline.core.errors import DataFormatError
from paceline.data.raw import Array

__all__ = ["ENDS", "hidden", "in_one_form", "picture_files", "read_mask", "read_picture"]

ENDS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
"""Extensions of image files."""

_HIDDEN = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir"}
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def hidden(path: Path) -> bool:
    """Return whether a file or folder is hidden, or made by an operating system for itself."""
    return path.name.startswith(".") or path.name in _HIDDEN


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures in a folder, by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDS and p.is_file() and not hidden(p))


def _opened(path: Path, change: Callable[[Any], Array]) -> Array:
    try:
        with Image.open(path) as opened:
            if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":
                raise DataFormatError(f"{path}: has {getattr(opened, 'n_frames', 0)} frames; save each as a picture of its own")
            if opened.format == "PNG" and opened.mode in ("RGB", "RGBA") and _png_bits(path) == 16:
                raise DataFormatError(
                    f"{path}: a colour picture of 16 bits per channel, which is not supported; save it with 8 bits"
                )
            return change(ImageOps.exif_transpose(opened))
    except DataFormatError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataFormatError(f"{path}: not a readable picture ({error})") from error


def _png_bits(path: Path) -> int:
    with open(path, "rb") as file:
        return file.read(25)[-1]


def read_picture(path: Path, size: int, grey: bool = False) -> Array:
    """Return a picture, scaled to `size` x `size` pixels.

    Args:
        path: the file.
        size: width and height.
        grey: convert colours to grey levels.

    Returns:
        uint8 [H, W], [H, W, 3] or, with transparent pixels, [H, W, 4]; uint16 or float32 [H, W] for pictures of more bits.

    Raises:
        DataFormatError: the file is no picture, or has several frames.
    """

    def change(picture: Any) -> Array:
        if picture.mode in _DEEP or picture.mode == "F":
            deep = np.array(picture)
            if picture.mode == "I" and (deep.min() < 0 or deep.max() > 65535):
                raise DataFormatError(f"{path}: has values from {deep.min()} to {deep.max()}; save it with 16 bits, or as floats")
            if not np.isfinite(deep).all():
                raise DataFormatError(f"{path}: has values that are not finite; replace them")
            scaled = np.array(Image.fromarray(deep.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))
            return scaled if picture.mode == "F" else scaled.round().clip(0, 65535).astype(np.uint16)
        clear = "A" in picture.getbands() or "transparency" in picture.info
        if clear:
            picture = picture.convert("RGBA")
            clear = picture.getchannel("A").getextrema()[0] < 255
        if grey and clear:
            raise DataFormatError(f"{path}: has transparent pixels, which grey=true would lose; save it without transparency")
        return np.array(
            picture.convert("RGBA" if clear else "L" if grey else "RGB").resize((size, size), Image.Resampling.BILINEAR)
        )

    return _opened(path, change)


def read_mask(path: Path, size: int) -> Array:
    """Return a mask: a class for each pixel, uint8 [size, size], by nearest pixels; a palette's indices are the classes.

    Raises:
        DataFormatError: the file is no picture, or has colours in place of classes.
    """

    def change(picture: Any) -> Array:
        if picture.mode not in ("1", "L", "P", *_DEEP):
            raise DataFormatError(
                f"{path}: a mask of mode {picture.mode}; save the class of each pixel as a grey level or a palette index"
            )
        values = np.array(picture)
        if values.max() > 255:
            raise DataFormatError(f"{path}: has class {values.max()}; classes of masks are 0 to 255")
        return np.array(Image.fromarray(values.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST))

    return _opened(path, change)


def in_one_form(pictures: list[Array], paths: list[Path]) -> tuple[Array, float, str]:
    """Return pictures as one array, the value of full brightness, and a note on their form.

    Colours without transparency get an opaque channel where others have transparency; 8 bits become 16 where others have 16.

    Raises:
        DataFormatError: some have float values and others not, or some 16-bit grey levels and others colours.
    """
    kinds: dict[str, Path] = {}
    for picture, path in zip(pictures, paths, strict=True):
        kinds.setdefault(f"{picture.dtype} {picture.shape[2:]}", path)
    depth: Literal["uint8", "uint16", "float32"] = "uint8"
    if any(p.dtype == np.float32 for p in pictures):
        depth = "float32"
    elif any(p.dtype == np.uint16 for p in pictures):
        depth = "uint16"
    flat = depth != "uint8"
    if flat and len(kinds) > 1:
        (one, at), (other, there), *_ = kinds.items()
        raise DataFormatError(
            f"{there}: a picture of {other.split()[0]} values, but {at.name} has {one.split()[0]}; save all pictures in one form"
        )
    if any(p.shape[2:] == (4,) for p in pictures):
        pictures = [
            p if p.shape[2:] == (4,) else np.concatenate([p, np.full((*p.shape[:2], 1), 255, np.uint8)], 2) for p in pictures
        ]
    whole = np.stack(pictures)
    top = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}[depth]
    bits = {"uint8": "8 bits", "uint16": "16 bits", "float32": "float values"}[depth]
    colours = {(): "grey", (3,): "RGB", (4,): "RGB with alpha"}[whole.shape[3:]]
    return whole, top, f"{len(whole)} pictures of {bits}, {colours}, scaled to {whole.shape[2]}x{whole.shape[1]} pixels"
