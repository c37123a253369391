"""Classes of a user's own modules, named as ``module:Class``: loaded, or what is wrong with the name or the module."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from paceline.core.errors import ConfigError, nearest
from paceline.core.failures import place_of

__all__ = ["as_module", "classes_in", "load_named", "module_hint"]


def load_named(name: str, what: str) -> Any:
    """Return what ``module:Class`` names.

    Raises `ConfigError` that names the file, line and error of a module that cannot be imported, the folders
    that were searched for one that is not there, and the nearest names for a class that it does not have.
    """
    module, _, attribute = name.partition(":")
    if module.endswith(".py") or "/" in module:
        raise ConfigError(
            f"{what} {name!r}: write {as_module(Path(module))}:{attribute or 'Class'}, a module's name in place of its file"
        )
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigError(f"{what} {name!r}: {_absent(module)}") from error
        raise _broken(what, name, error) from error
    except (Exception, SystemExit) as error:  # whatever a user's module does
        raise _broken(what, name, error) from error
    if not hasattr(loaded, attribute):
        own = [n for n, v in vars(loaded).items() if isinstance(v, type) and v.__module__ == loaded.__name__]
        raise ConfigError(f"{what} {name!r}: {loaded.__file__} has no {attribute!r}{nearest(attribute, own)}")
    return getattr(loaded, attribute)


def _absent(module: str) -> str:
    here = os.getcwd()
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    searched = ", ".join([here] if here in sys.path or "" in sys.path else []) or "the installed packages"
    searched += f", {', '.join(paths)} (PYTHONPATH)" if paths else ""
    file = f"{module.replace('.', '/')}.py"
    return f"there is no module {module!r} in {searched}; go to the folder that {file} is in, or set PYTHONPATH=THAT_FOLDER"


def _broken(what: str, name: str, error: BaseException) -> ConfigError:
    if isinstance(error, SyntaxError):
        place, told = f"{error.filename}:{error.lineno}", str(error.msg)
    else:
        place, told = place_of(error), str(error)
    return ConfigError(f"{what} {name!r} cannot be imported: {place}: {type(error).__name__}: {told}")


def as_module(file: Path) -> str:
    """Return how the module of a file is named from the current folder, or from the file's own."""
    path = file.resolve()
    near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(path.name)
    return ".".join(near.with_suffix("").parts)


def module_hint(name: str, bases: set[str]) -> str:
    """Return what to write in place of the name of a Python file; empty where `name` is none.

    Args:
        name: as typed.
        bases: names of the classes that what is looked for stands on.
    """
    file = Path(name.partition(":")[0])
    if file.suffix != ".py":
        return ""
    module = as_module(file)
    if not file.is_file():
        return f"write {module}:Class, a module and a class of it; there is no file {file}"
    found = classes_in(file, bases)
    return (
        f"write {' or '.join(f'{module}:{c}' for c in found)}"
        if found
        else f"write {module}:Class; no such class was found in {file}"
    )


def classes_in(file: Path, bases: set[str]) -> list[str]:
    """Return the classes of a file that stand on one of `bases`, without running it; none where it cannot be parsed."""
    try:
        parsed = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    found: list[str] = []
    for item in parsed.body:
        if isinstance(item, ast.ClassDef) and any(ast.unparse(b).rpartition(".")[2] in {*bases, *found} for b in item.bases):
            found.append(item.name)
    return found
