"""Spelling of partitions: ``NAME[:VALUE]`` as a name and a value, and the one spelling that seeds the random stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.parsing import Spec
from paceline.core.parsing import value as read_value
from paceline.data.embedding import EmbeddingLaw

__all__ = ["canonical", "parse_partition"]

_TAKES = {"iid": None, "dirichlet": "a number above 0", "shards": "a whole number of classes, at least 1"}
_TAKES |= {"quantity": "a number above 0", "natural": None}
_TAKES |= {"groups": "classes of each group", "longtail": "an imbalance above 0 and at most 1"}
_TAKES |= {"domains": "a number above 0, or no value", "embedding": "a number above 0, and options"}


def parse_partition(text: str) -> tuple[str, Any]:
    """Parse ``iid``, ``dirichlet:0.3`` ... into a name and a value.

    Args:
        text: name of the partitioner, with its value after a colon.

    Returns:
        the name, and a number; for groups the classes of each; for longtail the imbalance and the concentration; or None.

    Raises:
        UnknownNameError: unknown partitioner.
        ConfigError: invalid value.

    Example:
        >>> parse_partition("dirichlet:0.3"), parse_partition("groups:0-2/3")
        (('dirichlet', 0.3), ('groups', ((0, 1, 2), (3,))))
    """
    name, colon, value = text.partition(":")
    if name not in _TAKES:
        raise UnknownNameError("partition", name, _TAKES)
    takes = _TAKES[name]
    if takes is None or (name == "domains" and not colon):
        if colon:
            raise ConfigError(f"partition {text!r}: {name} does not take a value")
        return name, None
    if name == "groups":
        return name, _classes_of_groups(text, value)
    if name == "longtail":
        return name, _tail(text, value)
    if name == "embedding":
        return name, _law(text)
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf") or (name == "shards" and number != int(number)):
        raise ConfigError(f"partition {text!r}: {name} requires {takes}, as in {name}:{2 if name == 'shards' else 0.3}")
    return name, number


def canonical(text: str) -> str:
    """Return the one spelling of a partition's text that seeds its random stream: equal values are split equally.

    Example:
        >>> canonical("dirichlet:0.10"), canonical("groups:0,1,2/3")
        ('dirichlet:0.1', 'groups:0-2/3')
    """
    name, value = parse_partition(text)
    if value is None:
        return name
    if name == "groups":
        return f"{name}:{'/'.join(_runs(classes) for classes in value)}"
    if isinstance(value, EmbeddingLaw):  # the same draws whatever is clustered
        value = value.alpha
    numbers = [n for n in value if n is not None] if isinstance(value, tuple) else [value]
    return f"{name}:{'/'.join(repr(float(n)).removesuffix('.0') for n in numbers)}"


def _runs(classes: Sequence[int]) -> str:
    """Return classes as ranges, in their order."""
    parts: list[list[int]] = []
    for number in classes:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _classes_of_groups(text: str, value: str) -> tuple[tuple[int, ...], ...]:
    groups = []
    for part in value.split("/"):
        classes: list[int] = []
        for piece in part.split(","):
            first, dash, last = piece.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()) or int(first) > int(last or first):
                raise ConfigError(f"partition {text!r}: {piece!r} is not a class or a range of classes; write groups:0-3/4-6,9")
            classes += range(int(first), int(last or first) + 1)
        groups.append(tuple(dict.fromkeys(classes)))
    return tuple(groups)


def _law(text: str) -> EmbeddingLaw:
    spec = Spec.parse(text, "partition", ("embedding",), takes="alpha")
    try:
        return EmbeddingLaw(**{"alpha": read_value(spec.value)} if spec.value else {}, **spec.options)
    except ConfigError as error:
        raise ConfigError(f"partition {text!r}: {error}; write it as in embedding:0.5,by=labels,least=50") from error


def _tail(text: str, value: str) -> tuple[float, float | None]:
    factor, slash, alpha = value.partition("/")
    try:
        numbers = float(factor), float(alpha) if slash else None
    except ValueError:
        numbers = float("nan"), None
    if not 0 < numbers[0] <= 1 or not 0 < (1.0 if numbers[1] is None else numbers[1]) < float("inf"):
        raise ConfigError(
            f"partition {text!r}: longtail requires an imbalance from 0 to 1, as in longtail:0.05 or longtail:0.05/0.5"
        )
    return numbers
