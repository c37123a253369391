"""Configuration of `paceline server` and `paceline client`: TOML files, overridden by environment variables.

``PACELINE_SERVER__LISTEN=0.0.0.0:9100`` sets ``listen`` in the table ``[server]``. Values are parsed as TOML; text that
is not valid TOML is used literally. Paths are relative to the folder of the configuration file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from paceline.core.address import Address, Dialled, Listening, MaybeListening, ProxyUrl
from paceline.core.errors import ConfigError, nearest
from paceline.core.parsing import read_toml, value, with_options
from paceline.deploy.validation import faults_of, shown

__all__ = ["PREFIX", "ClientConfig", "DataConfig", "Logging", "ServerConfig", "ServerPart", "Waiting", "load_config"]

PREFIX = "PACELINE_"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Logging(_Part):
    """Logging options of a process."""

    format: Literal["json", "text"] = Field(default="json", description="one JSON object per line, or readable text")
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="minimum level of logged events")
    metrics: MaybeListening = Field(default=None, description="host:port of /metrics, /healthz and /readyz; disabled if empty")


class Waiting(_Part):
    """Timeouts of the server, in seconds of real time."""

    phase: float = Field(default=600.0, gt=0, description="maximum wait for an answer")
    phases: dict[str, float] = Field(default_factory=dict, description="the same for single functions, such as 'secagg.advertise'")
    share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the asked clients whose answers suffice to end a phase early; 1 waits for all",
    )
    grace: float = Field(
        default=1.5, ge=1, description="after the share has answered, the phase may last this many times the time until then"
    )
    reconnect: float = Field(default=5.0, ge=0, description="maximum wait for a disconnected client before it counts as lost")
    expected: float = Field(
        default=600.0,
        ge=0,
        description="maximum wait for all expected sites before the first round, which then begins without the missing ones",
    )
    start: float = Field(default=3600.0, gt=0, description="maximum wait for the minimum number of clients")


class ServerPart(_Part):
    """Port and files of the server."""

    listen: Listening = Field(default=Address("0.0.0.0", 9100), description="host:port for clients")
    folder: Path = Field(default=Path("server"), description="server.key, server.pem and trust.pem")
    directory: Path | None = Field(default=None, description="signed directory of identity keys; default: the file in the folder")
    crl: Path | None = Field(default=None, description="revocation list; default: crl.pem in the folder")
    ca: Path | None = Field(default=None, description="folder of the authority, if clients enrol and renew their certificates here")
    enrol: MaybeListening = Field(default=None, description="host:port for enrolment by token; disabled if empty")
    renew: MaybeListening = Field(default=None, description="host:port for renewals; default with enrol: a free port")
    run: Path = Field(default=Path("run"), description="folder of the run; created, or continued if it exists")
    state: str = Field(
        default="", description="database of rounds and events: a path or a URL; default: state.db in the run's folder"
    )
    least: int = Field(
        default=1,
        ge=1,
        description="minimum number of connected clients for a round; at least the quorum, and 3 with secure aggregation",
    )
    expected: Annotated[int, Field(strict=True, ge=0)] | tuple[str, ...] = Field(
        default=0, description="names or number of the sites that the first round waits for; 0 for none"
    )
    heartbeat: float = Field(default=10.0, gt=0, description="seconds between pings; three unanswered pings end a stream")
    limit: int = Field(default=1 << 30, ge=1 << 12, description="maximum size of a message from a client, in bytes")
    memory: int = Field(
        default=64 << 20, ge=0, description="memory for incoming messages, in bytes; beyond it they are written to files"
    )
    lanes: int = Field(default=16, ge=1, description="maximum number of simultaneous large transfers in each direction")
    window: int = Field(
        default=256 << 10, ge=1 << 16, description="flow-control window: bytes that a client may send before they are read"
    )
    pack: bool = Field(default=False, description="compress with zstd")
    track: tuple[str, ...] = Field(default=(), description="trackers of the run: tensorboard, mlflow or wandb, with options")
    faults: tuple[str, ...] = Field(default=(), description="injected faults, for tests")


class ServerConfig(_Part):
    """Complete configuration of a server; the table ``[run]`` contains the fields of a run."""

    server: ServerPart = ServerPart()
    waiting: Waiting = Waiting()
    logging: Logging = Logging()
    run: dict[str, Any] = Field(default_factory=dict)


class DataConfig(_Part):
    """Data of a client: local files, or its part of a shared task according to the run's partition."""

    task: str = Field(default="", description="task, or kind:/path of own files; empty: the plan's task")
    task_options: dict[str, Any] = Field(default_factory=dict, description="options of the task")
    columns: dict[str, str] = Field(default_factory=dict, description="the schema's name of a column, by the name in own files")
    values: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="for a column of the schema: the schema's name of a class or category, by the own one"
    )

    schema_file: Path | None = Field(
        default=None, description="schema that this client has agreed to; a run with another one is refused; default: the run's"
    )
    report: Literal["differences", "nothing"] = Field(
        default="differences",
        description="what the server learns if own files differ from the schema: names of columns, kinds and classes, or nothing",
    )
    own: bool = Field(default=True, description="use all samples; otherwise this client's part according to the plan's partition")
    device: str = Field(default="cpu", description="torch device")
    threads: int = Field(default=1, ge=1, description="torch threads")

    @model_validator(mode="before")
    @classmethod
    def _queries(cls, given: Any) -> Any:
        """Move options behind the question mark of a task's name to its options; those of files stay."""
        return with_options(given, "task") if isinstance(given, dict) else given


