"""Safe reader for the files of CIFAR's Python version, without unpickling: nothing that a file names is ever called.

They are pickles of one dict: names -> lists of integers or names, texts, and one array of bytes. A pickle is a program
for a stack machine. This reader implements the few instructions needed for such a dict, in protocols 2 to 5 as written
by Python 2 and 3 and NumPy 1 and 2. An array is its raw bytes with a consistent shape; every other instruction, class
or dtype is refused. The cost is bounded by the file's length, and nesting is fixed: a dict of lists.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from paceline.core.errors import DataFormatError
from paceline.data.raw import Array

__all__ = ["MOST_BYTES", "MOST_STEPS", "Value", "parse_batch"]

Value = None | bool | int | str | bytes | list[Any] | Array

MOST_BYTES = 1 << 30
"""Largest accepted file; CIFAR-100's has 155 MB."""
MOST_STEPS = 1_000_000
"""Maximum number of instructions; CIFAR-10's files have 40,000, CIFAR-100's 300,000."""

_SIMPLE = (str, bytes, int, type(None))  # a bool is an int
_SHAPES = 4
_PLAIN_BYTES = (3, "|", None, None, None, -1, -1, 0)
"""State of numpy's dtype uint8."""

_NAMES = {
    **{f"numpy.{core}.multiarray _reconstruct": "reconstruct" for core in ("core", "_core")},
    **{f"numpy.{core}.numeric _frombuffer": "frombuffer" for core in ("core", "_core")},
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",  # encoding of bytes in protocol 2 of Python 3
    "__builtin__ bytes": "bytes",  # encoding of empty bytes
}
"""Permitted names in a file -> their meaning here. These are plain strings: no class or function is looked up."""


def parse_batch(content: bytes, name: str) -> dict[str, Value]:
    """Return the dict in a file: keys as text, byte strings as bytes, the array as uint8.

    Args:
        content: bytes of the file.
        name: name of the file, for messages.

    Raises:
        DataFormatError: the file does not contain such a dict; the message names it.
    """
    try:
        return _Reader(content).read()
    except _Wrong as wrong:
        raise DataFormatError(f"{name}: {wrong}") from None


class _Wrong(Exception):
    """A fault of a file."""


class _Mark:
    """Marks the start of the items of a list, dict or tuple on the stack."""


class _Name(str):
    """A name in a file, as a value of `_NAMES`."""

    __slots__ = ()


class _Dtype:
    """The dtype uint8; `checked` once its state has been validated."""

    checked = False


class _Array:
    """An array, before or after it receives its content."""

    array: Array | None = None


