"""Trees: the data type of all messages between server and clients, and of all states.

A tree is a dict, list, tuple or registered dataclass (`node`) of tensors, `Params` and plain values.
Messages, checkpoints, sums and tests therefore need no code per method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, dataclass_transform

from torch import Tensor

from paceline.core.errors import TreeError
from paceline.core.layout import Layout
from paceline.core.params import DeferredParams, Params

__all__ = [
    "Tree",
    "flatten",
    "map_leaves",
    "node",
    "numeric_leaves",
    "register",
    "register_again",
    "rename_main",
    "unflatten",
    "unflatten_numeric",
]

T = TypeVar("T")
Tree = Any
"""A dict, list, tuple or `node` of tensors, `Params`, None, bool, int, float, str and bytes."""

_PLAIN = (type(None), bool, int, float, str, bytes)
_NODES: dict[str, tuple[type, Callable[[Any], Mapping[str, Any]], Callable[[dict[str, Any]], Any]]] = {}


def register(cls: type[T], to_fields: Callable[[T], Mapping[str, Any]], make: Callable[[dict[str, Any]], T]) -> None:
    """Register a class as a tree node.

    Args:
        cls: the class.
        to_fields: returns the fields of an object.
        make: builds an object from its fields.
    """
    _NODES[_name(cls)] = (cls, to_fields, make)


def register_again() -> list[tuple[Any, ...]]:
    """Return the arguments of `register` for classes that another process cannot import by name."""
    return [entry for entry in _NODES.values() if entry[0].__module__ == "__main__" or "<locals>" in entry[0].__qualname__]


def rename_main() -> None:
    """Rename the classes of a script that a child process imported as ``__mp_main__`` to ``__main__``, as in the script."""
    for cls, *parts in list(_NODES.values()):
        if cls.__module__ == "__mp_main__":
            cls.__module__ = "__main__"
            register(cls, *parts)


@dataclass_transform(frozen_default=True)
def node(cls: type[T]) -> type[T]:
    """Class decorator: make `cls` a frozen dataclass that can be part of messages, replies and states; it may extend another node.

    Example:
        >>> @node
        ... class Pair:
        ...     left: int
        ...     right: int
        >>> map_leaves(lambda leaf: leaf, Pair(1, 2))
        Pair(left=1, right=2)
    """
    made: Any = cls if "__dataclass_fields__" in vars(cls) else dataclasses.dataclass(frozen=True)(cls)
    names = [f.name for f in dataclasses.fields(made)]
    register(made, lambda obj: {n: getattr(obj, n) for n in names}, lambda fields: made(**fields))
    return made  # type: ignore[no-any-return]


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def flatten(tree: Tree) -> tuple[Any, list[Tensor]]:
    """Split a tree into its structure (plain lists and values) and its tensors.

    Raises:
        TreeError: a value is not part of a tree; the message contains its path.

    Example:
        >>> import torch
        >>> structure, leaves = flatten({"x": torch.ones(2), "n": 3})
        >>> unflatten(structure, leaves)
        {'x': tensor([1., 1.]), 'n': 3}
    """
    walk = _Flatten()
    return walk.open(tree, "value"), walk.leaves


_Path = str | tuple[Any, str, Any]
"""Path to a value: the root's name, or the path of its container, "." for a field, and the key. Its text is formed for errors only."""


def _shown(path: _Path) -> str:
    """Return the text of a path."""
    if isinstance(path, str):
        return path
    before, dot, key = path
    return f"{_shown(before)}.{key}" if dot else f"{_shown(before)}[{key!r}]"


class _Walk:
    """Traversal of a tree that collects leaves.

    It is a class instead of a recursive closure: such a closure is a reference cycle, which would keep the vectors of
    every reply alive until the next garbage collection.
    """

    refusal = ""

    def open(self, value: Tree, path: _Path) -> Any:
        """Return the structure of a tree; raises `TreeError` with the path for a value that is not part of one."""
        if isinstance(value, dict):
            return ["dict", [[_key(k, path), self.open(v, (path, "", k))] for k, v in value.items()]]
        if type(value) in (list, tuple):
            return [type(value).__name__, [self.open(v, (path, "", i)) for i, v in enumerate(value)]]
        entry = _NODES.get(_name(type(value)))
        if entry is None:
            raise TreeError(f"{_shown(path)} is a {type(value).__name__}, {self.refusal}")
        fields = entry[1](value)
        return ["node", _name(type(value)), [[k, self.open(v, (path, ".", k))] for k, v in fields.items()]]


