"""Trees: the only things that cross between server and client, and the only things in a state.

A tree is a dict, list, tuple or registered dataclass (`node`) of tensors, `Params` and plain values.
Because everything is a tree, messages, checkpoints, sums and tests need no code per method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform

from torch import Tensor

from paceline.errors import TreeError, UnknownNameError
from paceline.params import Layout, Params

__all__ = [
    "Tree",
    "flatten",
    "map_leaves",
    "node",
    "numeric_leaves",
    "register",
    "unflatten",
    "unflatten_numeric",
]

T = TypeVar("T")
Tree = Any
"""A dict, list, tuple or `node` of tensors, `Params`, None, bool, int, float, str and bytes."""

_PLAIN = (type(None), bool, int, float, str, bytes)
_NODES: dict[str, tuple[type, Callable[[Any], Mapping[str, Any]], Callable[[dict[str, Any]], Any]]] = {}


def register(
    cls: type[T], to_fields: Callable[[T], Mapping[str, Any]], make: Callable[[dict[str, Any]], T]
) -> None:
    """Let objects of `cls` be nodes of trees: `to_fields` opens one, `make` builds one."""
    _NODES[_name(cls)] = (cls, to_fields, make)


@dataclass_transform(frozen_default=True)
def node(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass that can be part of messages, replies and states."""
    made: Any = cls if dataclasses.is_dataclass(cls) else dataclasses.dataclass(frozen=True)(cls)
    names = [f.name for f in dataclasses.fields(made)]
    register(made, lambda obj: {n: getattr(obj, n) for n in names}, lambda fields: made(**fields))
    return made  # type: ignore[no-any-return]


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def flatten(tree: Tree) -> tuple[Any, list[Tensor]]:
    """Split a tree into its structure (plain lists and values) and its tensors.

    Raises `TreeError`, with the path, for anything that is not part of a tree.
    """
    leaves: list[Tensor] = []
    layouts: dict[str, int] = {}

    def go(value: Tree, path: str) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, Tensor):
            leaves.append(value)
            return ["tensor", len(leaves) - 1]
        if isinstance(value, Params):
            leaves.append(value.vector)
            digest = value.layout.digest
            if digest in layouts:
                return ["params", len(leaves) - 1, layouts[digest], None]
            layouts[digest] = len(layouts)
            return [
                "params",
                len(leaves) - 1,
                layouts[digest],
                [[e.name, list(e.shape), e.kind] for e in value.layout.entries],
            ]
        if isinstance(value, dict):
            return ["dict", [[_key(k, path), go(v, f"{path}[{k!r}]")] for k, v in value.items()]]
        if type(value) in (list, tuple):
            return [type(value).__name__, [go(v, f"{path}[{i}]") for i, v in enumerate(value)]]
        entry = _NODES.get(_name(type(value)))
        if entry is None:
            raise TreeError(
                f"{path} is a {type(value).__name__}, which cannot be sent or stored; use tensors, Params, "
                f"plain values, dicts, lists, tuples or a class made with @node"
            )
        fields = entry[1](value)
        return ["node", _name(type(value)), [[k, go(v, f"{path}.{k}")] for k, v in fields.items()]]

    return go(tree, "value"), leaves


def _key(key: Any, path: str) -> str | int:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    raise TreeError(f"{path} has the key {key!r}; keys are strings or integers")


def unflatten(structure: Any, leaves: list[Tensor]) -> Tree:
    """Rebuild the tree that `flatten` split.

    Raises `UnknownNameError` for a node class that is not registered here, `TreeError` for a structure
    that `flatten` cannot have made.
    """
    layouts: list[Layout] = []

    def go(item: Any) -> Tree:
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
                        raise TreeError(f"this is no tree: layout {which}")
                    return Params(_leaf(leaves, i), layouts[which])
                case ["dict", [*pairs]]:
                    made = {_key(k, "a dict"): go(v) for k, v in pairs}
                    if len(made) != len(pairs):
                        raise TreeError("this is no tree: a dict has a key twice")
                    return made
                case ["list", [*values]]:
                    return [go(v) for v in values]
                case ["tuple", [*values]]:
                    return tuple(go(v) for v in values)
                case ["node", str(name), [*pairs]]:
                    if name not in _NODES:
                        raise UnknownNameError("message class", name, _NODES)
                    return _NODES[name][2]({k: go(v) for k, v in pairs})
        except (TreeError, UnknownNameError):
            raise
        except (IndexError, ValueError, TypeError, KeyError) as error:
            raise TreeError(f"this is no tree: {error}") from error
        raise TreeError(f"this is no tree: {str(item)[:80]}")

    return go(structure)


