"""Folder of a run.

::

    config.toml        configuration that determines the result
    schema.json        schema of the data, if the task has one
    metrics.jsonl      one record per round
    metrics.csv        the same as a table, once the run has ended
    checkpoint         the last checkpoint, see `paceline.store.checkpoint`
    memory/            the clients' memories, see `paceline.store.memory`
    clients/           state of the clients of `paceline federate`, until the run has ended
    summary.json       the outcome, once the run has ended
    timeline.json      what each client did in the last round, see `paceline.store.gantt`
    model.safetensors  the final model's tensors by name: the state dict of its module
    model.json         how the module is made, its classes, schema and inputs, see `paceline.results.card`
    start.safetensors  the weights that the run started from, if it was given any
    plots/             plots
    lock               lock of the process that changes the run, see `paceline.store.lock`

One process at a time may change a run; any may read it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from paceline.core.errors import StoreError
from paceline.core.names import LONGEST
from paceline.core.wording import command
from paceline.store.files import atomic_write, named
from paceline.store.lock import LOCK, FolderLock
from paceline.store.toml import to_toml

__all__ = ["Records", "RunFolder"]

Records = list[dict[str, Any]]
"""One dict per round, in order."""


class RunFolder:
    """Files of one run; use `create` or `open`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: FolderLock | None = None

    @staticmethod
    def create(root: str | os.PathLike[str], name: str) -> RunFolder:
        """Create and lock the folder of a new run.

        Args:
            root: parent folder.
            name: name of the run.

        Raises:
            StoreError: the folder is not empty, cannot be created, or the name is invalid.
        """
        RunFolder.check_name(name)
        path = Path(root) / name
        try:
            path.mkdir(parents=True, exist_ok=True)
            _empty(path)
            folder = RunFolder(path).hold()
            try:
                _empty(path)  # no other process was faster
            except StoreError:
                folder.release()
                raise
        except OSError as error:
            raise StoreError(f"{path} cannot be created: {error.strerror or error}; choose another folder") from error
        return folder

    @staticmethod
    def check_name(name: str) -> None:
        """Raise `StoreError` for an invalid name of a run."""
        if not name or name.startswith(".") or Path(name).name != name or not name.isprintable():
            raise StoreError(f"{name!r} is not a valid run name; use one without slashes that does not start with a dot")
        if (size := len(name.encode(errors="replace"))) > LONGEST:
            raise StoreError(f"the name {name[:40] + '...'!r} has {size} bytes; the maximum is {LONGEST}, so choose a shorter one")

    @staticmethod
    def open(path: str | os.PathLike[str]) -> RunFolder:
        """Return the folder of an existing run.

        Raises:
            StoreError: there is no run.
        """
        folder = RunFolder(path)
        try:
            there = folder._config.is_file()
        except OSError as error:
            raise StoreError(f"{folder.path} cannot be read: {error.strerror or error}") from error
        if not there:
            raise StoreError(f"{folder.path} is not a run folder: config.toml is missing")
        return folder

    def hold(self) -> RunFolder:
        """Lock this run against changes by other processes until `release`, or until this process ends; return the folder.

        Raises:
            StoreError: another process holds the lock; the message names the folder and the process.
        """
        if self._lock is None:
            self._lock = FolderLock(self.path)
        return self

    def release(self) -> None:
        """Release the lock; do nothing without one."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    @staticmethod
    def list(root: str | os.PathLike[str]) -> list[RunFolder]:
        """Return the runs below `root`, by name; an empty list if `root` does not exist."""
        return [RunFolder(p.parent) for p in sorted(Path(root).glob("*/config.toml"))]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint."""
        return self.path / "checkpoint"

    @property
    def plots(self) -> Path:
        """Folder of the plots, created if missing."""
        path = self.path / "plots"
        path.mkdir(exist_ok=True)
        return path

    @property
    def model(self) -> Path:
        """Path of the final model."""
        return self.path / "model.safetensors"

    @property
    def schema(self) -> Path:
        """Path of the schema of the data."""
        return self.path / "schema.json"

    @property
    def _config(self) -> Path:
        return self.path / "config.toml"

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    # -- configuration -------------------------------------------------------------------------
    def write_config(self, config: Mapping[str, Any], schema: str | None = None) -> None:
        """Save the configuration, and the schema of the data as JSON if there is one.

        Raises `ConfigError` for a value that TOML does not support.
        """
        text = to_toml(config)
        if schema is not None:
            atomic_write(self.schema, schema.encode())
        atomic_write(self._config, text.encode())

    def read_config(self) -> dict[str, Any]:
        """Return the configuration; raises `StoreError` if it cannot be read."""
        try:
            return tomllib.loads(self._config.read_bytes().decode())
        except (OSError, ValueError) as error:
            raise StoreError(f"{self._config} cannot be read: {error}") from error

    # -- metrics -------------------------------------------------------------------------------
    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one round's record, a flat dict with ``"round"``; non-finite values are written as null."""
        line = _json(record) + "\n"
        try:
            with open(self._metrics, "ab") as file:
                file.write(line.encode())
        except OSError as error:
            raise named(error, self._metrics, len(line)) from error

    def read_metrics(self) -> Records:
        """Return all complete records in order; null is read as NaN.

        A last line truncated by a crash is ignored.

        Raises:
            StoreError: any other malformed line.
        """
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_bytes().split(b"\n")
        records: Records = []
        for number, line in enumerate(lines[:-1], 1):
            try:
                record = json.loads(line)
                records.append({k: math.nan if v is None else v for k, v in record.items()})
            except (ValueError, AttributeError) as error:
                raise StoreError(f"{self._metrics}, line {number}: malformed record: {error}") from error
        return records

    def truncate_metrics(self, round: int) -> Records:
        """Remove all records after `round`, which a resumed run writes again; return the remaining ones."""
        kept = [record for record in self.read_metrics() if record.get("round", 0) <= round]
        atomic_write(self._metrics, "".join(_json(r) + "\n" for r in kept).encode())
        return kept

    def write_table(self) -> None:
        """Write the records of all rounds as CSV; columns appear in the order of their first use."""
        records = self.read_metrics()
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, list(dict.fromkeys(key for record in records for key in record)), lineterminator="\n")
        table.writeheader()
        table.writerows(records)
        atomic_write(self.path / "metrics.csv", buffer.getvalue().encode())

    # -- outcome -------------------------------------------------------------------------------
    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Save the outcome as JSON."""
        atomic_write(self.path / "summary.json", (_json(summary, indent=2) + "\n").encode())

    def read_summary(self) -> dict[str, Any] | None:
        """Return the outcome, or None if the run has not ended; raises `StoreError` for a damaged file."""
        try:
            text = (self.path / "summary.json").read_bytes()
        except FileNotFoundError:
            return None
        try:
            summary: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise StoreError(f"{self.path / 'summary.json'} cannot be read: {error}") from error
        return summary

    def write_timeline(self, phases: Sequence[Mapping[str, Any]]) -> None:
        """Save the timeline of the last round as JSON, see `paceline.store.gantt`; keep an earlier one in place of nothing."""
        if phases:
            atomic_write(self.path / "timeline.json", (_json(list(phases)) + "\n").encode())

    def read_timeline(self) -> Records:
        """Return the timeline of the last round; empty if none was kept. Raises `StoreError` for a damaged file."""
        path = self.path / "timeline.json"
        try:
            phases: Records = json.loads(path.read_bytes()) if path.exists() else []
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from error
        return phases

    def load_model(self) -> dict[str, Tensor]:
        """Return the saved model's tensors by name; raises `StoreError` if there is none, or it is damaged."""
        try:
            return safetensors.torch.load(self.model.read_bytes())
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise StoreError(f"{self.model} cannot be read: {error}") from error

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"


def _empty(path: Path) -> None:
    if any(found.name != LOCK for found in path.iterdir()):
        raise StoreError(f"the folder {path} exists; choose another name, or continue it with: {command('resume', path)}")


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    """Return the value with non-finite floats replaced by null; JSON has neither NaN nor infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
