"""Suggestions for misplaced options: fields of the method, task or fleet given as options of the run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline import registry
from paceline.core.errors import ConfigError, PacelineError, UnknownNameError
from paceline.core.importing import is_import_path
from paceline.core.parsing import read_toml, with_query

__all__ = ["Home", "check_method", "check_run", "check_task", "correct", "homes", "misplaced"]


_FLEET = {"num_clients", "seed", "participation"}
_PROCESS = {"num_clients", "seed", "rates", "path"}


@dataclass(frozen=True)
class Home:
    """Correct place of an option: its owner, and its form on the command line (`line`) and in a file (`table`)."""

    owner: str
    line: str
    table: str


def homes(name: str, value: str, run: Mapping[str, Any], methods: Sequence[str] = ()) -> list[Home]:
    """Return the places where an option belongs that is not a run option.

    Args:
        name, value: the option.
        run: the other options given.
        methods: the methods, if there are several.
    """
    name = name.replace("-", "_")
    return list(_homes(name, value, run, methods or [run.get("method", "fedavg")])) or list(_other_methods(name, value))


def _other_methods(name: str, value: str) -> Iterator[Home]:
    from paceline.assembly import field_owners

    if owners := field_owners(name):
        yield Home(f"a field of {owners}", f"{owners if owners.isidentifier() else 'METHOD'}:{name}={value}", "[options]")


def _homes(name: str, value: str, run: Mapping[str, Any], methods: Sequence[str]) -> Iterator[Home]:
    from paceline.aggregation.secure.config import SecureConfig
    from paceline.core.config import RunConfig
    from paceline.tasks import task_options

    settled = {n: run.get(n, spec.default) for n, spec in RunConfig.model_fields.items()}
    pair = f"{name}={value}"
    have = []
    for method in methods:
        with contextlib.suppress(PacelineError):  # a method that is not there is told of once the line is right
            have += [method] * (name in {f.name for f in dataclasses.fields(registry.load("method", method))})
    if have:  # -o is for all methods on the line
        yield Home(f"a field of {have[0]}", f"-o {pair}" if len(have) == len(methods) else f"{have[0]}:{pair}", "[options]")
    try:
        known = task_options(str(settled["task"]), settled["model"])
    except PacelineError:
        known = set()
    if name in known:
        yield Home(f"an option of task {settled['task']}", f"--task-option {pair}", "[task_options]")
    if name in {f.name for f in dataclasses.fields(SecureConfig)}:
        yield Home("an option of secure aggregation", f"--secure-option {pair}", "[secure]")
    chosen = str(settled["fleet"])
    first = chosen.partition(":")[0]
    fleet = _owner("fleet", name, [first, *registry.names("fleet")], _FLEET)
    if fleet is not None:
        given = chosen if fleet == first else fleet
        text = f"{given}{',' if ':' in given else ':'}{pair}"
        yield Home(f"an option of fleet {fleet}", f"--fleet {text}", f'fleet = "{text}"')
    process = _owner("participation", name, sorted(registry.names("participation")), _PROCESS)
    if process is not None:
        text = f"{process}:{'FILE.csv' if process == 'trace' else 'RATE'},{pair}"
        yield Home(f"an option of participation {process}", f"--participation {text}", f'participation = "{text}"')


def _owner(kind: registry.Kind, option: str, names: Sequence[str], offered: set[str]) -> str | None:
    """Return the first of some names whose specification takes an option."""
    for name in names:
        with contextlib.suppress(PacelineError):  # what is not there, or broken, is told of once the line is right
            if option in set(registry.parameters(registry.load(kind, name))) - offered:
                return name
    return None


def correct(option: str, words: Sequence[str]) -> str:
    """Return a suggestion for an unknown option; empty if nothing has that name.

    Args:
        option: as typed, such as ``--lr``.
        words: the complete command line.
    """
    run: dict[str, Any] = {}
    with contextlib.suppress(ConfigError):  # a fault of the file is reported once the line is correct
        run = read_toml(Path(file)) if (file := _after("--config", words)) else {}
    run |= {name: value for name in ("task", "model", "fleet") if (value := _after(f"--{name}", words))}
    found = homes(option.lstrip("-"), _after(option, words) or "VALUE", run, _methods(words))
    if not found:
        return ""
    name = option.lstrip("-")
    return f"{name} is {' and '.join(h.owner for h in found)}: write {' or '.join(h.line for h in found)}"


def misplaced(name: str, run: Mapping[str, Any]) -> str:
    """Return a suggestion for an unknown key of a configuration file; empty if nothing has that name."""
    found = homes(name, "VALUE", run)
    if not found:
        return ""
    where = " or ".join(f"in the table {h.table}" if h.table.startswith("[") else f"as {h.table}" for h in found)
    return f"{name} is {' and '.join(h.owner for h in found)}: write it {where}"


def check_run(values: Mapping[str, Any], where: str = "") -> None:
    """Raise `ConfigError` with a suggestion if a run's configuration has misplaced keys or misnamed files.

    Args:
        values: the configuration as written by the user.
        where: source of the configuration, for the message.

    Raises:
        ConfigError: see above.
    """
    from paceline.core.config import RunConfig

    at = f"{where}: " if where else ""
    for name in (n for n in values if n not in RunConfig.model_fields):
        advice = misplaced(name, values)
        if advice:
            raise ConfigError(f"{at}{advice}")
    check_method(str(values.get("method", "fedavg")))
    task = str(values.get("task", ""))
    if task:
        check_task(task)
    for kind in ("model", "aggregation", "fleet", "participation", "adversary"):
        if isinstance(values.get(kind), str):
            registry.check(kind, with_query(values[kind])[0])
    given = values.get("metrics") or ()
    for text in [given] if isinstance(given, str) else given:
        registry.check("metric", str(text))
    if isinstance(engine := values.get("engine"), str) and engine != "grpc":
        registry.check("engine", engine)


def check_method(name: str) -> None:
    """Raise `ConfigError` with a suggestion if a method is given as a file name."""
    if ".py" in name:
        from paceline.core.importing import module_hint

        known = (registry.describe("method", n).target.partition(":")[2] for n in registry.names("method"))
        if hint := module_hint(name, {"Method", *known}):
            raise ConfigError(f"no method is called {name!r}; {hint}")
    registry.describe("method", name)


def check_task(name: str) -> None:
    """Raise `ConfigError` with what to write where no task has a name, or it is that of a file or a folder alone."""
    name = with_query(name)[0]
    try:
        registry.describe("task", name)
    except UnknownNameError:
        if not _like_a_file(name):
            raise
    else:
        if ":" not in name:
            return
    from paceline.data.files import file_hint

    if hint := file_hint(name):
        raise ConfigError(f"no task is called {name!r}; {hint}")
    registry.describe("task", name)


def _like_a_file(name: str) -> bool:
    path = Path(name).expanduser()
    return bool(path.suffix) or len(path.parts) > 1 or path.exists()


def _after(option: str, words: Sequence[str]) -> str:
    """Return the value of an option on a command line, or an empty text."""
    for at, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and at + 1 < len(words) and not words[at + 1].startswith("--"):
            return words[at + 1]
    return ""


def _methods(words: Sequence[str]) -> list[str]:
    """Return the methods on a command line, as far as they can be told."""
    found = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-") or before.startswith("--"):
            continue
        try:
            name = registry.parse("method", word).name
            if ":" in name and not is_import_path(name):
                continue
            registry.describe("method", name)
        except PacelineError:
            continue
        found.append(name)
    return found
