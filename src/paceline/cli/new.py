"""`paceline new`: a project with a task, a model and a method of one's own, whose commands work at once."""

from __future__ import annotations

import importlib.util
import keyword
import random
import re
import shlex
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from paceline.cli.show import out
from paceline.core.errors import ConfigError, StoreError

__all__ = ["new"]

_END = ".tmpl"
_RENAMED = {"gitignore": ".gitignore"}


def new(
    name: Annotated[str, typer.Argument(help="name of the project and its folder", show_default=False)],
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="folder of the project's folder")] = Path(),
) -> None:
    """Write a project that runs at once: a task, a model, a method, run.toml, a test, and the configuration of a site."""
    package = re.sub(r"[-.\s]+", "_", name.strip()).lower()
    if not package.isidentifier() or keyword.iskeyword(package) or not package.isascii():
        raise ConfigError(
            f"{name!r} is no name of a project; begin with a letter, and use letters, digits and dashes, such as my-project"
        )
    place = folder / name.strip()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise StoreError(f"{place} exists; choose another name, or remove it")
    if package in sys.stdlib_module_names or importlib.util.find_spec(package) is not None:
        raise ConfigError(f"there is a module {package!r} already, which the project's would hide; choose another name")
    words = {"name": name.strip(), "package": package, "Class": "".join(part.capitalize() for part in package.split("_"))}
    try:
        _write(files("paceline.cli").joinpath("project"), place, words)
        for file, rows, seed in (("sample.csv", 400, 0), ("site.csv", 90, 1)):
            (place / "data").mkdir(exist_ok=True)
            (place / "data" / file).write_text(_people(rows, seed, file == "site.csv"), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{place} cannot be written: {error.strerror or error}") from error
    console = out()
    console.print(f"{place}: a task, a model, a method and a run; README.md says more", markup=False, soft_wrap=True)
    console.print(f"next: cd {shlex.quote(str(place))} && paceline run --config run.toml", markup=False, soft_wrap=True)


def _write(source: Traversable, place: Path, words: dict[str, str]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for item in source.iterdir():
        own = item.name.removesuffix(_END).replace("package", words["package"])
        if item.is_dir():
            _write(item, place / own, words)
        elif item.name.endswith(_END):
            text = Template(item.read_text(encoding="utf-8")).substitute(words)
            (place / _RENAMED.get(own, own)).write_text(text, encoding="utf-8")


def _people(rows: int, seed: int, site: bool) -> str:
    """Return a small table as CSV: age, dose and sex tell the outcome. A site has other names, and columns in another order."""
    draw = random.Random(seed)
    lines = ["sex,result,age,dose" if site else "age,dose,sex,outcome"]
    for _ in range(rows):
        age, dose, sex = draw.randint(20, 90), draw.gauss(5.0, 2.0), draw.choice("fm")
        ill = age + (8 if sex == "m" else 0) - 2 * dose + draw.gauss(0, 4) > 48
        shown = "" if draw.random() < 0.05 else f"{dose:.1f}"
        lines.append(
            f"{sex},{'positive' if ill else 'negative'},{age},{shown}"
            if site
            else f"{age},{shown},{sex},{'ill' if ill else 'well'}"
        )
    return "\n".join(lines) + "\n"
