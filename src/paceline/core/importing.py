"""Load objects of user modules, named as ``module:Class`` or by an entry point, and explain failures."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.core.errors import ConfigError, MissingExtraError, PacelineError, PolicyError, nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "as_module",
    "classes_in",
    "import_extra",
    "imports_from",
    "installed",
    "is_import_path",
    "load_built_in",
    "load_entry",
    "load_named",
    "module_hint",
]

_allowed: ContextVar[frozenset[str] | None] = ContextVar("allowed", default=None)


@contextmanager
def imports_from(modules: Collection[str] | None) -> Iterator[None]:
    """Restrict `load_named` in this context to objects defined in these modules (or submodules); None allows all.

    A client executes a server's requests in such a context, so that a name from the network cannot import other modules.
    """
    token = _allowed.set(None if modules is None else frozenset(modules))
    try:
        yield
    finally:
        _allowed.reset(token)


def installed(group: str) -> Mapping[str, list[EntryPoint]]:
    """Return the entry points of a group ``paceline.…`` by name, without importing their targets."""
    found = _entry_points(tuple((place, os.stat(place).st_mtime if os.path.isdir(place) else 0.0) for place in sys.path))
    return found.get(group, {})


@lru_cache(maxsize=4)
def _entry_points(path: tuple[tuple[str, float], ...]) -> dict[str, dict[str, list[EntryPoint]]]:
    """Read the entry points for Paceline, by group and name; the key `path` has the folders of packages and when they changed."""
    from importlib.metadata import entry_points

    found: dict[str, dict[str, list[EntryPoint]]] = {}
    every = entry_points()
    for group in (name for name in every.groups if name.startswith("paceline.")):
        for point in every.select(group=group):
            found.setdefault(group, {}).setdefault(point.name, []).append(point)
    return found


def is_import_path(text: str) -> bool:
    """Return whether a text has the form ``package.module:Name``.

    Example:
        >>> is_import_path("my_package.methods:MyMethod")
        True
    """
    module, _, attribute = text.partition(":")
    return attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load_entry(point: EntryPoint) -> Any:
    """Return the object of an entry point.

    Raises:
        ConfigError: if it cannot be loaded; states the entry point, its package, and file, line and error.
    """
    try:
        return point.load()
    except (Exception, SystemExit) as error:  # a package's module may raise anything
        owner = point.dist.name if point.dist else "a package"
        what = f"the entry point {point.name} = {point.value} of {owner} cannot be loaded"
        raise ConfigError(f"{what}: {_cause(error)}; fix or uninstall the package") from error


def load_built_in(target: str, what: str) -> Any:
    """Return an object of Paceline itself.

    Args:
        target: import path.
        what: kind and name of the object, for the message.

    Raises:
        ConfigError: if it cannot be imported, because a package is missing or broken; states file, line and error.
        MissingExtraError: if it needs an optional dependency.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except PacelineError:
        raise
    except Exception as error:  # whatever a broken package raises
        cure = "`paceline doctor` checks the installation; otherwise reinstall Paceline"
        raise ConfigError(f"{what} ({target}) cannot be imported: {_cause(error)}; {cure}") from error


def load_named(name: str, what: str) -> Any:
    """Return the object named by ``module:Class``.

    Args:
        name: import path.
        what: kind of the object, for error messages.

    Raises:
        ConfigError: if the module cannot be imported (with file, line and error), is not found (with the folders searched),
            or has no such class (with the nearest names).
        PolicyError: if `imports_from` does not allow the module.
    """
    module, _, attribute = name.partition(":")
    allowed = _allowed.get()
    if allowed is not None and module not in allowed:
        raise PolicyError([f"{what} {name!r} is not registered on this client; add its module to client.modules to allow it"])
    if module.endswith(".py") or "/" in module:
        raise ConfigError(
            f"{what} {name!r}: write {as_module(Path(module))}:{attribute or 'Class'}, with the module's name instead of its file"
        )
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigError(f"{what} {name!r}: {_absent(module)}") from error
        raise _broken(what, name, error) from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise _broken(what, name, error) from error
    if not hasattr(loaded, attribute):
        own = [n for n, v in vars(loaded).items() if isinstance(v, type) and v.__module__ == loaded.__name__]
        raise ConfigError(f"{what} {name!r}: {loaded.__file__} has no {attribute!r}{nearest(attribute, own)}")
    found = getattr(loaded, attribute)
    if allowed is not None:  # names that the module itself imports, such as subprocess.Popen, are not allowed
        home = str(getattr(found, "__module__", module))
        same = sys.modules.get(home) is loaded  # a script has two names in a process that it started
        if not same and not any(home == known or home.startswith(f"{known}.") for known in allowed):
            raise PolicyError([f"{what} {name!r} is defined in {home}; add that module to client.modules to allow it"])
    return found


def _absent(module: str) -> str:
    here = os.getcwd()
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    searched = ", ".join([here] if here in sys.path or "" in sys.path else []) or "the installed packages"
    searched += f", {', '.join(paths)} (PYTHONPATH)" if paths else ""
    file = f"{module.replace('.', '/')}.py"
    return f"no module {module!r} in {searched}; run from the folder that contains {file}, or set PYTHONPATH to that folder"


def _broken(what: str, name: str, error: BaseException) -> ConfigError:
    return ConfigError(f"{what} {name!r} cannot be imported: {_cause(error)}")


def _cause(error: BaseException) -> str:
    """Return place, class and message of the error of an import."""
    from paceline.core.failures import place_of

    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    return f"{place_of(error)}: {type(error).__name__}: {error}"


def as_module(file: Path) -> str:
    """Return the module name of a file, relative to the current folder, or else to the file's own folder."""
    path = file.resolve()
    near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(path.name)
    return ".".join(near.with_suffix("").parts)


def module_hint(name: str, bases: set[str]) -> str:
    """Return what to write instead of the name of a Python file; empty if `name` is not one.

    Args:
        name: the text that was typed.
        bases: names of the base classes of the object that is needed.
    """
    file = Path(name.partition(":")[0])
    if file.suffix != ".py":
        return ""
    module = as_module(file)
    if not file.is_file():
        return f"write {module}:Class, a module and one of its classes; the file {file} does not exist"
    found = classes_in(file, bases)
    return (
        f"write {' or '.join(f'{module}:{c}' for c in found)}"
        if found
        else f"write {module}:Class; {file} contains no suitable class"
    )


def classes_in(file: Path, bases: set[str]) -> list[str]:
    """Return the classes of a file that derive from one of `bases`, without running it; empty if it cannot be parsed."""
    try:
        parsed = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    found: list[str] = []
    for item in parsed.body:
        if isinstance(item, ast.ClassDef) and any(ast.unparse(b).rpartition(".")[2] in {*bases, *found} for b in item.bases):
            found.append(item.name)
    return found


def import_extra(module: str, extra: str) -> Any:
    """Import a module of an extra.

    Args:
        module: its name.
        extra: the extra that installs it.

    Raises:
        MissingExtraError: it cannot be imported; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(module.partition(".")[0], extra) from error
