"""`mri-tissue`: slices of a brain's MRI with the tissue of each pixel, as if from four scanners.

The picture is the ICBM 152 template, an average of 152 people, so the anatomy is real and the sites are not: each scanner has an
own curve of grey levels, an own gradient over the picture and own noise, drawn once with a fixed seed.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping

import numpy as np

from paceline.core.errors import DataFormatError
from paceline.core.random import numpy_rng
from paceline.data.fetch import Package
from paceline.data.raw import Array, Part, RawData
from paceline.data.schema import Picture, Schema, Target
from paceline.data.sources.source import Source

__all__ = ["MRI_TISSUE", "nifti"]

_FILE = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_TISSUES = ("background", "other tissue", "grey matter", "white matter")
_SCANNERS = ("scanner A", "scanner B", "scanner C", "scanner D")
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2"}
_SIDE = 64


def nifti(content: bytes, where: str) -> Array:
    """Return the values of a volume in the format NIfTI-1, gzip-compressed or not, shape [X, Y, Z].

    Raises:
        DataFormatError: the file is no single NIfTI-1 volume.
    """
    data = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    if len(data) < 352 or data[344:348] != b"n+1\0":
        raise DataFormatError(f"{where}: not a NIfTI-1 file")
    order = "<" if struct.unpack("<i", data[:4])[0] == 348 else ">"
    count, *sides = struct.unpack(f"{order}8h", data[40:56])
    code, start = struct.unpack(f"{order}h", data[70:72])[0], int(struct.unpack(f"{order}f", data[108:112])[0])
    slope, shift = struct.unpack(f"{order}2f", data[112:120])
    shape = [side for side in sides[:count] if side > 1]
    if code not in _TYPES or len(shape) != 3:
        raise DataFormatError(f"{where}: data type {code} and sides {sides[:count]}; expected one volume of numbers")
    values = np.frombuffer(data, f"{order}{_TYPES[code]}", int(np.prod(shape)), start).reshape(shape, order="F").astype(np.float32)
    return values * slope + shift if slope else values


def _smaller(planes: Array, side: int) -> Array:
    """Return planes [N, H, W] in the middle of a square, averaged to `side` pixels."""
    count, height, width = planes.shape
    step = -(-max(height, width) // side)
    whole = np.zeros((count, side * step, side * step), dtype=np.float32)
    top, left = (side * step - height) // 2, (side * step - width) // 2
    whole[:, top : top + height, left : left + width] = planes
    return np.asarray(whole.reshape(count, side, step, side, step).mean((2, 4)))


def _decode(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    volumes = {name: nifti(files[_FILE.format(name)], _FILE.format(name)) for name in ("t1", "gm", "wm")}
    scaled = {name: values / values.max() for name, values in volumes.items()}
    grey, mask = [], []
    for axis in range(3):  # sagittal, coronal, axial
        planes = {name: _smaller(np.moveaxis(values, axis, 0), _SIDE) for name, values in scaled.items()}
        useful = np.flatnonzero((planes["gm"] > 0.5).mean((1, 2)) > 0.03)
        t1, gm, wm = (planes[name][useful] for name in ("t1", "gm", "wm"))
        grey.append(t1)
        mask.append(np.where(wm > np.maximum(gm, 0.4), 3, np.where(gm > 0.4, 2, np.where(t1 > 0.12, 1, 0))).astype(np.uint8))
    return {
        "t1": np.concatenate(grey).astype(np.float16),
        "tissue": np.concatenate(mask),
        "plane": np.repeat(np.arange(3), [len(part) for part in grey]),
    }


def _read(arrays: Mapping[str, Array], options: Mapping[str, int]) -> RawData:
    """Give blocks of neighbouring slices to scanners in turn; every fifth block is for tests, without its first slice's neighbour."""
    t1, tissue, rows = arrays["t1"].astype(np.float32), arrays["tissue"], np.arange(len(arrays["t1"]))
    block = np.concatenate([np.arange(count) // 6 for count in np.bincount(arrays["plane"])]) + 100 * arrays["plane"]
    order = np.unique(block, return_inverse=True)[1]
    owner, test = order % len(_SCANNERS), order % 5 == 2
    x = np.stack([_scanned(t1[row], int(owner[row]), int(row)) for row in rows])
    whole = Part(x, tissue, owner.astype(np.int64))
    picture = Picture(height=_SIDE, width=_SIDE, channels=1, top=1.0)
    schema = Schema(content="image", picture=picture, target=Target(kind="mask", classes=_TISSUES))
    return RawData(whole.take(rows[~test]), whole.take(rows[test]), _TISSUES, _SCANNERS, schema=schema)


def _scanned(plane: Array, scanner: int, row: int) -> Array:
    """Return a slice as a scanner shows it, float32 from 0 to 1."""
    own, noise = numpy_rng(0, "scanner", scanner), numpy_rng(0, "noise", row)
    gamma, slope, angle, level = own.uniform(0.6, 1.6), own.uniform(0.0, 0.5), own.uniform(0, 2 * np.pi), own.uniform(0.01, 0.05)
    y, x = np.mgrid[-1 : 1 : _SIDE * 1j, -1 : 1 : _SIDE * 1j]
    field = 1 + slope * (np.cos(angle) * x + np.sin(angle) * y)
    shown = plane.astype(np.float64) ** gamma * field + level * noise.standard_normal(plane.shape)
    return np.asarray(np.clip(shown, 0, 1), dtype=np.float32)


MRI_TISSUE = Source(
    "mri-tissue",
    "MRI slices of the ICBM 152 template, 64 x 64, with grey matter, white matter and other tissue; client = simulated scanner (4)",
    "ICBM 152 terms (free use with notice); BSD-3-Clause (package)",
    12,
    lambda options: (
        Package(
            "wheel",
            "nilearn",
            "0.14.1",
            {
                _FILE.format("t1"): "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
                _FILE.format("gm"): "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed",
                _FILE.format("wm"): "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db",
            },
        ),
    ),
    _decode,
    _read,
)
