"""Series: movements of a smartwatch by person and side, and life expectancy by country."""

from __future__ import annotations

import csv
import gzip
import io
import pickletools
from collections.abc import Mapping

import numpy as np

from paceline.core.errors import DataFormatError
from paceline.data.fetch import Package
from paceline.data.raw import Array, Part, RawData, hold_out_last
from paceline.data.sources.source import Source

__all__ = ["LIFE_EXPECTANCY", "WATCH_ACTIVITY", "recordings"]

_WATCH = "seglearn/data/watch_dataset.npy"
_GAPMINDER = "bokeh_sampledata/_data/gapminder.csv.gz"
_EXERCISES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
_SENSORS = 6
_RECORDINGS = 140
_FUTURE = 5
_HZ = 50


def recordings(content: bytes) -> tuple[list[Array], Array, Array, Array]:
    """Return recordings (each [T, 6], float64), exercises, persons and sides of the watch data.

    The file is a pickled dict of arrays. It is not unpickled: its instructions are listed, none is executed, and the arrays are
    made of the texts that hold their bytes.

    Raises:
        DataFormatError: the file has another form.
    """
    start = content.index(b"\n") + 1
    texts = [str(arg) for op, arg, _ in pickletools.genops(content[start:]) if op.name == "BINUNICODE"]
    try:
        long = [text for text in texts if len(text) > 8 * _SENSORS * _HZ]
        values = [np.frombuffer(text.encode("latin1"), dtype="<f8").reshape(_SENSORS, -1).T for text in long]
        found = []
        for name in ("y", "subject", "side"):
            text = next(text for text in texts[texts.index(name) + 1 :] if len(text) == 8 * _RECORDINGS)
            found.append(np.frombuffer(text.encode("latin1"), dtype="<f8" if name == "side" else "<i8").astype(np.int64))
    except (ValueError, StopIteration) as error:
        raise DataFormatError(f"{_WATCH} has another form than expected ({error})") from None
    if len(values) != _RECORDINGS or any(len(part) != _RECORDINGS for part in found):
        raise DataFormatError(f"{_WATCH} has {len(values)} recordings in place of {_RECORDINGS}")
    return values, found[0], found[1], found[2]


def _decode_watch(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    values, exercise, person, side = recordings(files[_WATCH])
    return {
        "values": np.concatenate(values).astype(np.float32),
        "offsets": np.cumsum([0, *map(len, values)]).astype(np.int64),
        "exercise": exercise,
        "person": person,
        "side": side,
    }


def _read_watch(arrays: Mapping[str, Array], options: Mapping[str, int]) -> RawData:
    """Cut windows of each recording; the last fifth of each recording is for tests, and no window crosses the boundary."""
    length, stride, values = options["length"], options["stride"], arrays["values"]
    keys = list(zip(arrays["person"].tolist(), arrays["side"].tolist(), strict=True))
    names = sorted(set(keys))
    rows: tuple[list[Array], list[Array]] = ([], [])
    about: tuple[list[Array], list[Array]] = ([], [])
    for number, (start, end) in enumerate(zip(arrays["offsets"], arrays["offsets"][1:], strict=False)):
        cut = start + (end - start) * 4 // 5
        for part, told, (a, b, step) in zip(rows, about, ((start, cut, stride), (cut, end, length)), strict=True):
            starts = np.arange(a, b - length + 1, step)
            part.append(starts)
            told.append(np.tile([arrays["exercise"][number], names.index(keys[number])], (len(starts), 1)))
    whole = values[np.concatenate([np.arange(a, a + (b - a) * 4 // 5) for a, b in _ranges(arrays["offsets"])])]
    mean, deviation = whole.mean(0), whole.std(0)
    made = []
    for part, told in zip(rows, about, strict=True):
        x = (values[np.concatenate(part)[:, None] + np.arange(length)] - mean) / deviation
        y, owner = np.concatenate(told).T.astype(np.int64)
        made.append(Part(np.ascontiguousarray(x.transpose(0, 2, 1)), y, owner.copy()))
    owners = tuple(f"person {person}, {'right' if side else 'left'}" for person, side in names)
    overlap = -(-length // stride) - 1
    return RawData(made[0], made[1], _EXERCISES, owners, overlap)


def _ranges(offsets: Array) -> list[tuple[int, int]]:
    return list(zip(offsets.tolist(), offsets[1:].tolist(), strict=False))


def _decode_life(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    """Decode the years with a figure, ordered by country and year."""
    rows = csv.DictReader(io.StringIO(gzip.decompress(files[_GAPMINDER]).decode("utf-8")))
    known = sorted(
        (row["country"], int(row["year"]), float(row["life_expectancy"]), float(row["fertility"]))
        for row in rows
        if row["life_expectancy"] and row["fertility"]
    )
    country, year, life, fertility = zip(*known, strict=True)
    return {
        "country": np.array(country, dtype=np.str_),
        "year": np.array(year, dtype=np.int64),
        "figures": np.array([life, fertility], dtype=np.float64).T,
    }


def _read_life(arrays: Mapping[str, Array], options: Mapping[str, int]) -> RawData:
    """Cut windows of consecutive years, relative to the last known year: a forecast of 0 is "as it is now".

    The last windows of each country are for tests; training windows that share years with them are omitted.
    """
    length = options["length"]
    x, y, owner = [], [], []
    owners: list[str] = []
    for country in np.unique(arrays["country"]):
        at = arrays["country"] == country
        years, figures = arrays["year"][at], arrays["figures"][at]
        places = range(len(years) - length - _FUTURE + 1)
        starts = [k for k in places if years[k + length + _FUTURE - 1] - years[k] == length + _FUTURE - 1]
        for k in starts:
            known, future = figures[k : k + length], figures[k + length : k + length + _FUTURE, 0]
            x.append((known - known[-1]).T)
            y.append(future - known[-1, 0])
            owner.append(len(owners))
        if starts:
            owners.append(str(country))
    inputs, targets, codes = np.stack(x), np.stack(y), np.array(owner)
    train, test = hold_out_last(codes, 0.2, length + _FUTURE - 1, "life-expectancy")
    inputs /= inputs[train].std((0, 2), keepdims=True)
    whole = Part(inputs.astype(np.float32), (targets / targets[train].std()).astype(np.float32), codes)
    return RawData(whole.take(train), whole.take(test), (), tuple(owners), length + _FUTURE - 1)


WATCH_ACTIVITY = Source(
    "watch-activity",
    "140 recordings of a smartwatch, 6 sensors at 50 Hz, 7 shoulder exercises; client = person and side (20)",
    "BSD-3-Clause (package)",
    11,
    lambda options: (
        Package(
            "wheel",
            "seglearn",
            "1.2.5",
            {_WATCH: "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"},
        ),
    ),
    _decode_watch,
    _read_watch,
    chosen={"length": 100, "stride": 50},
)

LIFE_EXPECTANCY = Source(
    "life-expectancy",
    "life expectancy and fertility of 180 countries from 1964 on: the next 5 years of the former; client = country",
    "CC-BY-4.0 (Gapminder); BSD-3-Clause (package)",
    13,
    lambda options: (
        Package(
            "wheel",
            "bokeh-sampledata",
            "2026.1",
            {_GAPMINDER: "c5b17f285b8cb223385ef8ce16a44a3d0355aefff95ea4744259ab6ff559e367"},
        ),
    ),
    _decode_life,
    _read_life,
    chosen={"length": 10},
)