class _Flatten(_Walk):
    refusal = (
        "which cannot be sent or stored; use tensors, Params, plain values, dicts, lists, tuples or a class decorated with @node"
    )

    def __init__(self) -> None:
        self.leaves: list[Tensor] = []
        self._layouts: dict[str, int] = {}

    def open(self, value: Tree, path: _Path) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if type(value) is dict:  # the most frequent container: not a subject of the slower tests below
            return super().open(value, path)
        if isinstance(value, Tensor):
            self.leaves.append(value)
            return ["tensor", len(self.leaves) - 1]
        if isinstance(value, Params):
            self.leaves.append(value.vector)
            digest, spec = value.layout.digest, None
            if digest not in self._layouts:
                self._layouts[digest] = len(self._layouts)
                spec = [[e.name, list(e.shape), e.kind] for e in value.layout.entries]
            return ["params", len(self.leaves) - 1, self._layouts[digest], spec]
        return super().open(value, path)


def _key(key: Any, path: _Path) -> str | int:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    raise TreeError(f"{_shown(path)} has the key {_short(key)}; keys must be strings or integers")


def _short(value: Any) -> str:
    """Return a value's text for messages, abbreviated if it may be huge."""
    if isinstance(value, list | tuple | dict | set):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value[:40]) if isinstance(value, str | bytes) else repr(value)[:80]


def unflatten(structure: Any, leaves: list[Tensor]) -> Tree:
    """Rebuild a tree split by `flatten`.

    Raises:
        TreeError: a node class is not registered here, or the structure is malformed.
    """
    return _rebuild(structure, leaves, [])


def _rebuild(item: Any, leaves: list[Tensor], layouts: list[Layout]) -> Tree:
    if isinstance(item, _PLAIN):
        return item
    try:
        match item:
            case ["tensor", int(i)]:
                return _leaf(leaves, i)
            case ["params", int(i), int(which), spec]:
                if spec is not None:
                    layouts.append(_layout(spec))
                if which < 0:
                    raise TreeError(f"malformed tree: layout index {which} is negative")
                return Params(_leaf(leaves, i), layouts[which])
            case ["dict", [*pairs]]:
                made = {_key(k, "a dict"): _rebuild(v, leaves, layouts) for k, v in pairs}
                if len(made) != len(pairs):
                    raise TreeError("malformed tree: a dict has a duplicate key")
                return made
            case ["list", [*values]]:
                return [_rebuild(v, leaves, layouts) for v in values]
            case ["tuple", [*values]]:
                return tuple(_rebuild(v, leaves, layouts) for v in values)
            case ["node", str(name), [*pairs]]:
                if name not in _NODES:
                    raise TreeError(f"unknown message class {_short(name)}; import the module that defines it before decoding")
                return _NODES[name][2]({k: _rebuild(v, leaves, layouts) for k, v in pairs})
    except TreeError:
        raise
    except (IndexError, ValueError, TypeError, KeyError) as error:
        raise TreeError(f"malformed tree: {error}") from error
    kind = f", starting with {_short(item[0])}" if isinstance(item, list) and item else ""
    raise TreeError(f"malformed tree: {_short(item)}{kind}")


