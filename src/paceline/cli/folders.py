"""Run folders for the commands: creation, finished runs, and plots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from paceline.cli.figures import Group, RunEntry
from paceline.core.errors import StoreError
from paceline.core.names import safe_name
from paceline.store import RunFolder

__all__ = ["entries_of", "new_place", "plot", "plot_groups", "write_comparison"]

COMPARISON = "comparison.json"
"""File in a comparison's folder with the names of its runs' folders, in the order of the table."""


@contextmanager
def new_place(root: Path, name: str | None, default: str, replace: bool) -> Iterator[Path]:
    """Yield a free path below `root`: `name`, or `default` with a number if that is taken.

    With `replace`, an earlier run or comparison of that name is removed once the new one has begun. A new one that fails
    before that leaves nothing behind, and the earlier one is unchanged.

    Args:
        root: folder of runs.
        name: requested name, or None.
        default: name to use otherwise.
        replace: replace an earlier run or comparison.

    Raises:
        StoreError: `name` is taken; or it is to be replaced but is not a run or comparison, or another process uses it.
    """
    wanted = root / safe_name(name or default)
    aside = wanted.with_name(f".{wanted.name}.replaced")
    earlier: list[RunFolder] = []
    try:
        if aside.exists() and not wanted.exists():
            _release(_hold(aside))
            aside.rename(wanted)
        place = wanted if replace else _free(wanted, name is not None)
        if place.exists():
            if not _begun(place):
                raise StoreError(f"{place} contains no run, so --replace does not delete it; choose another --name")
            earlier = _hold(place)
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
    except OSError as error:
        raise StoreError(f"{root} cannot be used for runs: {error.strerror or error}; choose another folder with --out") from error
    try:
        yield place
    finally:
        _release(earlier)
        if not _begun(place) and _ours(place):
            shutil.rmtree(place, ignore_errors=True)
            if aside.exists():
                aside.rename(place)
        if earlier:
            shutil.rmtree(aside, ignore_errors=True)


def write_comparison(place: Path, names: Sequence[str]) -> None:
    """Mark `place` as a comparison of the runs with these folder names."""
    place.mkdir(parents=True, exist_ok=True)
    (place / COMPARISON).write_text(json.dumps({"runs": list(names)}, indent=2) + "\n", encoding="utf-8")


def entries_of(path: Path) -> list[RunEntry]:
    """Return the finished runs at `path`: the run itself, those of a comparison, or those directly inside.

    Raises:
        StoreError: there is no finished run.
    """
    if (path / COMPARISON).exists():
        folders = [RunFolder(path / name) for name in _compared(path / COMPARISON)]
    elif (path / "config.toml").exists():
        folders = [RunFolder(path)]
    else:
        folders = RunFolder.list(path)
    found = []
    for folder in folders:
        summary = folder.read_summary()
        if summary is not None:
            summary |= {"run": str(folder.path)}
            found.append(RunEntry(folder.read_config(), summary, folder.read_metrics()))
    if not found:
        raise StoreError(f"{path} contains no finished run; resume an unfinished one with: paceline resume RUN")
    return found


def plot(path: Path) -> Path:
    """Plot a run's rounds into its folder; return the file."""
    from paceline.store.plots import plot_run

    return plot_run(RunFolder(path))


def plot_groups(groups: Sequence[Group], place: Path, target: float | None) -> Path:
    """Plot a comparison into `place`; return the file."""
    from paceline.store.plots import plot_compare

    runs = [
        {"method": group.label, "seed": entry.config.get("seed", 0), "history": entry.history}
        for group in groups
        for entry in group.entries
    ]
    return plot_compare(place / "compare.png", runs, target=target)


def _compared(file: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads(file.read_text(encoding="utf-8"))["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file} cannot be read: {error}") from error


def _hold(place: Path) -> list[RunFolder]:
    """Lock a run, or a comparison and its runs. Raises `StoreError` if another process holds one of them."""
    held: list[RunFolder] = []
    try:
        for folder in [RunFolder(place), *RunFolder.list(place)]:
            held.append(folder.hold())
    except StoreError:
        _release(held)
        raise
    return held


def _release(folders: Sequence[RunFolder]) -> None:
    for folder in folders:
        folder.release()


def _ours(place: Path) -> bool:
    """Return whether no other process has taken this place in the meantime."""
    if not place.exists():
        return True
    try:
        _release(_hold(place))
    except StoreError:
        return False
    return True


def _begun(place: Path) -> bool:
    return (place / "config.toml").exists() or (place / COMPARISON).exists()


def _free(wanted: Path, named: bool) -> Path:
    if not wanted.exists():
        return wanted
    if named:
        raise StoreError(f"{wanted} exists already; choose another --name, or use --replace")
    number = 2
    while (free := wanted.with_name(f"{wanted.name}-{number}")).exists():
        number += 1
    return free
