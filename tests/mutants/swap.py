"""Put the functions of a mutant in the place of a loaded module's, so that nothing has to be imported anew."""

from __future__ import annotations

import gc
import inspect
from collections import defaultdict
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

__all__ = ["changed_functions", "live_functions", "swap"]

Place = tuple[str, str, int]
"""File, qualified name and first line of a function."""


def live_functions(holds: Callable[[str], bool]) -> dict[Place, list[FunctionType]]:
    """Return all functions of this process that stem from certain files, decorated and wrapped ones too.

    Args:
        holds: whether a file is of interest.
    """
    found: dict[Place, list[FunctionType]] = defaultdict(list)
    for thing in gc.get_objects():
        if type(thing) is FunctionType and holds(thing.__code__.co_filename):
            found[_place(thing.__code__)].append(thing)
    return dict(found)


def changed_functions(original: str, mutant: str, file: str) -> list[tuple[CodeType, CodeType]] | None:
    """Return (old code, new code) of the functions that differ between two versions of a module.

    Returns:
        ``None`` if something else differs: a constant, a default, a field, a base class; such a change needs a new import.
    """
    old, new = (_Split(compile(source, file, "exec")) for source in (original, mutant))
    if old.rest != new.rest or [c.co_qualname for c in old.functions] != [c.co_qualname for c in new.functions]:
        return None
    pairs = [pair for pair in zip(old.functions, new.functions, strict=True) if _content(pair[0]) != _content(pair[1])]
    return pairs if all(a.co_freevars == b.co_freevars for a, b in pairs) else None


def swap(pairs: list[tuple[CodeType, CodeType]], live: dict[Place, list[FunctionType]]) -> bool:
    """Give the loaded functions their new code; return whether every changed function is loaded."""
    for old, new in pairs:
        functions = live.get(_place(old), [])
        if not functions:
            return False
        for function in functions:
            function.__code__ = new
    return True


class _Split:
    """A module's code, split into its outermost functions and the rest: what runs on import."""

    def __init__(self, module: CodeType) -> None:
        self.functions: list[CodeType] = []
        self.rest = self._rest(module)

    def _rest(self, code: CodeType) -> Any:
        consts = []
        for const in code.co_consts:
            if isinstance(const, CodeType) and const.co_flags & inspect.CO_OPTIMIZED:
                self.functions.append(const)
                const = const.co_qualname
            consts.append(self._rest(const) if isinstance(const, CodeType) else _constant(const))
        return code.co_code, code.co_names, tuple(consts)


def _content(code: CodeType) -> Any:
    """Return what a function does, without its position in the file."""
    consts = tuple(_content(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags, consts


def _constant(value: Any) -> Any:
    return (type(value).__name__, repr(value)) if not isinstance(value, tuple) else tuple(map(_constant, value))


def _place(code: CodeType) -> Place:
    return code.co_filename, code.co_qualname, code.co_firstlineno
