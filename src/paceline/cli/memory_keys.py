"""What clients keep between rounds, read from the source of a method's client functions: no line can be forgotten.

Followed is whatever a client function refers to and this can resolve: the method's own functions through its
classes, functions and classes of the same modules and of Paceline, and the client's own. A key that is computed,
and code whose source is not there, are told as such.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from paceline.core.client import Client
from paceline.core.method import Method, client_functions

__all__ = ["COMPUTED", "PROVIDED", "kept", "memory_keys", "seen"]

COMPUTED = "?"
"""In place of a key that the source does not tell."""

PROVIDED = {
    "_held": "the reply that is not yet handed over",
    "_times": "the seconds that its last training took",
    "_buffers": "running statistics, where the task keeps them local",
}
"""Keys that the client writes for a method, and what lies there."""


def kept(cls: type[Method]) -> str:
    """Return what a client keeps, for people: the class's own words, and the keys of its memory in brackets."""
    keys = [key for key in memory_keys(cls) if key != "_buffers"]  # of every method that trains, and only with such tasks
    if not keys:
        return "nothing"
    return f"{'' if cls.keeps == 'nothing' else cls.keeps + ' '}[{', '.join(keys)}]"


def seen(cls: type[Method]) -> str:
    """Return what the server sees, for people: the class's own words, and in brackets what gives it single replies."""
    singles = [name for name, declared in client_functions(cls).items() if declared.each]
    if not singles:
        return cls.reveals
    return f"{'' if cls.reveals == Method.reveals else cls.reveals + ' '}[each reply of {', '.join(singles)}]"


_KNOWN: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()


def memory_keys(cls: type[Method]) -> tuple[str, ...]:
    """Return the keys of a client's memory that a method may write, sorted."""
    if cls not in _KNOWN:
        declared, reader = client_functions(cls), _Reader(cls)
        for name in declared:
            reader.function(getattr(cls, name))
        held = {"_held"} if any(d.held for d in declared.values()) else set()
        _KNOWN[cls] = tuple(sorted(reader.keys | held | ({"_times"} if cls.keeps_times else set())))
    return _KNOWN[cls]


class _Reader:
    """Reads functions, each once for each way in which it is called."""

    def __init__(self, cls: type) -> None:
        self.cls, self.keys = cls, set[str]()
        self._seen: set[Any] = set()

    def function(self, fn: Any, owner: type | None = None, known: Mapping[str, str] | None = None) -> None:
        """Read a function; `owner` is the class whose `self` it has, `known` the texts of its attributes and arguments."""
        plain: Any = fn.fget if isinstance(fn, property) else getattr(fn, "__func__", fn)
        fn = inspect.unwrap(plain)
        owner, known = owner or self.cls, known or {}
        mark = (fn, owner, tuple(sorted(known.items())))
        if not isinstance(fn, FunctionType) or mark in self._seen:
            return
        self._seen.add(mark)
        parsed = _source(fn)
        if parsed is None:
            if not (fn.__code__.co_filename == "<string>" and fn.__name__.startswith("__")):  # made by @dataclass
                self.keys.add(COMPUTED)
            return
        aliases = {name for target, value in _pairs(parsed) if _is_memory(value, set()) and (name := _name(target))}
        aliases |= {a.arg for a in ast.walk(parsed) if isinstance(a, ast.arg) and a.arg == "memory"}
        for key in _written(parsed, aliases):
            self.keys.add(_text(key, known))
        self._follow(parsed, fn, owner, known)

    def _follow(self, parsed: ast.AST, fn: FunctionType, owner: type, known: Mapping[str, str]) -> None:
        spots = fn.__globals__ | {n: c.cell_contents for n, c in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False)}
        called = {id(c.func): c for c in ast.walk(parsed) if isinstance(c, ast.Call)}
        for item in ast.walk(parsed):
            call = called.get(id(item))
            match item:
                case ast.Attribute(value=ast.Name(id="self"), attr=name):
                    self._member(owner, name, known)
                case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                    above = owner.__mro__[_place(owner, fn) + 1 :]
                    found = next((vars(c)[name] for c in above if name in vars(c)), None)
                    if found is not None:
                        self.function(found, owner, known)
                case ast.Attribute(value=ast.Name(id="client" | "me") | ast.Attribute(attr="client" | "_client"), attr=name):
                    self._member(Client, name, {})
                case ast.Name(id=name, ctx=ast.Load()) if name in spots and _ours(spots[name], fn):
                    self._named(spots[name], call, known)

    def _member(self, owner: type, name: str, known: Mapping[str, str]) -> None:
        found = inspect.getattr_static(owner, name, None)
        if isinstance(found, functools.cached_property):
            found = found.func
        if isinstance(found, FunctionType | property | classmethod | staticmethod):
            self.function(found, owner, known)

    def _named(self, target: Any, call: ast.Call | None, known: Mapping[str, str]) -> None:
        """Read a function, or all functions of a class, with the texts that it is called with."""
        if isinstance(target, type):
            if issubclass(target, Client | Method):
                return
            texts = _arguments(target.__init__, call, known, skip=1)
            made = _source(target.__init__) if isinstance(target.__init__, FunctionType) else None
            for place, value in _pairs(made) if made is not None else ():
                if isinstance(place, ast.Attribute) and isinstance(value, ast.Name) and value.id in texts:
                    texts[f"self.{place.attr}"] = texts[value.id]
            for member in vars(target).values():
                if isinstance(member, FunctionType | property):
                    self.function(member, target, texts)
        elif callable(target):
            self.function(target, None, _arguments(target, call, known))


