"""The fields of `RunConfig` as typed keyword arguments, so that editors complete them and type checkers read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

__all__ = ["ConfigFields", "RunFields"]


class RunFields(TypedDict, total=False):
    """What `paceline.run` takes by keyword beside the method, the task and its model; `RunConfig` describes each field."""

    options: dict[str, Any]
    task_options: dict[str, Any]
    secure: dict[str, Any]
    start_from: str | None
    partition: str
    clients: int
    client_test: float
    client_samples: int | None
    allow_empty: bool
    cohort: int
    rounds: int
    seed: int
    checkpoint_every: int
    aggregation: str
    sum_bound: float
    quorum: int
    least_group: int
    on_error: Literal["stop", "drop"]
    deadline: float | None
    fleet: str
    participation: str
    adversary: str | None
    measured: bool
    engine: str
    workers: int
    threads: int
    ray_address: str | None
    ray_cpus: float
    ray_gpus: float
    device: str
    precision: Literal["float32", "tf32", "bf16"]
    vectorize: Literal["auto", "on", "off"]
    chunk: int | None
    one_step: bool
    kernels: str
    memory_mib: int
    evaluation: Literal["auto", "central", "federated", "clients", "clients-central"]
    metrics: str | Sequence[Any]
    by_group: bool
    eval_every: int
    target_accuracy: float | None
    target_score: float | None
    stop_at_target: bool
    patience: int | None


class ConfigFields(RunFields, total=False):
    """All fields of `RunConfig`."""

    method: str
    task: str
    model: str | None
