"""`paceline doctor`: check the environment for everything that a run needs."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from paceline.cli.listing import task_rows
from paceline.cli.machine import CHECKS as MACHINE
from paceline.cli.machine import Finding, writable
from paceline.cli.run import Json
from paceline.cli.show import out, print_json, table
from paceline.core.errors import install_command

__all__ = ["CHECKS", "Finding", "doctor", "examine"]

NEEDED = ("torch", "numpy", "cryptography", "msgpack", "safetensors", "pydantic", "matplotlib")


def doctor(
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="folder for runs")] = Path("runs"),
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="also check this configuration of a server or client")
    ] = None,
    json: Json = False,
) -> None:
    """Check Python, packages, machine, data and folders; the exit code is 1 if something required is missing."""
    findings = examine(folder) + ([] if config is None else list(_configured(config)))
    failed = any(f.state == "missing" for f in findings)
    if json:
        print_json({"ok": not failed, "findings": [asdict(f) for f in findings]})
    else:
        shown = table("Paceline doctor", "check", "state", "found", "action")
        style = {"ok": "green", "warning": "yellow", "missing": "bold red"}
        for f in findings:
            shown.add_row(escape(f.what), f"[{style[f.state]}]{f.state}[/]", escape(f.found), escape(f.cure))
        out().print(shown)
    if failed:
        raise typer.Exit(1)


def _configured(path: Path) -> Iterator[Finding]:
    from paceline.cli.deployed import look_at

    return look_at(path)


def examine(folder: Path) -> list[Finding]:
    """Run all checks and return their findings."""
    return [finding for check in CHECKS for finding in check(folder)]


def _python(folder: Path) -> Iterator[Finding]:
    state = "ok" if sys.version_info >= (3, 11) else "missing"
    yield Finding("Python", state, platform.python_version(), "" if state == "ok" else "use Python 3.11 or newer")


def _packages(folder: Path) -> Iterator[Finding]:
    for name in NEEDED:
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(name, "missing", "not installed", f"pip install {name}")


def _runs(folder: Path) -> Iterator[Finding]:
    yield writable("folder of runs", folder)


def _data(folder: Path) -> Iterator[Finding]:
    from paceline.data.cache import cache_folder

    yield writable("cache of data sets", cache_folder())
    for entry in task_rows():
        ready = bool(entry["ready"])
        cure = "" if ready else f"paceline data fetch {entry['name']}"
        yield Finding(f"task {entry['name']}", "ok" if ready else "warning", "ready" if ready else "no data", cure)


def _extras(folder: Path) -> Iterator[Finding]:
    """Report the optional extras declared by the package, and whether each is fully installed."""
    parts: dict[str, list[str]] = {}
    for line in requires("paceline") or []:
        requirement, _, marker = line.partition("; extra == ")
        if marker:
            parts.setdefault(marker.strip("'\""), []).append(requirement.split(">")[0].split("=")[0].split("[")[0].strip())
    for extra, names in parts.items():
        absent = [n for n in names if not _there(n)]
        text = "installed" if not absent else f"not installed: {', '.join(absent)} (optional)"
        cure = install_command(extra) if absent else ""
        yield Finding(f"extra {extra}", "ok", text, cure)


def _there(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return importlib.util.find_spec(name.replace("-", "_")) is not None
    return True


CHECKS: Sequence[Callable[[Path], Iterable[Finding]]] = (_python, _packages, *MACHINE, _runs, _data, _extras)
"""The checks in order: each takes the folder of runs and yields findings."""
