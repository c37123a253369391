"""Registry of names: methods, tasks, models, metrics, engines, aggregations, fleets, participation processes, adversaries,
trackers.

An object is named by a built-in name (`BUILT_IN`), by an entry point of an installed package (one group per kind, see
`KINDS`), or by an import path ``package.module:Name``. Listing names imports nothing. A name registered twice is an error
that lists both owners: no package or user class can replace another one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from paceline.core.errors import ConfigError, NameClashError, UnknownNameError
from paceline.core.importing import installed, load_built_in, load_entry, load_named
from paceline.core.kinds import ALIASES, BUILT_IN, KINDS, Kind

if TYPE_CHECKING:
    from paceline.core.method import Method
    from paceline.core.parsing import Spec

__all__ = [
    "BUILT_IN",
    "KINDS",
    "Kind",
    "Registered",
    "build",
    "check",
    "describe",
    "find_method",
    "load",
    "method_names",
    "name_of",
    "names",
    "parameters",
    "parse",
]


class Registered(NamedTuple):
    """One registered name.

    Args:
        kind: kind of the object.
        name: name as written in a run's configuration.
        target: ``package.module:Name``.
        package: registering package: ``paceline``, an installed distribution, or empty for an import path.
    """

    kind: Kind
    name: str
    target: str
    package: str

    def __str__(self) -> str:
        """Return the import path and the package that registers it."""
        return f"{self.target} of {self.package}" if self.package else self.target


def names(kind: Kind) -> list[str]:
    """Return the names of a kind: built-in ones, then those of installed packages. Imports nothing.

    Raises:
        NameClashError: if a name is registered twice.

    Example:
        >>> "stragglers" in names("fleet")
        True
    """
    return [_one(kind, claims).name for claims in _table(kind).values()]


def describe(kind: Kind, name: str) -> Registered:
    """Return the registry entry of a name, without importing its target.

    Raises:
        UnknownNameError: if the name is not registered; lists the nearest names.
        NameClashError: if the name is registered twice.

    Example:
        >>> describe("method", "fedprox").target
        'paceline.methods.optimisation.fedprox:FedProx'
    """
    table = _table(kind)
    claims = table.get(ALIASES.get(kind, {}).get(name, name))
    if claims:
        return _one(kind, claims)
    if ":" in name:
        return Registered(kind, name, name, "")
    raise UnknownNameError(kind, name, [*table, *ALIASES.get(kind, ())])


def check(kind: Kind, text: str) -> None:
    """Check the name in a specification without importing its target; raise the errors of `describe` and `parse`."""
    describe(kind, parse(kind, text).name)


@overload
def load(kind: Literal["method"], name: str) -> type[Method]: ...
@overload
def load(kind: Kind, name: str) -> Any: ...
def load(kind: Kind, name: str) -> Any:
    """Import and return the object of a name.

    Args:
        kind: kind of the object.
        name: a registered name, or ``package.module:Name``.

    Raises:
        UnknownNameError: if the name is not registered; lists the nearest names.
        NameClashError: if the name is registered twice.
        PolicyError: if `paceline.core.importing.imports_from` does not allow the module.
        ConfigError: if the import fails (with file and line), or the object is not of the kind.
    """
    entry = describe(kind, name)
    found = _imported(entry)
    if kind == "method":
        from paceline.core.method import Method

        if not (isinstance(found, type) and issubclass(found, Method)):
            raise ConfigError(f"{name!r} is no Method: a method is a class below paceline.Method, see docs/writing_a_method.md")
    elif not callable(found) and kind != "task":
        raise ConfigError(f"{kind} {name!r} ({entry}) is a {type(found).__name__}; it should be {KINDS[kind].what}")
    return found


def find_method(name: str) -> type[Method]:
    """Return a method's class; see `load`."""
    return load("method", name)


def method_names() -> list[str]:
    """Return the names of all installed methods; see `names`."""
    return names("method")


def name_of(kind: Kind, thing: Any) -> str:
    """Return the name under which `load` finds a class or function.

    Args:
        kind: kind of the object.
        thing: a class or function, or an instance of a class.

    Raises:
        ConfigError: if the object is not a global name of a module, so that another process could not import it.

    Example:
        >>> from paceline.methods.optimisation.fedprox import FedProx
        >>> name_of("method", FedProx(mu=0.1))
        'fedprox'
    """
    made = thing if isinstance(thing, type) or hasattr(thing, "__qualname__") else type(thing)
    target = f"{made.__module__}:{made.__qualname__}"
    for claims in _table(kind).values():
        if len(claims) == 1 and claims[0].target == target:
            return claims[0].name
    if getattr(sys.modules.get(made.__module__), made.__qualname__, None) is not made:
        raise ConfigError(f"{kind} {target} has no name that finds it again; define it at the top of a module")
    return target


def parse(kind: Kind, text: str) -> Spec:
    """Parse a specification ``NAME[:VALUE][,KEY=VALUE...]`` of a kind; see `paceline.core.parsing.Spec`.

    Example:
        >>> parse("adversary", "alie:0.2,z=1.5").options
        {'z': 1.5}
    """
    from paceline.core.parsing import Spec

    return Spec.parse(text, kind, _table(kind), KINDS[kind].value)


def parameters(make: Callable[..., Any]) -> dict[str, bool]:
    """Return the parameters of a class or function that can be passed by name, and whether each is required."""
    import inspect

    found = inspect.signature(make).parameters
    return {name: p.default is p.empty for name, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def build(kind: Kind, spec: str | Spec, offered: Mapping[str, Any], also: Mapping[str, Any] | None = None) -> Any:
    """Build the object of a specification from its options and the run's arguments.

    Args:
        kind: kind of the object.
        spec: specification, as text or parsed.
        offered: arguments from the run; passed if the object has such a parameter. Options cannot set them.
        also: further options, overridden by those of the specification.

    Raises:
        UnknownNameError: if the name or an option does not exist.
        ConfigError: if a value is invalid or a required option is missing.
    """
    from paceline.core.parsing import fitted

    spec = parse(kind, spec) if isinstance(spec, str) else spec
    make = load(kind, spec.name)
    takes = parameters(make)
    free = [name for name in takes if name not in offered]
    options = fitted(make, {**(also or {}), **spec.options}, f"{kind} {spec.name!r}", free)
    if absent := [name for name in free if takes[name] and name not in options]:
        raise ConfigError(f"{kind} {spec.text!r} needs {' and '.join(f'{name}=VALUE' for name in absent)}")
    return make(**{name: value for name, value in offered.items() if name in takes}, **options)


def _imported(entry: Registered) -> Any:
    if entry.package == "paceline":
        return load_built_in(entry.target, f"{entry.kind} {entry.name!r}")
    if entry.package:
        return load_entry(installed(KINDS[entry.kind].group)[entry.name][0])
    return load_named(entry.target, entry.kind)


def _table(kind: Kind) -> dict[str, list[Registered]]:
    """Return the entries registered under each name of a kind."""
    found = {name: [Registered(kind, name, target, "paceline")] for name, target in BUILT_IN[kind].items()}
    for name, points in sorted(installed(KINDS[kind].group).items()):
        owners = [Registered(kind, name, p.value, p.dist.name if p.dist else "an unnamed package") for p in points]
        found.setdefault(ALIASES.get(kind, {}).get(name, name), []).extend(owners)
    return found


def _one(kind: Kind, claims: list[Registered]) -> Registered:
    if len(claims) > 1:
        raise NameClashError(kind, claims[0].name, [str(entry) for entry in claims])
    return claims[0]
