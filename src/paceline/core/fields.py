"""Fields with ranges: annotations such as ``mu: NonNegative[float] = 0.01``, and the check of a value against its annotation.

Methods are checked when they are made (`paceline.core.method.Method`); fleets, models and other things that are built from
a specification when they are built (`paceline.core.parsing.fitted`).
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from paceline.core.errors import ConfigError

__all__ = [
    "Finite",
    "Minority",
    "NonNegative",
    "Positive",
    "PositiveShare",
    "Share",
    "field_docs",
    "fit",
    "hints_of",
    "plain_type",
    "range_of",
]

N = TypeVar("N", bound=float)

Positive = Annotated[N, Gt(0)]
"""A number above 0: ``steps: Positive[int] = 10``."""
NonNegative = Annotated[N, Ge(0)]
"""A number of at least 0: ``lr: NonNegative[float] | None = None``."""
Share = Annotated[float, Ge(0), Le(1)]
"""A number from 0 to 1."""
PositiveShare = Annotated[float, Gt(0), Le(1)]
"""A number above 0 and at most 1."""
Minority = Annotated[float, Gt(0), Le(0.5)]
"""A share above 0 of at most half of the clients."""
Finite = Annotated[float, Gt(-math.inf), Lt(math.inf)]
"""Any number that is not infinite."""

_WORDS = {Gt: ("gt", "above"), Ge: ("ge", "at least"), Lt: ("lt", "below"), Le: ("le", "at most")}
_NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}


def fit(value: Any, hint: Any, told: str, doc: str = "") -> Any:
    """Return a value in the type of its annotation; text is read as a number where a number is needed.

    Args:
        value: as given in Python, in a file or on the command line.
        hint: the annotation, with its range.
        told: what the value is of, for the message, such as ``FedProx field mu=-1``.
        doc: what the field means, for the message.

    Raises:
        ConfigError: if the value has another type, is outside the range, or is NaN.

    Example:
        >>> fit("0.1", Share, "mu='0.1'"), fit(None, Positive[int] | None, "steps=None")
        (0.1, None)
        >>> fit(0, Positive[int], "steps=0", "local steps")
        Traceback (most recent call last):
        paceline.core.errors.ConfigError: steps=0: it must be a whole number above 0 (local steps)
    """
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # a number of numpy or torch
    kinds = {kind for kind, _ in _members(hint) if isinstance(kind, type)}
    if str in kinds and type(value) in (int, float) and not kinds & {int, float}:
        return str(value)
    reason = "it is not a number"
    nan = isinstance(value, float) and math.isnan(value)
    if not nan and not (isinstance(value, bool) and kinds & {int, float} and bool not in kinds):
        try:
            return TypeAdapter(hint).validate_python(value)
        except PydanticUserError:  # a type that pydantic does not know
            return value
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
    wanted, meaning = _wanted(hint), doc.rstrip(".")
    raise ConfigError(f"{told}: {f'it must be {wanted}' if wanted else reason}{f' ({meaning})' if meaning else ''}")


def hints_of(make: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a class or function, with ranges; empty if only a type checker resolves them."""
    own = vars(make).get("__init__") if isinstance(make, type) and "__dataclass_fields__" not in vars(make) else make
    try:
        return get_type_hints(own if own is not None else make, include_extras=True)
    except (NameError, TypeError):
        return {}


def range_of(hint: Any) -> str:
    """Return the range of an annotation's numbers in words; empty if it has none.

    Example:
        >>> range_of(Positive[int] | None), range_of(Share), range_of(Minority), range_of(float)
        ('above 0', 'from 0 to 1', 'above 0 and at most 0.5', '')
    """
    return next((text for kind, bounds in _members(hint) if kind in _NUMBERS and (text := _range(bounds))), "")


def plain_type(hint: Any) -> str:
    """Return an annotation as text, without its range.

    Example:
        >>> plain_type(Positive[int] | None), plain_type(Literal["a", "b"]), plain_type(tuple[str, ...])
        ('int | None', "'a' | 'b'", 'tuple[str, ...]')
    """
    return " | ".join(" | ".join(map(repr, get_args(k))) if get_origin(k) is Literal else _name(k) for k, _ in _members(hint))


def field_docs(cls: type) -> dict[str, str]:
    """Return the documentation of each field, from the ``Args:`` of the class and its bases; the most derived class wins.

    A field mentioned as `name` in the summary line of a class is documented by that line.
    """
    found: dict[str, str] = {}
    for above in reversed(cls.__mro__):
        summary = " ".join(inspect.cleandoc(above.__doc__ or "").split("\n\n")[0].split())
        found |= dict.fromkeys(re.findall(r"`(\w+)`", summary), summary)
        section = inspect.cleandoc(above.__doc__ or "").partition("Args:\n")[2].split("\n\n")[0]
        for names, text in re.findall(r"^ +([\w, ]+): (.+(?:\n {5,}.+)*)", section, flags=re.MULTILINE):
            for name in names.split(","):
                found[name.strip()] = " ".join(text.split())
    return found


def _members(hint: Any, bounds: Sequence[Any] = ()) -> Iterator[tuple[Any, Sequence[Any]]]:
    """Yield the types of a union, each with its bounds."""
    origin = get_origin(hint)
    if origin is Annotated:
        yield from _members(hint.__origin__, [*bounds, *(b for b in hint.__metadata__ if type(b) in _WORDS)])
    elif origin in (Union, UnionType):
        for member in get_args(hint):
            yield from _members(member, bounds)
    else:
        yield hint, bounds


def _range(bounds: Sequence[Any]) -> str:
    limits = {type(bound): getattr(bound, _WORDS[type(bound)][0]) for bound in bounds}
    if limits == {Gt: -math.inf, Lt: math.inf}:
        return "finite"
    if limits.keys() == {Ge, Le}:
        return f"from {limits[Ge]} to {limits[Le]}"
    return " and ".join(f"{_WORDS[kind][1]} {limit}" for kind, limit in limits.items())


def _wanted(hint: Any) -> str:
    """Return the values of an annotation in words; empty if it has types that have none."""
    texts = []
    for kind, bounds in _members(hint):
        if kind in _NUMBERS:
            text = _range(bounds)
            form = "a finite number" if text == "finite" else f"{_NUMBERS[kind]} {'of ' * text.startswith('at')}{text}"
            texts.append(form.strip())
        elif get_origin(kind) is Literal:
            texts += map(repr, get_args(kind))
        elif kind in (bool, NoneType, str):
            texts.append({bool: "true or false", NoneType: "None", str: "a text"}[kind])
        else:
            return ""
    return f"{', '.join(texts[:-1])} or {texts[-1]}" if len(texts) > 1 else "".join(texts)


def _name(kind: Any) -> str:
    return "None" if kind is NoneType else kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
