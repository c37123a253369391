"""Places for new runs: a free folder below a root, or an earlier run's that is replaced once the new one has begun."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paceline.core.errors import StoreError
from paceline.core.names import safe_name
from paceline.core.wording import setting
from paceline.store.files import atomic_write
from paceline.store.run import RunFolder

__all__ = ["COMPARISON", "new_place", "read_comparison", "write_comparison"]

COMPARISON = "comparison.json"
"""In a comparison's folder: its runs' folders and configurations, in the order of the table."""


@contextmanager
def new_place(root: Path, name: str | None, default: str, replace: bool) -> Iterator[Path]:
    """Yield a path below `root` that is free: `name`, or `default` with a number where that is taken.

    With `replace`, what an earlier run or comparison left there is removed once the new one has begun; a new
    one that fails before it has begun leaves nothing behind, and the earlier one as it was.
    Raises `StoreError` when `name` is taken, or is to be replaced but is neither run nor comparison, or is in use by
    another process.
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
                raise StoreError(f"{place} is not a run, so --replace does not delete it; choose another --name")
            earlier = _hold(place)
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
    except OSError as error:
        raise StoreError(
            f"{root} cannot be used as a folder of runs: {error.strerror or error}; choose another one with {setting('out')}"
        ) from error
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


def write_comparison(place: Path, names: Sequence[str], configs: Sequence[Mapping[str, Any]], kind: str = "compare") -> None:
    """Mark `place` as a comparison of runs.

    Args:
        place: its folder.
        names: names of the runs' folders.
        configs: their configurations, as they were asked for.
        kind: compare or sweep.
    """
    content = {"kind": kind, "runs": list(names), "configs": [dict(config) for config in configs]}
    atomic_write(place / COMPARISON, (json.dumps(content, indent=2) + "\n").encode())


def read_comparison(place: Path) -> tuple[list[str], list[dict[str, Any]], str]:
    """Return the names of the runs' folders, their configurations (empty in one of an earlier version), and the kind.

    Raises `StoreError` for a damaged file.
    """
    file = place / COMPARISON
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = [str(name) for name in content["runs"]]
        return names, [dict(config) for config in content.get("configs", ())], str(content.get("kind", "compare"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file} cannot be read: {error}") from error


def _hold(place: Path) -> list[RunFolder]:
    """Hold a run, or a comparison and its runs. Raises `StoreError` where another process holds any of them."""
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
    """Return whether nobody else has just taken this place."""
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
        raise StoreError(f"{wanted} already exists; choose another --name, or pass --replace")
    number = 2
    while (free := wanted.with_name(f"{wanted.name}-{number}")).exists():
        number += 1
    return free