def _source(fn: FunctionType) -> ast.AST | None:
    """Return a function as it was written; None where its file is not there."""
    code = fn.__code__
    found = _functions(code.co_filename).get(code.co_firstlineno)
    return found if found is not None and found.name == code.co_name else None


@functools.cache
def _functions(file: str) -> dict[int, ast.FunctionDef]:
    """Return the functions of a file by their first lines, decorators included."""
    try:
        parsed = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return {}
    for item in ast.walk(parsed):  # what only an annotation names is not called
        if isinstance(item, ast.arg | ast.AnnAssign):
            item.annotation = ast.Constant(None)
        elif isinstance(item, ast.FunctionDef):
            item.returns = None
    functions = [item for item in ast.walk(parsed) if isinstance(item, ast.FunctionDef)]
    return {min([item.lineno, *(d.lineno for d in item.decorator_list)]): item for item in functions}


def _ours(target: Any, fn: FunctionType) -> bool:
    """Return whether something is worth reading: code of Paceline's, or of the package that refers to it."""
    module = getattr(target, "__module__", None)
    if not isinstance(target, FunctionType | type) or not isinstance(module, str) or module not in sys.modules:
        return False
    own = fn.__module__.partition(".")[0]
    return module.partition(".")[0] in {"paceline", own} and module not in _CORE


_CORE = {f"paceline.{name}" for name in ("params", "tree", "update", "errors", "method", "rng")}
"""Modules that know of no client; they are not read."""


def _pairs(parsed: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield each target of an assignment with its value; tuples are taken apart where both sides are written out."""
    for item in ast.walk(parsed):
        if isinstance(item, ast.Assign):
            for target in item.targets:
                yield from _apart(target, item.value)
        elif isinstance(item, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and item.value is not None:
            yield item.target, item.value


def _apart(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    if isinstance(target, ast.Tuple | ast.List):
        values = value.elts if isinstance(value, ast.Tuple | ast.List) else [value] * len(target.elts)
        for one, other in zip(target.elts, values, strict=False):
            yield from _apart(one, other)
    else:
        yield target, value


def _written(parsed: ast.AST, aliases: set[str]) -> Iterator[ast.expr]:
    """Yield the keys that are stored to: by subscript, `update` or `setdefault`."""
    for target, _ in _pairs(parsed):
        if isinstance(target, ast.Subscript) and _is_memory(target.value, aliases):
            yield target.slice
    for item in ast.walk(parsed):
        if not (isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute) and _is_memory(item.func.value, aliases)):
            continue
        if item.func.attr == "setdefault" and item.args:
            yield item.args[0]
        elif item.func.attr == "update":
            for given in item.args:
                yield from [key or given for key in given.keys] if isinstance(given, ast.Dict) else [given]
            yield from (ast.Constant(k.arg) if k.arg else k.value for k in item.keywords)


def _is_memory(value: ast.expr, aliases: set[str]) -> bool:
    if isinstance(value, ast.Name):
        return value.id in aliases
    return isinstance(value, ast.Attribute) and value.attr == "memory"


def _name(target: ast.expr) -> str:
    return target.id if isinstance(target, ast.Name) else ""


def _text(key: ast.expr, known: Mapping[str, str]) -> str:
    """Return a key as text: written out, or handed over."""
    if isinstance(key, ast.Constant) and isinstance(key.value, str):
        return key.value
    return known.get(ast.unparse(key), COMPUTED)


def _arguments(fn: Callable[..., Any], call: ast.Call | None, known: Mapping[str, str], skip: int = 0) -> dict[str, str]:
    """Return the arguments of a call that are texts, by the parameters' names."""
    if call is None or not isinstance(fn, FunctionType):
        return {}
    names = fn.__code__.co_varnames[skip : fn.__code__.co_argcount]
    given = [*zip(names, call.args, strict=False), *((k.arg, k.value) for k in call.keywords if k.arg)]
    texts = {name: _text(value, known) for name, value in given}
    return {name: text for name, text in texts.items() if text != COMPUTED}


def _place(owner: type, fn: FunctionType) -> int:
    """Return where in the order of an owner's classes a function is defined."""
    for at, cls in enumerate(owner.__mro__):
        if any(getattr(v, "__func__", v) is fn for v in vars(cls).values()):
            return at
    return len(owner.__mro__)
