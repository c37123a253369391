"""How a module is made again in another process: import path and arguments, as plain values that JSON holds.

Only classes and functions that can be imported by name are described. When a module is made again, a name from the file is
called only if it is a module of torch, one of Paceline's makers of models, or code of the user's own, see `find`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import sys
import sysconfig
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paceline.core.errors import ConfigError
from paceline.core.importing import is_import_path
from paceline.models.build import build
from paceline.tasks.start import without_start

__all__ = ["NotDescribed", "described", "find", "made"]

_MAKERS = ("paceline.models", "paceline.tasks.scaling", "paceline.tasks.vision", "paceline.tasks.texts")
"""Modules of Paceline whose functions make models."""


class NotDescribed(ValueError):
    """A module cannot be made again from a description; the message says why."""


def described(make: Any) -> dict[str, Any]:
    """Return how to call what makes a module.

    Args:
        make: a class or function, or a `functools.partial` of one with plain arguments.

    Raises:
        NotDescribed: it has no name that finds it again, or an argument is no plain value.

    Example:
        >>> described(functools.partial(nn.Linear, 3, out_features=2))
        {'call': 'torch.nn.modules.linear:Linear', 'arguments': [3], 'options': {'out_features': 2}}
    """
    make = without_start(make)
    if isinstance(make, functools.partial):
        inner = described(make.func)
        return inner | {
            "arguments": [*inner["arguments"], *map(_plain, make.args)],
            "options": {**inner["options"], **{name: _plain(value) for name, value in make.keywords.items()}},
        }
    return {"call": _name(make), "arguments": [], "options": {}}


def _name(thing: Any) -> str:
    module, name = getattr(thing, "__module__", ""), getattr(thing, "__qualname__", "")
    if isinstance(thing, nn.Module) or not name or module == "copy":
        raise NotDescribed("the model was given as a module; give its class, or a function that makes one")
    if module == "__main__" or "<" in name or "." in name:
        raise NotDescribed(f"{name} is defined in a script or inside a function; define it at the top of a module")
    if getattr(sys.modules.get(module), name, None) is not thing:
        raise NotDescribed(f"{module}:{name} does not find it again")
    return f"{module}:{name}"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple | list):
        return {"tuple" if isinstance(value, tuple) else "list": [_plain(part) for part in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _plain(part) for key, part in value.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"object": {"call": _name(type(value)), "arguments": [], "options": fields}}
    if isinstance(value, nn.Module) or not callable(value):
        raise NotDescribed(f"an argument of the model is a {type(value).__name__}, which is not saved")
    return {"make": described(value)}


def made(recipe: Mapping[str, Any], modules: Collection[str] = ()) -> Any:
    """Call what `described` describes.

    Args:
        recipe: the description.
        modules: installed modules that may be imported too.

    Raises:
        ConfigError: a name cannot be imported, or is not allowed.
    """
    arguments, options = _arguments(recipe, modules)
    make = find(recipe["call"], modules)
    if make is build and arguments and is_import_path(str(arguments[0])):
        find(arguments[0], modules)  # which `build` calls
    return make(*arguments, **options)


def _made_with(recipe: Mapping[str, Any], modules: Collection[str], *more: Any, **options: Any) -> Any:
    """Call what is described, with further arguments."""
    if more or options:
        arguments, known = _arguments(recipe, modules)
        return find(recipe["call"], modules)(*arguments, *more, **known, **options)
    return made(recipe, modules)


def _arguments(recipe: Mapping[str, Any], modules: Collection[str]) -> tuple[list[Any], dict[str, Any]]:
    options = {name: _value(value, modules) for name, value in recipe.get("options", {}).items()}
    return [_value(value, modules) for value in recipe.get("arguments", ())], options


def _value(value: Any, modules: Collection[str]) -> Any:
    if not isinstance(value, Mapping):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "dtype":
            found = getattr(torch, str(inner), None)
            if isinstance(found, torch.dtype):
                return found
        case "tuple" | "list":
            return (tuple if kind == "tuple" else list)(_value(part, modules) for part in inner)
        case "dict":
            return {key: _value(part, modules) for key, part in inner.items()}
        case "object":
            return made(inner, modules)
        case "make":
            return functools.partial(_made_with, inner, tuple(modules))
    raise ConfigError(f"the description of the model has the value {kind!r}, which this version of Paceline does not know")


def find(name: str, modules: Collection[str] = ()) -> Any:
    """Return the class or function of an import path, if a description of a model may call it.

    Args:
        name: ``module:Name``.
        modules: installed modules that may be imported too.

    Raises:
        ConfigError: it cannot be imported, or is not allowed.

    Example:
        >>> find("torch.nn.modules.linear:Linear") is nn.Linear
        True
        >>> find("os:system")
        Traceback (most recent call last):
            ...
        paceline.core.errors.ConfigError: the description of the model names os:system, which is no code of a model; ...
    """
    module, _, attribute = name.partition(":")
    root = module.partition(".")[0]
    own = root not in ("torch", "paceline")
    if own and (root in sys.stdlib_module_names or (root not in {m.partition(".")[0] for m in modules} and _installed(root))):
        raise ConfigError(
            f"the description of the model names {name}, which is no code of a model; if it is an installed package that you trust, "
            f"name its module: modules=[{root!r}], or --module {root}"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the model's class {name} cannot be imported ({error}); run in the folder of that module, pass model=, or export the model"
        ) from error
    if isinstance(found, type) and (issubclass(found, nn.Module) or (dataclasses.is_dataclass(found) and root != "torch")):
        return found
    if isinstance(found, types.FunctionType) and (own or any(module == m or module.startswith(f"{m}.") for m in _MAKERS)):
        return found
    raise ConfigError(f"the description of the model names {name}, which makes no model; pass model= in place of it")


def _installed(root: str) -> bool:
    """Return whether a module is part of an installed package, and so no code of the user's own."""
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return False
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    packages = [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")]
    return any(Path(place).resolve().is_relative_to(package) for place in places if place for package in packages)