class ClientPart(_Part):
    """Connection and files of the client."""

    server: Dialled = Field(default=Address("localhost", 9100), description="host:port of the server")
    name: str = Field(default="", description="server name in its certificate, if it differs from the address")
    proxy: ProxyUrl = Field(
        default="", description="http://host:port of a proxy, or environment to use http_proxy; no proxy if empty"
    )
    folder: Path = Field(default=Path("client"), description="client.key, client.pem, identity.key, trust.pem and directory")
    state: Path = Field(default=Path("state"), description="folder of the data stored between rounds")
    keep_model: bool = Field(
        default=True, description="keep this client's own model, as it was evaluated last, in STATE/RUN/model for paceline predict"
    )
    policy: Path | None = Field(default=None, description="policy.toml; default: only secure aggregation, with 3 clients or more")
    modules: tuple[str, ...] = Field(default=(), description="modules of own methods, tasks and models that a plan may name")
    private_rounding: bool = Field(
        default=True,
        description="round with a secret seed of this client; runs are then not reproducible bit for bit; false only for trials",
    )
    first: float = Field(default=0.2, gt=0, description="seconds before the first reconnection attempt")
    most: float = Field(default=30.0, gt=0, description="maximum seconds between two attempts")
    attempts: int = Field(default=0, ge=0, description="attempts without a welcome before the client ends; 0 for no limit")
    stay: bool = Field(default=False, description="wait for the next run after the end of one")
    limit: int = Field(default=4 << 30, ge=1 << 12, description="maximum size of a message from the server, in bytes")
    pack: bool = Field(default=False, description="compress with zstd")
    faults: tuple[str, ...] = Field(default=(), description="injected faults, for tests")


class ClientConfig(_Part):
    """Complete configuration of a client."""

    client: ClientPart = ClientPart()
    data: DataConfig = DataConfig()
    logging: Logging = Logging()


C = TypeVar("C", ServerConfig, ClientConfig)
_TABLES = {*ServerConfig.model_fields, *ClientConfig.model_fields}


def load_config(kind: type[C], path: Path | None, environment: Mapping[str, str] = os.environ) -> C:
    """Read a configuration file and apply the environment.

    Args:
        kind: `ServerConfig` or `ClientConfig`.
        path: TOML file, or None for the environment alone.
        environment: environment variables.

    Raises:
        ConfigError: lists every fault, with the variable that it comes from.

    Example:
        >>> load_config(ServerConfig, None, {"PACELINE_SERVER__LEAST": "3"}).server.least
        3
    """
    values = {} if path is None else read_toml(path)
    given = _override(values, list(kind.model_fields), environment)
    try:
        made = kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path or 'the environment'}: {'; '.join(faults_of(error, kind, given))}") from None
    return _placed(made, Path() if path is None else path.parent)


def _override(values: dict[str, Any], tables: list[str], environment: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Apply the environment to `values`; return the variable that set each location.

    Raises `ConfigError` for a variable that matches no key, or a key inside a value that is not a table.
    """
    named = [(tuple(name.removeprefix(PREFIX).lower().split("__")), name) for name in environment if name.startswith(PREFIX)]
    given = {}
    for place, name in sorted(named, key=lambda item: (len(item[0]), item[1])):  # tables before their keys
        table = place[0]
        if len(place) == 1:
            if table in _TABLES:
                raise ConfigError(f"{name} sets the whole table [{table}]; set one of its keys, as in {PREFIX}{table.upper()}__KEY")
            continue  # PACELINE_CA and others that are not configuration keys
        if "" in place:
            raise ConfigError(f"{name} has an empty part; write {PREFIX}TABLE__KEY, with two underscores between the parts")
        if table not in _TABLES:
            raise ConfigError(f"{name}: unknown table {table!r}{nearest(table, _TABLES)}")
        if table in tables:
            _set(values, place, name, value(environment[name]))
            given[place] = name
    return given


def _set(values: dict[str, Any], place: tuple[str, ...], name: str, new: Any) -> None:
    at = values
    for depth, part in enumerate(place[:-1], 1):
        inner = at.setdefault(part, {})
        if not isinstance(inner, dict):
            whole = ".".join(place[:depth])
            raise ConfigError(
                f"{name} sets {place[depth]!r} within {whole}, which is {shown(inner)}, not a table; "
                f"set {PREFIX}{'__'.join(place[:depth]).upper()} instead, or make {whole} a table"
            )
        at = inner
    at[place[-1]] = new


def _placed(made: C, root: Path) -> C:
    """Return the configuration with its paths resolved relative to `root`."""
    part: BaseModel = made.server if isinstance(made, ServerConfig) else made.client
    paths = {name: root / v for name in type(part).model_fields if isinstance(v := getattr(part, name), Path)}
    if isinstance(made, ServerConfig):
        return made.model_copy(update={"server": part.model_copy(update=paths)})
    agreed = {} if made.data.schema_file is None else {"schema_file": root / made.data.schema_file}
    return made.model_copy(update={"client": part.model_copy(update=paths), "data": made.data.model_copy(update=agreed)})
