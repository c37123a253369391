"""`paceline methods`, `paceline tasks` and `paceline metrics`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from paceline import registry
from paceline.cli.fields import completed
from paceline.cli.run import Json
from paceline.cli.show import out, print_json, show_error, table
from paceline.cli.spelling import check_method
from paceline.core.errors import PacelineError
from paceline.core.fields import field_docs, hints_of, plain_type, range_of

if TYPE_CHECKING:
    from paceline.core.method import Method

__all__ = ["card", "methods", "metric_rows", "metrics", "sum_only", "task_rows", "tasks"]

WIDE_LIST = 120
"""Least width, in columns, at which the list of methods has all of its columns."""


def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="show one method with all its fields", show_default="all methods", autocompletion=completed("method")),
    ] = None,
    json: Json = False,
) -> None:
    """List the methods, what the server sees of each, and what a client stores; or show one in full."""
    if name is not None:
        check_method(name)
        shown = card(registry.load("method", name), name)
        print_json(shown) if json else _print_card(shown)
        return
    cards = sorted(_cards(), key=lambda c: (c["family"], c["name"]))
    if json:
        print_json(cards)
        return
    out().print(_listed(cards, wide=out().width >= WIDE_LIST))
    out().print(
        "secure: the server needs only sums, so the method runs under --aggregation secure; where allowed: only on clients whose"
    )
    out().print("policy sets secure_aggregation.named_clients, because its messages contain an entry for each client")
    out().print(
        escape(
            "[a, b]: read from the source: keys of a client's memory between rounds, and functions whose individual replies are seen"
        )
    )
    out().print("stacks: simulations may train many clients in one batched computation")


def _listed(cards: Sequence[Mapping[str, Any]], wide: bool) -> Table:
    """Return the table of all methods; in a narrow one papers and what clients store are left out, and families are headings."""
    columns = ("family", "paper", "server_sees", "client_state") if wide else ("server_sees",)
    heads = {"server_sees": "the server sees", "client_state": "client state"}
    listed = table("Methods", "name", *(heads.get(c, c) for c in columns), "secure", "stacks")
    family = ""
    for entry in cards:
        if not wide and entry["family"] != family:
            family = entry["family"]
            listed.add_section()
            listed.add_row(f"[bold]{escape(family)}[/]")
        texts = [entry["name"], *(entry[c] for c in columns)]
        listed.add_row(*map(escape, texts), _secure(entry), "yes" if entry["vectorizable"] else "no")
    if not wide:
        listed.caption, listed.caption_justify = "paceline methods NAME shows the paper and what a client stores", "left"
    return listed


def _cards() -> Iterator[dict[str, Any]]:
    """Yield the cards of all methods; write what cannot be imported to stderr."""
    for name in registry.names("method"):
        try:
            yield card(registry.load("method", name), name)
        except PacelineError as error:
            show_error(error, as_json=False)


def tasks(json: Json = False) -> None:
    """List the tasks and whether their data are available."""
    found = task_rows()
    if json:
        print_json(found)
        return
    listed = table("Tasks", "name", "data", "download", "about")
    for entry in found:
        size = f"{entry['megabytes']:g} MB" if entry["megabytes"] else "–"
        listed.add_row(escape(entry["name"]), "ready" if entry["ready"] else "not fetched", size, escape(entry["about"]))
    out().print(listed)
    out().print("fetch data with: paceline data fetch NAME; local files: kind:/path (see paceline data --help)")


def task_rows() -> list[dict[str, Any]]:
    """Return name, readiness, size of the (default) data's download in megabytes, and description of each task."""
    from paceline.tasks import task_info, task_source

    found = []
    for name in registry.names("task"):
        source = task_source(name)
        found.append(
            {
                "name": name,
                "ready": source is None or source.ready(),
                "megabytes": 0 if source is None else source.megabytes,
                "about": source.about if source is not None and source.name == name else task_info(name),
            }
        )
    return found


def metrics(json: Json = False) -> None:
    """List the metrics, which of their values are better, and their options."""
    found = metric_rows()
    if json:
        print_json(found)
        return
    listed = table("Metrics, set with --metric NAME:OPTION=VALUE", "name", "better", "options", "about")
    for entry in found:
        options = "; ".join(f"{o['name']}={'required' if o['default'] == 'required' else o['default']}" for o in entry["options"])
        listed.add_row(*map(escape, (entry["name"], "higher" if entry["higher_is_better"] else "lower", options, entry["about"])))
    out().print(listed)
    out().print(
        "the first metric of a run is primary; your own: package.module:Name, see docs/contributing/metric.md", soft_wrap=True
    )


def metric_rows() -> list[dict[str, Any]]:
    """Return name, direction, range, description and options of each metric; write what cannot be imported to stderr."""
    found = []
    for name in registry.names("metric"):
        try:
            cls = registry.load("metric", name)
        except PacelineError as error:
            show_error(error, as_json=False)
            continue
        docs, hints = field_docs(cls), hints_of(cls)
        fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
        found.append(
            {
                "name": name,
                "higher_is_better": cls.higher_is_better,
                "range": [limit if math.isfinite(limit) else None for limit in cls.limits],
                "about": inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " "),
                "options": [
                    {
                        "name": f.name,
                        "type": plain_type(hints.get(f.name, f.type)),
                        "default": _default(f),
                        "doc": docs.get(f.name, ""),
                    }
                    for f in fields
                ],
            }
        )
    return found


