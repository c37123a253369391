"""The idx format of MNIST and its relatives: a header with dtype and shape, then the values."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from paceline.core.errors import DataFormatError
from paceline.data.raw import Array, Part, RawData

__all__ = ["parse_idx", "read_idx"]

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def parse_idx(content: bytes, name: str = "idx file") -> Array:
    """Return the array in the bytes of an idx file, optionally gzip-compressed.

    Args:
        content: bytes of the file.
        name: name of the file, for messages.

    Raises:
        DataFormatError: header and length are inconsistent; the message names the file.
    """
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataFormatError(f"{name}: damaged gzip data ({error}); download the file again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise DataFormatError(f"{name}: not an idx file; it starts with {content[:4].hex(' ') or 'nothing'}")
    kind, dims = np.dtype(_TYPES[content[2]]), content[3]
    start = 4 + 4 * dims
    if dims == 0 or len(content) < start:
        raise DataFormatError(f"{name}: truncated: the header announces {dims} dimensions, but the file has {len(content)} bytes")
    shape = tuple(int(n) for n in np.frombuffer(content, dtype=">u4", count=dims, offset=4))
    wanted = math.prod(shape) * kind.itemsize
    if len(content) - start != wanted:
        raise DataFormatError(f"{name}: shape {shape} needs {wanted} bytes of values, found {len(content) - start}")
    return np.frombuffer(content, dtype=kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def read_idx(folder: Path) -> RawData:
    """Read a folder with the four files ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, each with or without ``.gz``.

    The two test files may both be absent. Labels need not start at 0.

    Raises:
        DataFormatError: a file is missing or malformed.
    """
    train = _part(folder, "train")
    if train is None:
        raise DataFormatError(f"{folder}: train-images-idx3-ubyte[.gz] is missing; name the folder that contains it")
    test = _part(folder, "t10k")
    if test is not None and test.x.shape[1:] != train.x.shape[1:]:
        raise DataFormatError(f"{folder}: test images have shape {test.x.shape[1:]}, but training images {train.x.shape[1:]}")
    labels = np.concatenate([part.y for part in (train, test) if part is not None])
    if labels.min() == 0:
        return RawData(train, test, tuple(map(str, range(1 + int(labels.max())))))
    distinct = np.unique(labels)  # such as 1 to 26 for letters
    coded = [None if part is None else Part(part.x, np.searchsorted(distinct, part.y)) for part in (train, test)]
    assert coded[0] is not None
    note = f"labels are {distinct[0]} to {distinct[-1]}: {len(distinct)} classes"
    return RawData(coded[0], coded[1], tuple(map(str, distinct.tolist())), notes=(note,))


def _part(folder: Path, kind: str) -> Part | None:
    found: list[Path | None] = []
    for name in (f"{kind}-images-idx3-ubyte", f"{kind}-labels-idx1-ubyte"):
        plain = [folder / (name + end) for end in (".gz", "") if (folder / (name + end)).is_file()]
        found.append(plain[0] if plain else None)
    images, labels = found
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        raise DataFormatError(f"{folder}: {images or labels} exists, but the other {kind} file is missing")
    x, y = parse_idx(images.read_bytes(), str(images)), parse_idx(labels.read_bytes(), str(labels))
    if x.ndim != 3 or x.dtype != np.uint8:
        raise DataFormatError(f"{images}: images must be bytes of shape [N, H, W], not {x.dtype} of {x.shape}")
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer) or not len(y) or y.min() < 0:
        raise DataFormatError(f"{labels}: expected {len(x)} non-negative labels, one per image")
    return Part(x, y.astype(np.int64))