def _layout(spec: Any) -> Layout:
    """Build a layout from untrusted data: distinct names, non-negative sizes, parameters before buffers."""
    if any(len(shape) > 64 for _, shape, _ in spec):  # the product of a million sizes takes an hour
        raise TreeError("malformed tree: a layout has a shape of more than 64 dimensions")
    kinds = [kind for _, _, kind in spec]
    names = {name for name, _, _ in spec if isinstance(name, str)}
    sizes = [n for _, shape, _ in spec for n in shape]
    if len(names) != len(spec) or kinds != sorted(kinds, reverse=True) or set(kinds) - {"param", "buffer"}:
        raise TreeError("malformed tree: a layout must have distinct names, and parameters before buffers")
    if any(type(n) is not int or not 0 <= n < 1 << 62 for n in sizes):
        raise TreeError("malformed tree: a layout has a shape that is not a list of sizes")
    return Layout.build([(name, tuple(shape), kind) for name, shape, kind in spec])


def _leaf(leaves: list[Tensor], index: int) -> Tensor:
    if not 0 <= index < len(leaves):
        raise TreeError(f"tensor {index} of {len(leaves)} is missing")
    return leaves[index]


def map_leaves(fn: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply a function to every tensor of a tree, and to the vector of every `Params`.

    Args:
        fn: maps a tensor to a tensor.
        tree: any tree; it is not modified.

    Example:
        >>> import torch
        >>> map_leaves(lambda leaf: 2 * leaf, {"x": torch.ones(2), "n": 3})
        {'x': tensor([2., 2.]), 'n': 3}
    """
    structure, leaves = flatten(tree)
    return unflatten(structure, [fn(leaf) for leaf in leaves])


def numeric_leaves(tree: Tree, lazy: bool = False) -> tuple[Any, list[Any]]:
    """Split a tree of numbers: like `flatten`, but floats and ints are leaves too, in order.

    The structure can be passed to `unflatten_numeric`.

    Args:
        tree: the tree.
        lazy: return a `DeferredParams` that is not materialised as a leaf itself.

    Raises:
        TreeError: the tree contains strings, bytes, None or bools, which cannot be summed.
    """
    walk = _Numeric(lazy)
    return walk.open(tree, "reply"), walk.leaves


class _Numeric(_Walk):
    refusal = "which cannot be summed; return numbers, tensors, Params or containers of them"

    def __init__(self, lazy: bool) -> None:
        self.leaves: list[Any] = []
        self._lazy = lazy

    def open(self, value: Tree, path: _Path) -> Any:
        if isinstance(value, bool | str | bytes | None):
            raise TreeError(f"{_shown(path)} is {value!r}, which cannot be summed; return only numbers and tensors")
        if isinstance(value, int | float | Tensor):
            self.leaves.append(value)
            kind = "tensor" if isinstance(value, Tensor) else type(value).__name__
            return [kind, list(value.shape)] if isinstance(value, Tensor) else [kind]
        if isinstance(value, Params):
            keep = self._lazy and isinstance(value, DeferredParams) and not value.formed
            self.leaves.append(value if keep else value.vector)
            return ["params", value.layout]
        return super().open(value, path)


def unflatten_numeric(structure: Any, leaves: list[Tensor | float | int]) -> Tree:
    """Rebuild a tree split by `numeric_leaves`, from the same number of leaves in the same order.

    Raises:
        TreeError: there are more or fewer leaves than in the structure.
    """
    left = iter(leaves)
    try:
        tree = _refill(structure, left)
    except StopIteration:
        raise TreeError(f"{len(leaves)} leaves are too few for the tree's structure") from None
    if next(left, None) is not None:
        raise TreeError(f"{len(leaves)} leaves are too many for the tree's structure")
    return tree


def _refill(item: Any, left: Iterator[Tensor | float | int]) -> Tree:
    match item:
        case ["params", Layout() as layout]:
            value = next(left)
            assert isinstance(value, Tensor)
            return Params(value, layout)
        case ["dict", pairs]:
            out = {}
            for key, part in pairs:
                out[key] = _refill(part, left)
            return out
        case ["list" | "tuple" as kind, values]:
            made = []
            for part in values:
                made.append(_refill(part, left))
            return made if kind == "list" else tuple(made)
        case ["node", name, pairs]:
            fields = {}
            for key, part in pairs:
                fields[key] = _refill(part, left)
            return _NODES[name][2](fields)
    return next(left)
