"""Classes whose constructor checks its arguments against the fields' annotations."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.fields import field_docs, fit, hints_of
from paceline.core.wording import setting

__all__ = ["Checked"]

T = TypeVar("T")


class Checked(ABCMeta):
    """Metaclass of dataclasses, such as `Method`, whose arguments are checked and converted when an object is made.

    `dataclasses.replace` makes an object; copying and unpickling do not.

    Raises:
        UnknownNameError: for an argument that is no field; lists the nearest fields.
        ConfigError: for a value of another type or outside the range of its field, a surplus or a missing argument.
    """

    def __call__(cls: type[T], *args: Any, **given: Any) -> T:
        """Make an object."""
        return cast("T", type.__call__(cls, **_arguments(cls, args, given)))

    @property
    def __signature__(cls) -> inspect.Signature:
        """Parameters of the constructor, for `help` and for editors."""
        made = inspect.signature(cls.__init__)  # type: ignore[misc]
        return made.replace(parameters=list(made.parameters.values())[1:])


def _arguments(cls: type, args: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a constructor by name, in the types of their fields."""
    takes = inspect.signature(cls).parameters
    places = [name for name, p in takes.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(args) > len(places):
        raise ConfigError(f"{cls.__name__} has {len(places)} fields, not {len(args)}: {', '.join(places)}; give them by name")
    values = dict(zip(places, args, strict=False))
    if twice := sorted(values.keys() & given.keys()):
        raise ConfigError(f"{cls.__name__}: {', '.join(twice)} is given by position and by name; give it once")
    values |= given
    if unknown := [name for name in values if name not in takes]:
        raise _unknown(cls, unknown[0], values[unknown[0]], takes)
    if absent := [name for name, p in takes.items() if p.default is p.empty and name not in values]:
        raise ConfigError(f"{cls.__name__} needs {' and '.join(f'{name}=VALUE' for name in absent)}")
    hints, docs = hints_of(cls), field_docs(cls)
    return {
        name: fit(value, hints.get(name, Any), f"{cls.__name__} field {name}={value!r}", docs.get(name, ""))
        for name, value in values.items()
    }


def _unknown(cls: type, name: str, value: Any, known: Iterable[str]) -> ConfigError:
    from paceline.core.config import RunConfig

    if name in RunConfig.model_fields:
        return ConfigError(f"{name} is no field of {cls.__name__} but an option of the run: {setting(name, value)}")
    return UnknownNameError(f"{cls.__name__} field", name, known)
