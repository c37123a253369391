"""Runs of a study, on all cores, each run once: figures are appended to a file and reused by the next call."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effect_study.rows import Metric, Trial, label

__all__ = ["Book", "Run", "measure", "prepared", "source_digest"]


@dataclass(frozen=True)
class Run:
    """A trial with a seed."""

    trial: Trial
    seed: int

    @property
    def key(self) -> str:
        """Return a digest of everything that determines the result, except the source code."""
        told = json.dumps([self.trial.describe(), self.seed], sort_keys=True, default=repr)
        return hashlib.sha256(told.encode()).hexdigest()[:24]


def source_digest(root: Path) -> str:
    """Return a digest of the library's and the tasks' source code."""
    digest = hashlib.sha256()
    for path in sorted([*(root / "src" / "paceline").rglob("*.py"), *(root / "benchmarks").glob("*.py")]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def prepared(run: Run) -> Any:
    """Return the run, ready to go."""
    from paceline.run import RunConfig, prepare

    trial = run.trial
    config = {**trial.config, "method": trial.method, "options": dict(trial.options), "seed": run.seed}
    return prepare(RunConfig.build(config), **(trial.made(run.seed) if trial.made else {}))


def read(metric: Metric, summary: Any) -> float:
    """Return a metric of a summary; not a number if the run has none."""
    if callable(metric):
        return float(metric(summary))
    value = getattr(summary, metric, None)
    if value is None and not hasattr(summary, metric):
        value = next((record[metric] for record in reversed(summary.history) if metric in record), None)
    return math.nan if value is None else float(value)


def measure(run: Run, metrics: Sequence[Metric]) -> dict[str, Any]:
    """Carry out a run in this process and return its figures and CPU seconds.

    A run that diverges has no figure (NaN): a search must be able to try rates that are too high.
    """
    import torch

    from paceline.core.errors import NonFiniteError, SumOverflowError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started = time.process_time()
    figures = dict.fromkeys(map(label, metrics), math.nan)
    with contextlib.suppress(NonFiniteError, SumOverflowError):
        summary = prepared(run).go()
        figures = {label(metric): read(metric, summary) for metric in metrics}
    return {"figures": figures, "seconds": round(time.process_time() - started, 2)}


class Book:
    """Figures of finished runs, in a file with one JSON record per line.

    Args:
        path: the file; created on the first record.
        source: digest of the source code; records of other sources are ignored.
        reuse: accept records of other sources too.
    """

    def __init__(self, path: Path, source: str, reuse: bool = False) -> None:
        self.path, self.source = path, source
        self._records: dict[str, dict[str, Any]] = {}
        self.ignored = 0
        """Number of records of other sources."""
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):  # empty, or half-written by a call that was stopped
                record = json.loads(line)
                if reuse or record["source"] == source:
                    self._add(record)
                else:
                    self.ignored += 1

    def _add(self, record: dict[str, Any]) -> None:
        known = self._records.get(record["key"])
        if known is not None and known["source"] == record["source"]:
            record = {**record, "figures": {**known["figures"], **record["figures"]}}
        self._records[record["key"]] = record

    def get(self, run: Run, metric: Metric) -> dict[str, Any] | None:
        """Return the record of a run if it has the metric."""
        record = self._records.get(run.key)
        return record if record is not None and label(metric) in record["figures"] else None

    def fill(self, wanted: Iterable[tuple[Run, Metric]], workers: int) -> Iterator[int]:
        """Carry out the runs that are missing, in parallel, and yield how many are left."""
        missing: dict[str, tuple[Run, dict[str, Metric]]] = {}
        for run, metric in wanted:
            if self.get(run, metric) is None:
                missing.setdefault(run.key, (run, {}))[1][label(metric)] = metric
        if not missing:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(workers) as pool, self.path.open("a") as file:
            file.write("\n")  # ends a line that a stopped call left half-written
            futures = {pool.submit(measure, run, list(metrics.values())): run for run, metrics in missing.values()}
            left = len(futures)
            for future in as_completed(futures):
                run = futures[future]
                try:
                    result = future.result()
                except Exception as error:
                    pool.shutdown(wait=False, cancel_futures=True)
                    error.add_note(f"in the run {run.trial.describe()}, seed {run.seed}")
                    raise
                record = {"key": run.key, "source": self.source, "date": datetime.date.today().isoformat(), **result}
                self._add(record)
                file.write(json.dumps(record) + "\n")
                file.flush()
                left -= 1
                yield left
