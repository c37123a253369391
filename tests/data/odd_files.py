"""Odd files that users have, each as a function that makes it, with what becomes of it: a check, or what the refusal says."""

from __future__ import annotations

import gzip
import json
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROWS = 60


@dataclass(frozen=True)
class Odd:
    """An odd file.

    Args:
        title: as in the first column of the table of `docs/data.md`.
        make: writes the file into a folder, and returns the task's name.
        says: regular expression of the refusal; empty if the file is read.
        check: what a file that is read has to satisfy.
        warns: regular expression of a warning.
    """

    title: str
    make: Callable[[Path], str]
    says: str = ""
    check: Callable[[Any], bool] = lambda data: True
    warns: str = ""


def rows(odd: str | None = None, at: int = 7) -> list[list[str]]:
    """Return rows of two numbers and a class that depends on them, one cell replaced."""
    rng = random.Random(0)
    made = [[f"{a:.3f}", f"{b:.1f}", "pos" if a > b else "neg"] for a, b in ((rng.random(), rng.random()) for _ in range(ROWS))]
    if odd is not None:
        made[at][1] = odd
    return made


def text(cells: list[list[str]] | None = None, names: str = "a,b,y", sep: str = ",", end: str = "\n") -> str:
    return names.replace(",", sep) + end + "".join(sep.join(row) + end for row in cells or rows())


def csv(content: str | bytes, query: str = "", name: str = "t.csv", kind: str = "csv") -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"{kind}:{folder / name}{query}"

    return make


def column(
    values: Callable[[int], Any], name: str = "c", query: str = "", target: Callable[[int], str] | None = None
) -> Callable[[Path], str]:
    """A file with one column of values beside a number and the class."""
    cells = [[row[0], str(values(i)), target(i) if target else row[2]] for i, row in enumerate(rows())]
    return csv(text(cells, f"a,{name},y"), query)


def wide(count: int, classes: tuple[str, ...] = ("neg", "pos")) -> Callable[[Any], bool]:
    return lambda data: data.train.x.shape[1] == count and data.classes == classes and len(data.train) + len(data.test) == ROWS


def kinds(*expected: str) -> Callable[[Any], bool]:
    return lambda data: tuple(c.kind for c in data.schema.columns) == expected


def noted(word: str, also: Callable[[Any], bool] = lambda data: True) -> Callable[[Any], bool]:
    return lambda data: any(word in note for note in data.notes) and also(data)


def lonely(folder: Path) -> str:
    """Two class folders, of which one is empty."""
    name = pictures(lambda i: Image.new("L", (8, 8), i))(folder)
    for file in (folder / "light").iterdir():
        file.unlink()
    return name


def pictures(draw: Callable[[int], Any], query: str = "?size=8", name: str = "{}.png", **options: Any) -> Callable[[Path], str]:
    """Two classes of five pictures each."""

    def make(folder: Path) -> str:
        for label in ("dark", "light"):
            (folder / label).mkdir(exist_ok=True)
            for i in range(5):
                draw(i + 5 * (label == "light")).save(folder / label / name.format(i), **options)
        return f"imagefolder:{folder}{query}"

    return make


def level(value: int, mode: str = "RGB") -> Any:
    return Image.new(mode, (9, 9), value if mode in ("L", "P") else (value,) * len(mode))


def deep(i: int) -> Any:
    return Image.fromarray(np.full((9, 9), 300 + 5000 * i, dtype=np.uint16))


def then(make: Callable[[Path], str], more: Callable[[Path], Any]) -> Callable[[Path], str]:
    def both(folder: Path) -> str:
        name = make(folder)
        more(folder)
        return name

    return both


def palette(i: int) -> Any:
    picture = Image.new("P", (9, 9), 1)
    picture.putpalette([0, 0, 0, 250, 10 * i, 20] + [0] * 762)
    return picture


def turned(i: int) -> Any:
    picture = Image.new("L", (8, 8), 0)
    picture.paste(255, (0, 0, 8, 4))  # bright above
    return picture


EXIF = Image.Exif()
EXIF[0x0112] = 6  # turn right: what is above comes to the right


def animated(folder: Path) -> None:
    level(1).save(folder / "dark" / "z.gif", save_all=True, append_images=[level(200)])


