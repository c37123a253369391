"""Images in one folder per class, ``train/<class>/*.png`` and ``test/<class>/*.png`` or ``<class>/*.png``, and images with masks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from paceline.core.errors import ConfigError, DataFormatError
from paceline.data.pictures import ENDS, hidden, in_one_form, picture_files, read_mask, read_picture
from paceline.data.raw import Array, Part, RawData
from paceline.data.schema import PictureForm, Schema, Target

__all__ = ["ENDS", "class_folders", "read_image_folder", "read_mask_folder"]

_TESTS = ("test", "val", "valid")
_IGNORED = 255
"""Class of the pixels of a mask that do not count."""


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
    _check(size)
    roots = parts_of(folder)
    classes = sorted({name for root in roots if root for name in class_folders(root, ENDS, "pictures")})
    if not classes:
        raise DataFormatError(f"{folder}: no sub-folder contains pictures; create one per class")
    files = [[] if root is None else _listed(root, classes) for root in roots]
    if not files[0]:
        raise DataFormatError(f"{folder / 'train'}: contains no pictures; create one sub-folder of pictures per class")
    listed = files[0] + files[1]
    x, top, note = in_one_form([read_picture(path, size, grey) for path, _ in listed], [path for path, _ in listed])
    whole = Part(x, np.array([code for _, code in listed], dtype=np.int64))
    counts = np.bincount(whole.y, minlength=len(classes))
    notes = [note, *(f"class {name}: {count} pictures" for name, count in zip(classes, counts, strict=True)), *_skipped(folder)]
    rows = np.arange(len(listed))
    train, test = rows[: len(files[0])], rows[len(files[0]) :]
    schema = Schema(content="image", picture=_picture(x, top), target=Target(classes=tuple(classes)))
    return RawData(whole.take(train), whole.take(test) if len(test) else None, tuple(classes), schema=schema, notes=tuple(notes))


def read_mask_folder(folder: Path, size: int = 64, grey: bool = False) -> RawData:
    """Read images with masks: ``images/NAME.*`` and ``masks/NAME.*``, also below ``train`` and ``test``.

    Masks with the values 0 and 255 alone have the classes 0 and 1; in others, pixels of value 255 do not count.

    Args:
        folder: folder of the images and masks.
        size: width and height, 1 to 1024.
        grey: convert images to grey levels instead of RGB.

    Raises:
        ConfigError: `size` is out of range.
        DataFormatError: an image has no mask or the reverse, or a file cannot be read.
    """
    _check(size)
    files = [[] if root is None else _pairs(root) for root in parts_of(folder)]
    listed = files[0] + files[1]
    x, top, note = in_one_form([read_picture(path, size, grey) for path, _ in listed], [path for path, _ in listed])
    y = np.stack([read_mask(path, size) for _, path in listed])
    values = np.unique(y)
    notes = [note]
    if set(values.tolist()) <= {0, _IGNORED} and _IGNORED in values:
        y, values = (y == _IGNORED).astype(np.uint8), np.array([0, 1])
        notes.append("masks have the values 0 and 255 alone, so 255 is class 1")
    elif _IGNORED in values:
        values = values[values != _IGNORED]
        notes.append("pixels of value 255 do not count")
    classes = tuple(map(str, range(int(values.max()) + 1)))
    notes += [f"masks of {len(classes)} classes", *_skipped(folder)]
    rows, whole = np.arange(len(listed)), Part(x, y)
    train, test = rows[: len(files[0])], rows[len(files[0]) :]
    schema = Schema(content="image", picture=_picture(x, top), target=Target(kind="mask", classes=classes))
    return RawData(whole.take(train), whole.take(test) if len(test) else None, classes, schema=schema, notes=tuple(notes))


def parts_of(folder: Path) -> list[Path | None]:
    """Return the folders of the training and the test part; without ``train``, the folder itself and None."""
    if not (folder / "train").is_dir():
        return [folder, None]
    return [folder / "train", next((folder / name for name in _TESTS if (folder / name).is_dir()), None)]


def class_folders(root: Path, ends: set[str], what: str) -> list[str]:
    """Return the names of the sub-folders with files of some extensions, hidden ones excluded.

    Raises:
        DataFormatError: such a sub-folder has folders with such files inside, which would not be read.
    """
    found = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not hidden(p)):
        if any(p.suffix.lower() in ends and not hidden(p) for p in folder.iterdir() if p.is_file()):
            found.append(folder.name)
        for inner in (p for p in folder.iterdir() if p.is_dir() and not hidden(p)):
            if any(p.suffix.lower() in ends and not hidden(p) for p in inner.iterdir()):
                raise DataFormatError(
                    f"{inner}: contains {what}, but lies inside a class folder; move them to {folder}, or name {folder}"
                )
    return found


def _check(size: int) -> None:
    if not 1 <= size <= 1024:
        raise ConfigError(f"size={size} must be from 1 to 1024 pixels")


def _listed(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Return the pictures of a part with their classes."""
    there = [(code, root / name) for code, name in enumerate(classes) if (root / name).is_dir()]
    return [(path, code) for code, folder in there for path in picture_files(folder)]


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    images, masks = root / "images", root / "masks"
    if not images.is_dir() or not masks.is_dir():
        raise DataFormatError(f"{root}: has no folders images and masks; create them, with files of the same names")
    found, covers = ({path.stem: path for path in picture_files(place)} for place in (images, masks))
    for place, name in [
        (masks, min(found.keys() - covers.keys(), default="")),
        (images, min(covers.keys() - found.keys(), default="")),
    ]:
        if name:
            raise DataFormatError(f"{place}: {name!r} is missing; every image needs a mask of the same name, and the reverse")
    if not found:
        raise DataFormatError(f"{images}: contains no pictures")
    return [(found[name], covers[name]) for name in sorted(found)]


def _picture(x: Array, top: float) -> PictureForm:
    return PictureForm(height=x.shape[1], width=x.shape[2], channels=1 if x.ndim == 3 else x.shape[3], top=top)


def _skipped(folder: Path) -> list[str]:
    """Return a line on the files that are no pictures; hidden ones are not mentioned."""
    ends = Counter(
        path.suffix.lower() or "without extension"
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix.lower() not in ENDS
        and not any(hidden(Path(part)) for part in path.relative_to(folder).parts)
    )
    listed = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    return [f"skipped files that are no pictures: {listed}"] if listed else []
