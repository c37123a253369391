"""Configuration of a run: every setting that affects its result. Single source of the API and the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, NoReturn, Self, Unpack

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.parsing import with_options
from paceline.core.run_fields import ConfigFields
from paceline.core.wording import setting

__all__ = ["PANELS", "RunConfig"]

TASK, ROUNDS, SUMS, CLIENTS, JUDGED = PANELS = (
    "Task and data",
    "Rounds",
    "Sums",
    "Devices and workers",
    "Evaluation and end",
)
"""Headings under which options are listed."""


def _option(default: Any, panel: str, help: str, absent: str = "", repeat: str = "", **checks: Any) -> Any:
    """Return a field that is also a command line option.

    Args:
        default: default value.
        panel: heading under which the option is listed.
        help: description.
        absent: description of a default of None.
        repeat: name of the option for one entry, if the field is a list.
        **checks: limits of the value.
    """
    return Field(default, description=help, json_schema_extra={"panel": panel, "absent": absent, "repeat": repeat}, **checks)


class RunConfig(BaseModel):
    """The configuration of a run. Written to the run's folder as `config.toml`.

    Raises:
        UnknownNameError: if a field does not exist; lists the nearest names.
        ConfigError: if values are invalid; lists all of them.

    Example:
        >>> RunConfig(method="fedprox", rounds=5).clients
        20
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    method: str = Field("fedavg", description="method; see `paceline methods`")
    options: dict[str, Any] = Field(default_factory=dict, description="fields of the method")
    task_options: dict[str, Any] = Field(default_factory=dict, description="options of the task")
    secure: dict[str, Any] = Field(default_factory=dict, description="options of secure aggregation")

    task: str = _option("mnist-5k", TASK, "task; see `paceline tasks`, or kind:/path for your own files")
    model: str | None = _option(None, TASK, "reference model", "the task's own")
    start_from: str | None = _option(
        None, TASK, "run, .safetensors file or file of a state dict whose weights the model starts from", "random weights"
    )
    partition: str = _option(
        "iid",
        TASK,
        "iid, dirichlet:ALPHA, shards:K, quantity:ALPHA, groups:0-4/5-9, longtail:0.05/0.5, natural, domains:ALPHA or embedding:ALPHA",
    )
    clients: int = _option(20, TASK, "size of the population", ge=1)
    client_test: float = _option(0.0, TASK, "share of a client's samples reserved for testing", ge=0, lt=1)
    client_samples: int | None = _option(None, TASK, "maximum samples of a client; the rest is unused", "no limit", ge=1)
    allow_empty: bool = _option(False, TASK, "allow clients without samples")

    cohort: int = _option(20, ROUNDS, "clients sampled per round; where it is not set, at most all clients", ge=1)
    rounds: int = _option(30, ROUNDS, "number of rounds", ge=1)
    seed: int = _option(0, ROUNDS, "seed of every random stream", ge=0)
    checkpoint_every: int = _option(1, ROUNDS, "rounds between checkpoints", ge=1)

    aggregation: str = _option("plain", SUMS, "plain, secure or secure-arithmetic")
    sum_bound: float = _option(2.0**20, SUMS, "largest |weight x value| in an exact sum", gt=0)
    quorum: int = _option(1, SUMS, "minimum number of replies in a sum", ge=1)
    least_group: int = _option(1, SUMS, "minimum size of a group that is summed separately", ge=1)
    on_error: Literal["stop", "drop"] = _option("stop", SUMS, "on a client's error, stop the run or drop the client")
    deadline: float | None = _option(None, SUMS, "virtual seconds after which a reply is dropped", "no deadline", gt=0)

    fleet: str = _option("homogeneous", CLIENTS, "homogeneous, stragglers, spread or mobile, with options after a colon")
    participation: str = _option(
        "always",
        CLIENTS,
        "availability process of clients: always, bernoulli:0.3, bernoulli:1/0.1 (rates of groups), markov:0.05-1 (from the "
        "first client to the last), cyclic:0.3,length=100, diurnal:0.3,period=24 or trace:FILE.csv",
    )
    adversary: str | None = _option(
        None,
        CLIENTS,
        "Byzantine clients and their share, such as signflip:0.2 or alie:0.2",
        "all clients honest",
    )
    measured: bool = _option(False, CLIENTS, "derive virtual time from measured seconds instead of FLOPs")
    engine: str = _option("local", CLIENTS, "local, debug or ray")
    workers: int = _option(1, CLIENTS, "worker processes; 1 runs in this process", ge=1)
    threads: int = _option(1, CLIENTS, "torch threads of each worker", ge=1)
    ray_address: str | None = _option(None, CLIENTS, "host:port of a running Ray cluster, or auto", "a local cluster")
    ray_cpus: float = _option(1.0, CLIENTS, "CPUs requested by each Ray actor", ge=0)
    ray_gpus: float = _option(0.0, CLIENTS, "GPUs requested by each Ray actor", ge=0)
    device: str = _option("cpu", CLIENTS, "torch device")
    precision: Literal["float32", "tf32", "bf16"] = _option("float32", CLIENTS, "of training: float32, tf32 or bf16")
    vectorize: Literal["auto", "on", "off"] = _option("auto", CLIENTS, "train clients as one stacked computation: auto, on or off")
    chunk: int | None = _option(None, CLIENTS, "clients per stack", "measured at the start", ge=1)
    one_step: bool = _option(True, CLIENTS, "train one-step clients as one batch when stacking")
    kernels: str = _option("auto", CLIENTS, "how stacks are computed: auto, plain, or some of graph,compile,views")
    memory_mib: int = _option(1024, CLIENTS, "MiB of client memories in RAM; the rest is on disk", ge=1)

    evaluation: Literal["auto", "central", "federated", "clients", "clients-central"] = _option(
        "auto",
        JUDGED,
        "central test set; the clients' test samples, or their training samples if client_test is 0 (federated); each "
        "client's own model on its own test samples (clients) or on the central test set; auto is central if the method has "
        "a global model, otherwise clients",
    )
    metrics: tuple[str, ...] = _option(
        (),
        JUDGED,
        "metrics, see `paceline metrics`; the first is primary: target, patience, tables and plots use it",
        repeat="metric",
    )
    by_group: bool = _option(False, JUDGED, "evaluate each group of the partition too; federated and clients' evaluations")
    eval_every: int = _option(1, JUDGED, "rounds between evaluations", ge=1)
    target_accuracy: float | None = _option(None, JUDGED, "report the virtual time to this accuracy", "none", gt=0, le=1)
    target_score: float | None = _option(None, JUDGED, "report the virtual time to this value of the primary metric", "none")
    stop_at_target: bool = _option(False, JUDGED, "stop once the target is reached")
    patience: int | None = _option(None, JUDGED, "stop after this many evaluations without improvement", "never", ge=1)

    def __init__(self, **values: Unpack[ConfigFields]) -> None:
        with _own_errors():
            super().__init__(**values)

    @classmethod
    def model_validate(cls, *args: Any, **kwargs: Any) -> Self:
        """Validate a mapping; raise the errors of the class."""
        with _own_errors():
            return super().model_validate(*args, **kwargs)

    @classmethod
    def model_validate_json(cls, *args: Any, **kwargs: Any) -> Self:
        """Validate a JSON text; raise the errors of the class."""
        with _own_errors():
            return super().model_validate_json(*args, **kwargs)

    @model_validator(mode="before")
    @classmethod
    def _queries(cls, given: Any) -> Any:
        """Move options behind the question mark of a task's or model's name to the options of the task."""
        return with_options(given, "task", "model") if isinstance(given, dict) else given

    @field_validator("metrics", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.target_score is not None and self.target_accuracy is not None:
            raise ConfigError(f"{setting('target_score')} and {setting('target_accuracy')} exclude each other; set one of them")
        return self

    @property
    def goal(self) -> float | None:
        """Target of the primary metric."""
        return self.target_accuracy if self.target_score is None else self.target_score

    @property
    def label(self) -> str:
        """Folder name for this run: method, task and seed."""
        return f"{self.method}-{self.task}-s{self.seed}"

    @staticmethod
    def build(values: dict[str, Any]) -> RunConfig:
        """Return the configuration with these values; raise the errors of the class."""
        return RunConfig(**values)

    def fitted(self) -> RunConfig:
        """Return the configuration with a cohort of at most the population, unless the cohort was set.

        Every front end calls this once: Python, `paceline run`, `compare`, `federate` and `server`.
        """
        if "cohort" in self.model_fields_set or self.cohort <= self.clients:
            return self
        return RunConfig.build({**self.model_dump(exclude_unset=True), "cohort": self.clients})


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """Raise Paceline's errors instead of pydantic's."""
    try:
        yield
    except ValidationError as error:
        _raise(error)


def _raise(error: ValidationError) -> NoReturn:
    faults = error.errors()
    own = [inner for fault in faults if isinstance(inner := fault.get("ctx", {}).get("error"), ConfigError)]
    if own:  # raised by the class and wrapped by pydantic
        raise own[0] from None
    unknown = [fault["loc"][0] for fault in faults if fault["type"] == "extra_forbidden"]
    if unknown:
        raise UnknownNameError("option", str(unknown[0]), RunConfig.model_fields) from None
    faults_text = [f"{'.'.join(map(str, f['loc'])) or 'configuration'}={f['input']!r}: {f['msg']}" for f in faults]
    raise ConfigError("; ".join(faults_text)) from None
