"""`paceline doctor`: is everything there that a run needs?"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from paceline.cli.listing import task_rows
from paceline.cli.run import Json
from paceline.cli.show import bytes_text, out, print_json, table

__all__ = ["Finding", "doctor", "examine"]

LEAST_MEMORY = 2e9
NEEDED = ("torch", "numpy", "cryptography", "msgpack", "safetensors", "pydantic", "matplotlib")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `state` is ok, warning or missing; a missing one fails the command."""

    what: str
    state: str
    found: str
    cure: str = ""


def doctor(
    folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="folder that runs would be kept in")
    ] = Path("runs"),
    json: Json = False,
) -> None:
    """Look at Python, packages, machine, data and folders; exit code 1 when something needed is missing."""
    findings = examine(folder)
    failed = any(f.state == "missing" for f in findings)
    if json:
        print_json({"ok": not failed, "findings": [asdict(f) for f in findings]})
    else:
        shown = table("Paceline doctor", "what", "state", "found", "what to do")
        style = {"ok": "green", "warning": "yellow", "missing": "bold red"}
        for f in findings:
            shown.add_row(escape(f.what), f"[{style[f.state]}]{f.state}[/]", escape(f.found), escape(f.cure))
        out().print(shown)
    if failed:
        raise typer.Exit(1)


def examine(folder: Path) -> list[Finding]:
    """Return all findings."""
    return [_python(), *_packages(), *_machine(), _writable("folder of runs", folder), *_data(), *_extras()]


def _python() -> Finding:
    state = "ok" if sys.version_info >= (3, 11) else "missing"
    return Finding(
        "Python", state, platform.python_version(), "" if state == "ok" else "use Python 3.11 or newer"
    )


def _packages() -> list[Finding]:
    found = []
    for name in NEEDED:
        try:
            found.append(Finding(name, "ok", version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, "missing", "not installed", f"pip install -c constraints.txt {name}"))
    return found


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = [Finding("processor cores", "ok", str(cores))]
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return found
    enough = memory >= LEAST_MEMORY
    cure = "" if enough else f"large tasks want {bytes_text(LEAST_MEMORY)}"
    return [*found, Finding("memory", "ok" if enough else "warning", bytes_text(memory), cure)]


def _writable(what: str, folder: Path) -> Finding:
    there = folder.absolute()
    try:
        while not there.exists():
            there = there.parent
        with tempfile.NamedTemporaryFile(dir=there):
            return Finding(what, "ok", str(folder))
    except OSError as error:
        return Finding(
            what, "missing", f"{folder}: {error.strerror}", "choose a folder that you may write to"
        )


def _data() -> list[Finding]:
    from paceline.data.cache import cache_folder

    found = [_writable("cache of data sets", cache_folder())]
    for entry in task_rows():
        ready = bool(entry["ready"])
        cure = "" if ready else f"paceline data fetch {entry['name']}"
        found.append(
            Finding(
                f"task {entry['name']}", "ok" if ready else "warning", "ready" if ready else "no data", cure
            )
        )
    return found


def _extras() -> list[Finding]:
    """Return the optional extras that the package declares, and whether all of each is installed."""
    parts: dict[str, list[str]] = {}
    for line in requires("paceline") or []:
        requirement, _, marker = line.partition("; extra == ")
        if marker:
            parts.setdefault(marker.strip("'\""), []).append(
                requirement.split(">")[0].split("=")[0].split("[")[0].strip()
            )
    found = []
    for extra, names in parts.items():
        absent = [n for n in names if not _there(n)]
        text = "installed" if not absent else f"not installed: {', '.join(absent)} (optional)"
        cure = f"pip install -c constraints.txt 'paceline[{extra}]'" if absent else ""
        found.append(Finding(f"extra {extra}", "ok", text, cure))
    return found


def _there(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return importlib.util.find_spec(name.replace("-", "_")) is not None
    return True
