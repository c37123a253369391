"""Run folders for the commands: comparisons, finished runs, and their plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paceline.core.errors import StoreError
from paceline.results.groups import RunEntry
from paceline.store import RunFolder
from paceline.store.places import COMPARISON, new_place, read_comparison

__all__ = ["entries_of", "new_place", "plot"]


def entries_of(path: Path) -> list[RunEntry]:
    """Return the finished runs at `path`: the run itself, those of a comparison, or those directly inside.

    Raises:
        StoreError: there is no finished run.
    """
    configs: list[dict[str, Any]] = []
    if (path / COMPARISON).exists():
        names, configs, _ = read_comparison(path)
        folders = [RunFolder(path / name) for name in names]
    elif (path / "config.toml").exists():
        folders = [RunFolder(path)]
    else:
        folders = RunFolder.list(path)
    found = []
    for number, folder in enumerate(folders):
        summary = folder.read_summary()
        if summary is not None:
            summary |= {"run": str(folder.path)}
            found.append(RunEntry(configs[number] if configs else folder.read_config(), summary, folder.read_metrics()))
    if not found:
        raise StoreError(f"{path} contains no finished run; resume an unfinished one with: paceline resume RUN")
    return found


def plot(path: Path, x: str = "time") -> Path:
    """Plot a run's rounds into its folder, over time, rounds or bytes; return the file."""
    from paceline.store.plots import plot_run

    return plot_run(RunFolder(path), x)
