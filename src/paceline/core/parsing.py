"""Parsing of command-line values: ``name=value``, ``name:value,key=value`` and TOML files."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.fields import fit, hints_of
from paceline.core.importing import is_import_path

__all__ = ["Spec", "fitted", "pairs", "read_toml", "split_top", "value", "with_options", "with_query"]

PAIRED = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class Spec:
    """A name with options, on the command line, in a file or in Python: ``NAME[:VALUE][,KEY=VALUE...]``.

    Methods, models, fleets, participation processes, adversaries, engines, aggregations, tunings and faults are all
    written in this way: ``clip:network=true,lr=0.1``, ``markov:0.05-1,step=0.1``, ``mylab.fleets:Trams:share=0.2``.

    Args:
        text: the specification as typed; label of the row in tables.
        name: the part before the options: a registered name or ``package.module:Name``.
        options: values by key, each read by `value`.
        value: text of the value without a key, for kinds that take one; otherwise empty.
    """

    text: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    value: str = ""

    @staticmethod
    def parse(text: str, what: str = "method", known: Container[str] = (), takes: str = "", modules: bool = True) -> Spec:
        """Parse a specification; a value may contain brackets and quotes with commas and colons in them.

        Args:
            text: as typed.
            what: kind of thing, for messages.
            known: names; what follows one of them is the second half of ``module:Name`` only where there is such a module
                and the kind takes no value.
            takes: name of the value that comes first without a key, such as the share of an adversary; empty for none.
            modules: whether ``module:Name`` is a name.

        Raises:
            ConfigError: the text has no name, or an option is malformed or given twice.

        Example:
            >>> Spec.parse("clip:network=true,lr=0.1").options
            {'network': True, 'lr': 0.1}
            >>> Spec.parse("alie:0.2,z=1.5", takes="share").value
            '0.2'
        """
        name, *rest = (part.strip() if i < 2 else part for i, part in enumerate(split_top(text.strip(), ":")))
        if modules and rest and rest[0].isidentifier() and not (name in known and (takes or find_spec(name) is None)):
            name, rest = f"{name}:{rest[0]}", rest[1:]
        if not name:
            raise ConfigError(
                f"{text!r} does not name a {what}; write NAME or NAME:{f'{takes.upper()},' * bool(takes)}option=value"
            )
        tail, first = ":".join(rest), ""
        key, equals, _ = tail.partition("=")
        if takes and not (equals and key.strip().isidentifier()):
            first, _, tail = tail.partition(",")
        options: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in split_top(tail, ","))):
            key, equals, given = part.partition("=")
            key = key.strip().replace("-", "_")
            if not equals or not key or key in options:
                raise ConfigError(f"{what} {text!r}: malformed or repeated option; write each one once, as {key or 'option'}=VALUE")
            options[key] = value(given)
        return Spec(text, name, options, first.strip())


def split_top(text: str, mark: str) -> list[str]:
    """Split `text` at each `mark` outside quotes and brackets.

    Example:
        >>> split_top("a=[1,2],b=3", ",")
        ['a=[1,2]', 'b=3']
    """
    parts, start, closers, quote = [], 0, [], ""
    for at, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in PAIRED:
            closers.append(PAIRED[sign])
        elif closers and sign == closers[-1]:
            closers.pop()
        elif sign == mark and not closers:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def with_query(name: str, form: str = "name?option=value") -> tuple[str, dict[str, Any]]:
    """Return a name and the options behind its question mark; the options of files, ``kind:/path?...``, stay where they are.

    Args:
        name: a registered name or ``package.module:Name``, with ``?option=value&option=value`` or without.
        form: expected form, for error messages.

    Raises:
        ConfigError: an option has no name or no ``=``.

    Example:
        >>> with_query("lab.data:make?samples=40&kind=wide"), with_query("csv:/data/a.csv?target=y")
        (('lab.data:make', {'samples': 40, 'kind': 'wide'}), ('csv:/data/a.csv?target=y', {}))
    """
    plain, mark, query = name.partition("?")
    registered = plain.replace("-", "_").isidentifier() or plain.replace("-", "")[:1].isdigit()
    if not mark or not (is_import_path(plain) or (registered and "." not in plain and "/" not in plain)):
        return name, {}
    return plain, pairs(filter(None, query.split("&")), form)


def with_options(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return a configuration in which options behind the question marks of some fields are in the field ``task_options``.

    Args:
        values: fields by name; options in ``task_options`` override.
        names: fields that may have a question mark.
    """
    out: dict[str, Any] = dict(values)
    found: dict[str, Any] = {}
    for name in names:
        if isinstance(out.get(name), str) and "?" in out[name]:
            out[name], options = with_query(out[name])
            found |= options
    return out | {"task_options": found | dict(out.get("task_options") or {})} if found else out


def pairs(texts: Iterable[str] | None, form: str = "name=value") -> dict[str, Any]:
    """Parse ``name=value`` texts into a dict; dashes in names become underscores.

    Args:
        texts: the texts.
        form: expected form, for error messages.

    Raises:
        ConfigError: a text has no name or no ``=``.
    """
    found = {}
    for text in texts or ():
        name, equals, rest = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ConfigError(f"{text!r} is not of the form {form}")
        found[name] = value(rest)
    return found


def value(text: str) -> Any:
    """Parse a TOML value (number, true, false, list, quoted text); return any other text unchanged.

    Example:
        >>> value("0.05"), value("[1, 0.5]"), value("true"), value("adam")
        (0.05, [1, 0.5], True, 'adam')
    """
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # not TOML, or thousands of digits or brackets
        return text.strip()
    plain = list(read) == ["value"] and isinstance(read["value"], bool | int | float | str | list | dict)
    return read["value"] if plain else text.strip()  # a date is none of our values: 2024-10-10 may be three widths


def fitted(make: Callable[..., Any], options: Mapping[str, Any], what: str, known: Iterable[str]) -> dict[str, Any]:
    """Return options in the types of the parameters that they are for.

    Args:
        make: the class or function that is called with them.
        options: by name.
        what: what they are options of, for messages, such as ``fleet 'mobile'``.
        known: the names that may be given.

    Raises:
        UnknownNameError: for an option that is not known.
        ConfigError: for a value that does not fit its parameter's annotation; see `paceline.core.fields.fit`.
    """
    known, hints = list(known), hints_of(make)
    for name in options:
        if name not in known:
            raise UnknownNameError(f"option of {what}:", name, known)
    return {name: fit(value, hints.get(name, Any), f"{what}: {name}={value!r}") for name, value in options.items()}


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        ConfigError: the file cannot be read or parsed; the message contains file and position.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from error
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