class _Reader:
    """Stack machine for one file."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at, self.steps = content, 0, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.made = 0

    def read(self) -> dict[str, Value]:
        """Run to the end; return the dict."""
        if self.content[:1] != b"\x80" or not 2 <= (self.content[1:2] or b"\0")[0] <= 5:
            raise _Wrong("not a pickle of protocol 2 to 5; download the file again")
        self.at = 2
        while (code := self.take(1)) != b".":
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise _Wrong(f"more than {MOST_STEPS} instructions")
            known = _STEPS.get(code)
            if known is None:
                self.refuse(f"the instruction 0x{code.hex()}")
            known(self)
        if self.at != len(self.content):
            raise _Wrong(f"{len(self.content) - self.at} trailing bytes after the end")
        if len(self.stack) != 1:
            raise _Wrong(f"expected one value at the end, found {len(self.stack)}")
        (result,) = self.stack
        if type(result) is not dict:
            raise _Wrong(f"expected a dict, found a {type(result).__name__.strip('_').lower()}")
        return {key: _filled(key, value) for key, value in result.items()}

    # -- bytes ---------------------------------------------------------------------------------
    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > len(self.content) - self.at:
            raise _Wrong(f"truncated: {count} more bytes expected at byte {self.at} of {len(self.content)}")
        self.at += count
        return self.content[self.at - count : self.at]

    def number(self, form: str) -> int:
        """Read a number in a `struct` format."""
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def sized(self, form: str) -> bytes:
        """Read length-prefixed bytes."""
        count = self.number(form)
        if count < 0:
            raise _Wrong(f"negative length {count} at byte {self.at}")
        return self.take(count)

    def line(self) -> str:
        """Read text up to the end of the line."""
        end = self.content.find(b"\n", self.at, self.at + 200)
        if end < 0:
            raise _Wrong(f"unterminated name after byte {self.at}")
        line = self.take(end + 1 - self.at)
        return self.text(line[:-1])

    def text(self, raw: bytes) -> str:
        """Decode UTF-8."""
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise _Wrong(f"text before byte {self.at} is not UTF-8") from None

    def refuse(self, what: str) -> NoReturn:
        raise _Wrong(f"contains {what} (before byte {self.at}); only byte arrays and plain values are allowed")

    # -- the stack -----------------------------------------------------------------------------
    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        """Return the value on top."""
        if not self.stack or self.stack[-1] is _Mark:
            raise _Wrong(f"value missing before byte {self.at}")
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """Pop all values above the last mark, and the mark."""
        items = []
        while self.stack and self.stack[-1] is not _Mark:
            items.append(self.stack.pop())
        if not self.stack:
            raise _Wrong(f"mark missing before byte {self.at}")
        self.stack.pop()
        return items[::-1]

    def top(self, kind: type) -> Any:
        """Return the topmost value without popping it; it must be of type `kind`."""
        if not self.stack or type(self.stack[-1]) is not kind:
            raise _Wrong(f"no {kind.__name__} to fill before byte {self.at}")
        return self.stack[-1]

    # -- steps ---------------------------------------------------------------------------------
    def remember(self, place: int) -> None:
        if not self.stack or self.stack[-1] is _Mark:
            raise _Wrong(f"no value to memoise before byte {self.at}")
        self.memo[place] = self.stack[-1]

    def recall(self, place: int) -> None:
        if place not in self.memo:
            raise _Wrong(f"memo entry {place} is used before byte {self.at} but was never set")
        self.push(self.memo[place])

    def append(self, items: list[Any]) -> None:
        for item in items:
            if not isinstance(item, _SIMPLE) or isinstance(item, _Name):
                self.refuse(f"a {type(item).__name__.strip('_').lower()} within a list")
        self.top(list).extend(items)

    def fill(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise _Wrong(f"key without a value before byte {self.at}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, bytes):
                raise _Wrong(f"key that is not text before byte {self.at}")
            if type(value) not in (*_SIMPLE, bool, list, _Array):
                self.refuse(f"a {type(value).__name__.strip('_').lower()} in the dict")
            self.top(dict)[self.text(key) if isinstance(key, bytes) else key] = value

    def bundle(self, items: list[Any]) -> None:
        for item in items:  # one level of nesting for an array's shape; no list or dict
            if isinstance(item, list | dict) or (isinstance(item, tuple) and any(isinstance(i, tuple) for i in item)):
                self.refuse(f"a {type(item).__name__} within a tuple")
        self.push(tuple(items))

    def popped(self, count: int) -> None:
        self.bundle([self.pop() for _ in range(count)][::-1])

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise _Wrong(f"name that is not text before byte {self.at}")
        known = _NAMES.get(f"{module} {name}")
        if known is None:
            self.refuse(f"{module[:60]}.{name[:60]}")
        self.push(_Name(known))

    def reduce(self) -> None:
        given, name = self.pop(), self.pop()
        if not isinstance(name, _Name) or not isinstance(given, tuple):
            self.refuse("a call")
        match name, tuple(v.decode("latin1") if isinstance(v, bytes) and len(v) < 8 else v for v in given):
            case "reconstruct", (_Name("ndarray"), (0,), "b"):
                self.push(_Array())
            case "dtype", ("u1", 0, 1):
                self.push(_Dtype())
            case "dtype", (str(kind), *_):
                self.refuse(f"an array of dtype {kind[:20]!r}")
            case "frombuffer", (_, _Dtype(), tuple(shape), "C" | "F" as order):
                made = _Array()
                made.array = self.array(given[0], given[1], shape, order == "F")
                self.push(made)
            case "bytes", ():
                self.push(b"")
            case "encode", (str(text), "latin1"):
                self.push(self.latin(text))
            case _:
                self.refuse(f"a call of {name} with unsupported arguments")

    def build(self) -> None:
        state = self.pop()
        at = self.stack[-1] if self.stack else None
        match at, state:
            case _Dtype(), tuple() if tuple(v.decode("latin1") if isinstance(v, bytes) else v for v in state) == _PLAIN_BYTES:
                at.checked = True
            case _Dtype(), _:
                self.refuse("an array with a dtype other than uint8")
            case _Array(array=None), (1, tuple(shape), dtype, bool(fortran), raw):
                at.array = self.array(raw, dtype, shape, fortran)
            case _:
                self.refuse("an object's state")

    def latin(self, text: str) -> bytes:
        """Encode text as bytes; the total never exceeds the file's size, however often it refers to a text."""
        self.made += len(text)
        if self.made > len(self.content):
            raise _Wrong("expands to more bytes than the file has")
        try:
            return text.encode("latin1")
        except UnicodeEncodeError:
            raise _Wrong(f"text before byte {self.at} does not encode bytes") from None

    def array(self, raw: Any, dtype: Any, shape: tuple[Any, ...], fortran: bool) -> Array:
        """Return an array after validating its shape against its bytes."""
        if not isinstance(dtype, _Dtype) or not dtype.checked or not isinstance(raw, bytes):
            self.refuse("an array that is not uint8")
        if len(shape) > _SHAPES or any(type(n) is not int or not 1 <= n <= MOST_BYTES for n in shape):
            raise _Wrong(f"array shape before byte {self.at} is not a list of at most {_SHAPES} sizes")
        if math.prod(shape) != len(raw):
            raise _Wrong(f"an array of shape {shape} needs {math.prod(shape)} bytes, found {len(raw)}")
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