def arrays(name: str = "t.npz", **values: Any) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        np.savez(folder / name, **values)
        return f"numpy:{folder / name}"

    return make


RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(ROWS, 3)), RNG.integers(0, 3, ROWS)


def idx(labels: Any) -> Callable[[Path], str]:
    def put(path: Path, array: Any) -> None:
        header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
        path.write_bytes(header + array.astype(np.uint8).tobytes())

    def make(folder: Path) -> str:
        put(folder / "train-images-idx3-ubyte", RNG.integers(0, 256, (len(labels), 5, 4)))
        put(folder / "train-labels-idx1-ubyte", np.array(labels))
        return f"idx:{folder}"

    return make


def jsonl(*lines: Any) -> Callable[[Path], str]:
    return csv("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "", "t.jsonl", "jsonl")


def objects() -> list[dict[str, Any]]:
    return [{"a": float(a), "code": f"0{i % 3}", "y": y} for i, (a, _, y) in enumerate(rows())]


def parquet(folder: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "age": pa.array([None if i == 3 else i % 50 for i in range(ROWS)]),
        "zip": pa.array([f"0{i % 4}" for i in range(ROWS)]),
    }
    pq.write_table(pa.table(columns | {"y": pa.array([row[2] for row in rows()])}), folder / "t.parquet")
    return f"parquet:{folder / 't.parquet'}"


def texts(folder: Path) -> str:
    for label in ("ham", "spam"):
        (folder / label).mkdir()
        for i in range(5):
            (folder / label / f"{i}.txt").write_text(f"{label} {i} grüße")
    return f"textfolder:{folder}?length=16"


def masks(values: Callable[[int], Any], mode: str = "L") -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        for part in ("images", "masks"):
            (folder / part).mkdir()
        for i in range(6):
            level(40 * i).save(folder / "images" / f"{i}.png")
            Image.fromarray(values(i).astype(np.uint8), mode).save(folder / "masks" / f"{i}.png")
        return f"maskfolder:{folder}?size=8"

    return make


def block(*levels: int) -> Callable[[int], Any]:
    return lambda i: np.array(levels)[(np.arange(64).reshape(8, 8) + i) % len(levels)]


BASE = text()

CASES = [
    Odd("empty cells in a column of numbers", csv(text(rows(""))), check=noted("empty 1x", wide(2))),
    Odd("`nan` in a column of numbers", csv(text(rows("nan"))), check=noted("'nan' 1x", wide(2))),
    *[
        Odd(
            f"`{odd}` in a column of numbers",
            csv(text(rows(odd if "," not in odd else f'"{odd}"'))),
            rf"line 9: column 'b' .*{hint}",
        )
        for odd, hint in [
            ("N/A", "na=N/A"),
            ("#N/A", "na=#N/A"),
            ("-", "na=- "),
            ("<0.1", "na=<0.1"),
            ("1,200", "'1,200'"),
            ("inf", "'inf'"),
            ("12 mg", "'12 mg'"),
        ]
    ],
    Odd("`N/A` in a column of numbers, with `na=N/A`", csv(text(rows("N/A")), "?na=N/A"), check=noted("'N/A' 1x", wide(2))),
    Odd("byte order mark", csv("\ufeff" + BASE), check=wide(2)),
    Odd("Windows line ends", csv(text(end="\r\n")), check=wide(2)),
    Odd("quoted text with a line break", csv(BASE.replace("neg", '"ne\ng"')), check=wide(2, ("ne\ng", "pos"))),
    Odd("UTF-16 with its mark", csv(BASE.encode("utf-16")), check=noted("utf-16-le", wide(2))),
    Odd("UTF-16 without its mark", csv(BASE.encode("utf-16-le")), "confirm it with encoding=utf-16-le"),
    Odd(
        "Latin-1",
        csv(BASE.replace("pos", "groß").encode("latin-1")),
        r"line \d+: byte 0xdf is not UTF-8; name the encoding .*latin-1",
    ),
    Odd(
        "Latin-1, with `encoding=latin-1`",
        csv(BASE.replace("pos", "groß").encode("latin-1"), "?encoding=latin-1"),
        check=wide(2, ("groß", "neg")),
    ),
    Odd("semicolons", csv(text(sep=";")), check=noted("semicolons", wide(2))),
    Odd("tabs in a .csv", csv(text(sep="\t")), check=noted("tabs", wide(2))),
    Odd("first line `sep=;` of Excel", csv("sep=;\n" + text(sep=";")), check=wide(2)),
    Odd("decimal commas and semicolons", csv(text(sep=";").replace(".", ",")), check=noted("decimal commas", wide(2))),
    Odd(
        "commas before three digits in every row",
        csv(text([[r[0], f"{i + 1},{200 + i}", r[2]] for i, r in enumerate(rows())], sep=";")),
        "either decimals or thousands",
    ),
    Odd("a comma at the end of each row", csv(BASE.replace("\n", ",\n")), check=noted("neither name nor values", wide(2))),
    Odd("rows of commas alone", csv(BASE + ",,\n,,\n"), check=noted("2 rows without any value", wide(2))),
    Odd("a row that is too short", csv(BASE + "1,2\n"), "line 62: 2 values for 3 columns"),
    Odd("a quote that is not closed", csv(BASE + '0.1,0.2,"pos\n'), r"line 62: .*check the quotes"),
    Odd("an empty file", csv(b""), "the file is empty"),
    Odd("a header alone", csv("a,b,y\n"), "at least one row"),
    Odd("no header", csv(BASE.partition("\n")[2].replace("pos", "1").replace("neg", "0")), "has only numbers .*header=false"),
    Odd("two columns of one name", csv(BASE.replace("a,b,y", "a,a,y")), "duplicate column name 'a'"),
    Odd(
        "the index of pandas as first column",
        csv(text([[str(i), *r] for i, r in enumerate(rows())], ",a,b,y")),
        check=noted("counts the rows", wide(2)),
    ),
    Odd(
        "an Excel workbook named .csv",
        then(csv(b""), lambda f: zipfile.ZipFile(f / "t.csv", "w").writestr("a.xml", "x")),
        "Excel workbook; export it as CSV",
    ),
    Odd("gzip named .csv", csv(gzip.compress(BASE.encode())), "compressed with gzip"),
    Odd("ISO dates", column(lambda i: f"2024-01-{i % 28 + 1:02}"), check=kinds("number", "date")),
    Odd("dates with the day first", column(lambda i: f"{i % 28 + 1}/2/2024"), check=noted("day first", kinds("number", "date"))),
    Odd("dates whose order is open", column(lambda i: f"{i % 12 + 1}/2/2024"), "line 2: .*dates=dmy or dates=mdy"),
    Odd(
        "a day that does not exist",
        column(lambda i: f"2024-02-{28 + i % 3:02}"),
        "line 4: column 'c' has dates, but here '2024-02-30'",
    ),
    Odd("codes with leading zeros", column(lambda i: f"0{i % 9}123"), "line 2: .*leading zero .*categories=c"),
    Odd(
        "numbers that count the rows",
        column(lambda i: i + 1000, "patient"),
        check=wide(2),
        warns="probably an identifier; drop=patient",
    ),
    Odd(
        "a different text in each row",
        csv(text([[f"{i}", f"name {chr(97 + i % 26)}{chr(97 + i // 26)}", "ab"[i % 2]] for i in range(130)])),
        "130 different values, more than 100; leave it out with drop=b",
    ),
    Odd(
        "a different text in each of 60 rows",
        column(lambda i: f"name {chr(97 + i % 26)}{chr(97 + i // 26)}"),
        "'c' has a different text in each of 60 rows, so these are no categories; leave it out with drop=c",
    ),
    Odd(
        "a note of 150,000 characters",
        column(lambda i: "word " * 30_000 if i == 5 else "none"),
        "line 7: text column 'c' has a text of 149999 characters, which is no category; leave it out with drop=c",
    ),
    Odd(
        "a note of 150,000 characters, with `drop=COLUMN`",
        column(lambda i: "word " * 30_000 if i == 5 else "none", query="?drop=c"),
        check=lambda d: kinds("number")(d),
    ),
    Odd("numbers that all have the same unit", column(lambda i: f"{i % 7} mg"), "line 2: .*'0 mg': these are numbers with 'mg'"),
    Odd(
        "percentages, some unknown",
        column(lambda i: "unknown" if i % 3 == 0 else f"{i % 7}%"),
        "line 3: .*'1%': these are numbers with '%'",
    ),
    Odd(
        "numbers with a unit, with `categories=COLUMN`",
        column(lambda i: f"{i % 7} mg", query="?categories=c"),
        check=kinds("number", "category"),
    ),
    Odd("two doses, `5 mg` and `10 mg`", column(lambda i: ("5 mg", "10 mg")[i % 2]), check=kinds("number", "category")),
    Odd(
        "names, some of them numbers with a unit",
        column(lambda i: f"{i % 4} mg" if i % 3 == 0 else f"grade {'abc'[i % 3]}"),
        check=kinds("number", "category"),
    ),
    Odd("times of day", column(lambda i: f"{i % 24}:30"), "these are times of day"),
    Odd(
        "numbers with a typographic minus", column(lambda i: f"\N{MINUS SIGN}{i}"), check=lambda d: d.schema.columns[-1].mean < -20
    ),
    Odd(
        "-999 far from the other numbers",
        column(lambda i: -999 if i % 9 == 0 else 20 + i % 15),
        check=noted("na=-999 counts it as missing", kinds("number", "number")),
        warns="'c' has -999 in 7 rows, far from its other values \\(20 to 34\\); na=-999",
    ),
    Odd("99 among numbers up to 100", column(lambda i: 99 if i % 9 == 0 else i), check=kinds("number", "number")),
    Odd("-999 once", column(lambda i: -999 if i == 9 else i % 15), check=kinds("number", "number")),
    Odd(
        "a class of one row",
        column(lambda i: i % 9, target=lambda i: "rare" if i == 9 else "ab"[i % 2]),
        check=noted("classes with too few rows for a test row: rare", lambda d: len(d.classes) == 3),
    ),
    Odd("a category in two spellings", column(lambda i: ("male", "Male", "female")[i % 3]), "differ only in case or spaces"),
    Odd("a column without values", column(lambda i: ""), "column 'c' has no values; leave it out with drop=c"),
    Odd(
        "a target of many numbers",
        column(lambda i: i % 3, target=lambda i: f"{i * 0.37:.2f}"),
        check=lambda d: d.schema.target.kind == "number" and d.train.y.dtype == np.float32,
    ),
    Odd(
        "a target of 40 whole numbers",
        column(lambda i: i % 3, target=lambda i: str(i % 40)),
        check=lambda d: d.schema.target.kind == "number",
    ),
    Odd(
        "a target of 40 whole numbers, with `target_kind=class`",
        column(lambda i: i % 3, query="?target_kind=class", target=lambda i: str(i % 40)),
        "too few to hold out 20% of each class",
    ),
    Odd(
        "classes that start at 1",
        column(lambda i: i % 5, target=lambda i: str(i % 3 + 1)),
        check=lambda d: d.classes == ("1", "2", "3") and set(d.train.y) == {0, 1, 2},
    ),
    Odd("classes -1 and 1", column(lambda i: i % 5, target=lambda i: str(i % 2 * 2 - 1)), check=lambda d: d.classes == ("-1", "1")),
    Odd("a row without target", csv(BASE + "0.5,0.5,\n"), "line 62: the target column 'y' has no value"),
    Odd("a class folder without pictures, and one with", lonely, "every sample is of the class 'dark'; at least two are"),
    Odd("NumPy: one class alone", arrays(x=X, y=0 * Y), "the target 'y' is '0' in every row"),
    Odd("one class alone", column(lambda i: i, target=lambda i: "pos"), "'pos' in every row"),
    Odd("one line of JSON per row", jsonl(*objects()), check=lambda d: d.train.x.shape[1] == 4 and kinds("number", "category")(d)),
    Odd("one JSON document", jsonl("[", *objects()), "line 1: not a JSON object .*one object per line"),
    Odd("nested JSON", jsonl(*objects(), {"a": [1], "code": "1", "y": "pos"}), "line 61: column 'a' has a list"),
    Odd(
        "numbers and texts in one JSON column",
        jsonl(*objects(), {"a": "high", "code": "1", "y": "pos"}),
        "line 61: column 'a' has a text here and a number before",
    ),
    Odd(
        "Parquet with missing numbers and codes as texts",
        parquet,
        check=lambda d: kinds("number", "category")(d) and d.schema.columns[0].missing,
    ),
    Odd("NumPy: 50 targets for 60 inputs", arrays(x=X, y=Y[:50]), "50 targets in 'y' for 60 inputs"),
    Odd("NumPy: pickled objects", arrays(x=X, y=np.array([{}] * ROWS)), "Python objects, which are not unpickled"),
    Odd("NumPy: one-hot targets", arrays(x=X, y=np.eye(3)[Y]), "one class number per sample"),
    Odd("NumPy: NaN in a table", arrays(x=np.where(X > 2, np.nan, X), y=Y), check=lambda d: np.isfinite(d.train.x).all()),
    Odd(
        "NumPy: pictures with channels first",
        arrays(x=RNG.integers(0, 255, (ROWS, 3, 6, 5), dtype=np.uint8), y=Y),
        check=noted("channels are the second", lambda d: d.train.x.shape[1:] == (6, 5, 3)),
    ),
    Odd("idx: labels from 1", idx([i % 3 + 1 for i in range(30)]), check=lambda d: d.classes == ("1", "2", "3")),
    Odd("16-bit pictures", pictures(deep), check=lambda d: d.train.x.dtype == np.uint16 and d.train.x.max() > 40000),
    Odd(
        "pictures of float values",
        pictures(lambda i: Image.fromarray(np.full((9, 9), i / 10, np.float32)), name="{}.tif"),
        check=lambda d: d.train.x.dtype == np.float32,
    ),
    Odd("pictures with a palette", pictures(palette), check=lambda d: d.train.x[..., 0].min() == 250),
    Odd(
        "transparent pictures",
        pictures(lambda i: Image.new("RGBA", (9, 9), (9, 9, 9, 20 * i))),
        check=lambda d: d.train.x.shape[3] == 4 and len(np.unique(d.train.x[..., 3])) > 3,
    ),
    Odd(
        "pictures that a camera has turned",
        pictures(turned, name="{}.jpg", exif=EXIF),
        check=lambda d: d.train.x[0, :, -2:].min() > 200 > 60 > d.train.x[0, :, :2].max(),
    ),
    Odd(
        "hidden files and folders",
        then(
            pictures(lambda i: level(20 * i)),
            lambda f: [
                (f / ".cache").mkdir(),
                (f / "dark" / "._0.png").write_bytes(b"x"),
                level(1).save(f / ".cache" / "0.png"),
                (f / "__MACOSX").mkdir(),
                level(1).save(f / "__MACOSX" / "0.png"),
            ],
        ),
        check=lambda d: d.classes == ("dark", "light") and len(d.train) + len(d.test) == 10,
    ),
    Odd(
        "a damaged picture",
        then(pictures(lambda i: level(20 * i)), lambda f: (f / "dark" / "9.png").write_bytes(b"")),
        r"9\.png: not a readable picture",
    ),
    Odd("an animation among the pictures", then(pictures(lambda i: level(20 * i)), animated), "z.gif: has 2 frames"),
    Odd(
        "pictures in folders of class folders",
        then(
            pictures(lambda i: level(20 * i)),
            lambda f: [(f / "dark" / "2021").mkdir(), level(1).save(f / "dark" / "2021" / "0.png")],
        ),
        "lies inside a class folder",
    ),
    Odd(
        "8-bit and 16-bit pictures together",
        then(pictures(deep), lambda f: level(9, "L").save(f / "dark" / "9.png")),
        "save all pictures in one form",
    ),
    Odd("masks of 0 and 255", masks(block(0, 255)), check=noted("255 is class 1", lambda d: d.classes == ("0", "1"))),
    Odd(
        "masks with ignored pixels",
        masks(block(0, 1, 2, 255)),
        check=noted("do not count", lambda d: d.classes == ("0", "1", "2") and 255 in d.train.y),
    ),
    Odd("masks of colours", masks(lambda i: np.zeros((8, 8, 3)), "RGB"), "a mask of mode RGB"),
    Odd("an image without mask", then(masks(block(0, 1)), lambda f: (f / "masks" / "3.png").unlink()), "'3' is missing"),
    Odd("a folder of texts per class", texts, check=lambda d: d.classes == ("ham", "spam") and d.train.x.shape[1] == 16),
    Odd("an empty text", then(texts, lambda f: (f / "ham" / "9.txt").write_text("")), "9.txt: the file is empty"),
]