def sum_only(cls: type[Method]) -> bool:
    """Return whether the server needs only sums, so that the method runs under secure aggregation."""
    functions = (getattr(f, "__client__", None) for _, f in inspect.getmembers(cls, inspect.isfunction))
    return not any(declared is not None and declared.each for declared in functions)


def card(cls: type[Method], name: str) -> dict[str, Any]:
    """Return everything that `paceline methods NAME` shows of a method under its name."""
    from paceline.cli.memory_keys import PROVIDED, memory_keys, seen, stored

    docs, hints = field_docs(cls), hints_of(cls)
    return {
        "name": name,
        "family": cls.family,
        "paper": cls.paper,
        "server_sees": seen(cls),
        "client_state": stored(cls),
        "memory": {key: PROVIDED.get(key, "") for key in memory_keys(cls)},
        "secure": sum_only(cls),
        "names_clients": cls().names_each_client(),
        "vectorizable": cls.vectorizable,
        "headline": cls.headline,
        "differs": cls.differs,
        "effects": effects(name),
        "about": inspect.cleandoc(cls.__doc__ or "").split("\n\nArgs:")[0],
        "algorithm": inspect.cleandoc(sys.modules[cls.__module__].__doc__ or ""),
        "fields": [
            {
                "name": f.name,
                "type": plain_type(hints.get(f.name, f.type)),
                "range": range_of(hints.get(f.name, f.type)),
                "default": _default(f),
                "doc": docs.get(f.name, ""),
            }
            for f in dataclasses.fields(cls)
        ],
    }


def effects(name: str) -> list[dict[str, Any]]:
    """Return the measured effects of a method from the table of effects; empty if the table is not available."""
    return [entry for entry in _measured() if entry["of_method"] == name]


@functools.cache
def _measured() -> tuple[dict[str, Any], ...]:
    """Return all entries of the table of effects."""
    from importlib.resources import files

    place = files("paceline.methods") / "effects.json"
    return tuple(json.loads(place.read_text()).values()) if place.is_file() else ()


def _default(spec: dataclasses.Field[Any]) -> Any:
    if spec.default is not dataclasses.MISSING:
        value = spec.default
    elif spec.default_factory is not dataclasses.MISSING:
        value = spec.default_factory()
    else:
        return "required"
    return value if isinstance(value, bool | int | float | str | list | dict | None) else repr(value)


_WHY = {
    "no": "no: it needs individual replies",
    "where allowed": "where a client's policy sets secure_aggregation.named_clients: its messages contain a line for each client",
}


def _secure(shown: Mapping[str, Any]) -> str:
    return "no" if not shown["secure"] else "where allowed" if shown["names_clients"] else "yes"


def _interval(effect: Mapping[str, Any]) -> str:
    """Return an effect and its 95 % interval; the method is better above 0, or above 1 if effects are ratios."""
    values = [effect["effect"], effect["low"], effect["high"]]
    if not all(map(math.isfinite, values)):
        return "no figure"
    mean, low, high = [f"{math.exp(v):.3g}x" if effect["ratio"] else f"{v:+.3g}" for v in values]
    return f"{mean}{' better' if effect['ratio'] else ''} [{low}, {high}]"


def _failed(effect: Mapping[str, Any]) -> bool:
    return bool(effect["verdict"] == "does not hold")


def _print_card(shown: dict[str, Any]) -> None:
    console = out()
    effects = sorted(shown["effects"], key=lambda effect: not _failed(effect))
    warnings = [f"does not hold    {e['claim']} ({e['figure']}, against {e['versus']})" for e in effects if _failed(e)]
    warnings += [f"differs          {shown['differs']}"] if shown["differs"] else []
    head = [*warnings, *([""] if warnings else []), shown["algorithm"] or shown["about"], ""]
    head += [
        f"paper            {shown['paper'] or '–'}",
        f"family           {shown['family']}",
        f"the server sees  {shown['server_sees']}",
        f"client state     {shown['client_state']}",
        *(f"                 {key}: {text}" for key, text in shown["memory"].items() if text),
        f"headline         {shown['headline'] or '–'}",
        f"stacks           {'yes' if shown['vectorizable'] else 'no: clients train one at a time'}",
        f"secure           {_WHY.get(_secure(shown), 'yes')}",
    ]
    console.print(Panel(Text("\n".join(head)), title=shown["name"], title_align="left", expand=False))
    for effect in effects:
        text = f"measured here: {effect['claim']}; {effect['figure']}: {_interval(effect)} against {effect['versus']}"
        verdict = f"{effect['verdict']} ({len(effect['seeds'])} seeds, {effect['date']})"
        console.print(escape(f"{text}: {verdict}"), soft_wrap=True)
    fields = table("Fields, set with -o NAME=VALUE", "name", "values", "default", "meaning")
    for entry in shown["fields"]:
        default = "–" if entry["default"] is None else str(entry["default"])
        values = ", ".join(filter(None, (entry["type"], entry["range"])))
        fields.add_row(*map(escape, (entry["name"], values, default, entry["doc"])))
    console.print(fields)