def _filled(key: str, value: Any) -> Value:
    if not isinstance(value, _Array):
        plain: Value = value
        return plain
    if value.array is None:
        raise _Wrong(f"array {key[:60]!r} has no content")
    return value.array


def _long(reader: _Reader) -> int:
    raw = reader.sized("<B")
    if len(raw) > 8:
        raise _Wrong(f"number of {len(raw)} bytes before byte {reader.at}; the maximum is 8")
    return int.from_bytes(raw, "little", signed=True)


def _stack_name(reader: _Reader) -> None:
    name, module = reader.pop(), reader.pop()
    reader.name(module, name)


def _frame(reader: _Reader) -> None:
    count = reader.number("<Q")
    if count > len(reader.content) - reader.at:
        raise _Wrong(f"truncated: a frame of {count} bytes starts at byte {reader.at} of {len(reader.content)}")


_STEPS: dict[bytes, Callable[[_Reader], None]] = {
    b"(": lambda r: r.push(_Mark),
    b"N": lambda r: r.push(None),
    b"\x88": lambda r: r.push(True),
    b"\x89": lambda r: r.push(False),
    b"J": lambda r: r.push(r.number("<i")),
    b"K": lambda r: r.push(r.number("<B")),
    b"M": lambda r: r.push(r.number("<H")),
    b"\x8a": lambda r: r.push(_long(r)),
    b"U": lambda r: r.push(r.sized("<B")),  # Python 2's str
    b"T": lambda r: r.push(r.sized("<i")),
    b"C": lambda r: r.push(r.sized("<B")),  # Python 3's bytes
    b"B": lambda r: r.push(r.sized("<I")),
    b"\x8e": lambda r: r.push(r.sized("<Q")),
    b"\x96": lambda r: r.push(r.sized("<Q")),  # bytearray, read as bytes
    b"X": lambda r: r.push(r.text(r.sized("<I"))),
    b"\x8c": lambda r: r.push(r.text(r.sized("<B"))),
    b"\x8d": lambda r: r.push(r.text(r.sized("<Q"))),
    b"]": lambda r: r.push([]),
    b"}": lambda r: r.push({}),
    b")": lambda r: r.push(()),
    b"\x85": lambda r: r.popped(1),
    b"\x86": lambda r: r.popped(2),
    b"\x87": lambda r: r.popped(3),
    b"t": lambda r: r.bundle(r.marked()),
    b"a": lambda r: r.append([r.pop()]),
    b"e": lambda r: r.append(r.marked()),
    b"s": lambda r: r.fill([r.pop(), r.pop()][::-1]),
    b"u": lambda r: r.fill(r.marked()),
    b"q": lambda r: r.remember(r.number("<B")),
    b"r": lambda r: r.remember(r.number("<I")),
    b"\x94": lambda r: r.remember(len(r.memo)),
    b"h": lambda r: r.recall(r.number("<B")),
    b"j": lambda r: r.recall(r.number("<I")),
    b"c": lambda r: r.name(r.line(), r.line()),
    b"\x93": _stack_name,
    b"R": lambda r: r.reduce(),
    b"b": lambda r: r.build(),
    b"\x95": _frame,
}
"""Implementation of each instruction."""