def _layout(spec: Any) -> Layout:
    """Build a layout from outside: distinct names, sizes that are not negative, parameters first."""
    kinds = [kind for _, _, kind in spec]
    names = {name for name, _, _ in spec if isinstance(name, str)}
    sizes = [n for _, shape, _ in spec for n in shape]
    if len(names) != len(spec) or kinds != sorted(kinds, reverse=True) or set(kinds) - {"param", "buffer"}:
        raise TreeError("this is no tree: a layout needs distinct names, and parameters before buffers")
    if any(type(n) is not int or n < 0 for n in sizes):
        raise TreeError("this is no tree: a layout has a shape that is no list of sizes")
    return Layout.build([(name, tuple(shape), kind) for name, shape, kind in spec])


def _leaf(leaves: list[Tensor], index: int) -> Tensor:
    if not 0 <= index < len(leaves):
        raise TreeError(f"tensor {index} of {len(leaves)} is missing")
    return leaves[index]


def map_leaves(fn: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply `fn` to every tensor (and to the vector of every `Params`) of a tree."""
    structure, leaves = flatten(tree)
    return unflatten(structure, [fn(leaf) for leaf in leaves])


def numeric_leaves(tree: Tree) -> tuple[Any, list[Tensor | float | int]]:
    """Split a tree of numbers: like `flatten`, but floats and ints are leaves too, in order.

    The structure can be given to `unflatten_numeric`. Strings, bytes, None and bools are refused, as
    they have no sum.
    """
    leaves: list[Tensor | float | int] = []

    def go(value: Tree, path: str) -> Any:
        if isinstance(value, bool | str | bytes | None):
            raise TreeError(f"{path} is {value!r}, which has no sum; return numbers and tensors only")
        if isinstance(value, int | float | Tensor):
            leaves.append(value)
            kind = "tensor" if isinstance(value, Tensor) else type(value).__name__
            return [kind, list(value.shape)] if isinstance(value, Tensor) else [kind]
        if isinstance(value, Params):
            leaves.append(value.vector)
            return ["params", value.layout]
        if isinstance(value, dict):
            return ["dict", [[_key(k, path), go(v, f"{path}[{k!r}]")] for k, v in value.items()]]
        if type(value) in (list, tuple):
            return [type(value).__name__, [go(v, f"{path}[{i}]") for i, v in enumerate(value)]]
        entry = _NODES.get(_name(type(value)))
        if entry is None:
            raise TreeError(f"{path} is a {type(value).__name__}, which has no sum")
        return ["node", _name(type(value)), [[k, go(v, f"{path}.{k}")] for k, v in entry[1](value).items()]]

    return go(tree, "reply"), leaves


def unflatten_numeric(structure: Any, leaves: list[Tensor | float | int]) -> Tree:
    """Rebuild the tree that `numeric_leaves` split, from as many leaves in the same order.

    Raises `TreeError` where there are more or fewer leaves than the structure has.
    """
    left = iter(leaves)

    def take() -> Tensor | float | int:
        for leaf in left:
            return leaf
        raise TreeError(f"{len(leaves)} leaves are too few for this structure")

    def go(item: Any) -> Tree:
        match item:
            case ["params", Layout() as layout]:
                value = take()
                assert isinstance(value, Tensor)
                return Params(value, layout)
            case ["dict", pairs]:
                return {k: go(v) for k, v in pairs}
            case ["list" | "tuple" as kind, values]:
                made = [go(v) for v in values]
                return made if kind == "list" else tuple(made)
            case ["node", name, pairs]:
                return _NODES[name][2]({k: go(v) for k, v in pairs})
            case _:
                return take()

    tree = go(structure)
    if next(left, None) is not None:
        raise TreeError(f"{len(leaves)} leaves are too many for this structure")
    return tree
