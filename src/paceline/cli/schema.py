"""`paceline schema`: what the columns or folders of files are taken for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from paceline.cli.run import Json
from paceline.cli.show import err, out, print_json, table
from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.parsing import pairs

if TYPE_CHECKING:
    from paceline.data.schema import Schema, SchemaColumn

__all__ = ["schema", "show_schema"]


def schema(
    files: Annotated[
        str, typer.Argument(metavar="FILE", help="kind:/path?option=value, a schema, or a run's folder", show_default=False)
    ],
    option: Annotated[
        list[str] | None,
        typer.Option("-o", "--option", metavar="NAME=VALUE", help="an option of the reader; repeatable", show_default="none"),
    ] = None,
    unit: Annotated[
        list[str] | None,
        typer.Option("--unit", metavar="COLUMN=UNIT", help="the unit of a column; repeatable", show_default="none"),
    ] = None,
    standardize: Annotated[
        str | None,
        typer.Option(
            "--standardize",
            help="origin of means and deviations: schema, federated or none",
            show_default="the file's, else schema",
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.json", help="file of the schema", show_default="not saved")
    ] = None,
    json: Json = False,
) -> None:
    """Show what the columns or folders of files are taken for, and save it as a schema for the sites of a federation."""
    from paceline.data.files import file_hint, is_file_task
    from paceline.data.schema import Schema
    from paceline.tasks.schemas import make_schema, standardized

    notes: tuple[str, ...] = ()
    place = Path(files)
    if place.suffix == ".json" or (place / "schema.json").is_file():
        made = Schema.read(place / "schema.json" if place.is_dir() else place)
        made = made if standardize is None else standardized(made, standardize)
    elif not is_file_task(files):
        hint = file_hint(files)
        raise ConfigError(
            f"{files!r} names no files; {hint or 'write them as kind:/path, or name a schema or the folder of a run'}"
        )
    else:
        made, notes = make_schema(files, standardize=standardize, **pairs(option))
    made = _with_units(made, pairs(unit))
    if save is not None:
        from paceline.store.files import atomic_write

        atomic_write(save, (made.to_json() + "\n").encode())
    if json:
        print_json({"schema": made.model_dump(mode="json", exclude_defaults=True), "notes": list(notes)})
        return
    show_schema(made, notes)
    if save is not None:
        err().print(f"schema: {save}", soft_wrap=True, markup=False)


def show_schema(made: Schema, notes: tuple[str, ...]) -> None:
    """Print a schema as a table, and what was found in the files.

    Args:
        made: the schema.
        notes: lines on the files.
    """
    console = out()
    if made.columns:
        shown = table("Columns", "column", "kind", "unit", "categories or scaling", "missing", right=())
        for column in made.columns:
            shown.add_row(*map(escape, (column.name, column.kind, column.unit or "–", _details(column), _absent(column))))
        console.print(shown)
    if made.picture is not None:
        console.print(f"pictures: {made.picture.form}", markup=False, soft_wrap=True)
    if made.text is not None:
        words = f": {_some(made.text.words)}" if made.text.words else ""
        console.print(f"texts: {made.text.length} codes of {made.text.symbols}{words}", markup=False, soft_wrap=True)
    target = made.target
    named = f" {target.name!r}" if target.name else ""
    what = f"{len(target.classes)} classes: {_some(target.classes)}" if target.classes else "a number"
    console.print(f"target{named}: {what}{' for each pixel' if target.kind == 'mask' else ''}", markup=False, soft_wrap=True)
    origin = {"schema": "this schema", "federated": "a sum over the clients before round 1", "none": "no scaling"}
    console.print(f"scaling: {origin[made.standardize]}", markup=False)
    for note in notes:
        console.print(f"- {note}", markup=False, soft_wrap=True)


def _details(column: SchemaColumn) -> str:
    if column.kind == "category":
        return _some(column.categories)
    return f"mean {column.mean:.6g}, deviation {column.deviation:.6g}"


def _absent(column: SchemaColumn) -> str:
    if not column.missing:
        return "none"
    return "an input of its own" if column.kind == "category" else f"counts as {column.fill:.6g}"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:12]) + (f", ... ({len(names)})" if len(names) > 12 else "")


def _with_units(made: Schema, units: dict[str, str]) -> Schema:
    known = [column.name for column in made.columns]
    for name in units:
        if name not in known and name != made.target.name:
            raise UnknownNameError("column", name, [*known, made.target.name])
    columns = tuple(c.model_copy(update={"unit": str(units[c.name])}) if c.name in units else c for c in made.columns)
    target = made.target.model_copy(update={"unit": str(units[made.target.name])}) if made.target.name in units else made.target
    return made.model_copy(update={"columns": columns, "target": target})
