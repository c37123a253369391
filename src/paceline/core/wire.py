"""Sizes of messages and replies on the wire."""

from __future__ import annotations

from typing import Any

from paceline.core.params import DeferredParams
from paceline.core.tree import Tree, flatten
from paceline.core.update import Update

__all__ = ["wire_size"]


def wire_size(tree: Tree) -> int:
    """Return the bytes of a tree on the wire: its tensors and byte strings, and 16 for each other value."""
    if isinstance(tree, DeferredParams):  # not formed for this
        return 4 * tree.layout.size + 16
    if isinstance(tree, Update):
        return sum(len(name) + 2 + wire_size(value) for name, value in tree.fields.items()) + 8 + wire_size(tree.weight)
    return _plain_size(tree)


def _plain_size(tree: Tree) -> int:
    """Return the size of a tree of plain values, which needs no `flatten`; of any other one, that of what `flatten` makes."""
    kind = type(tree)
    if kind is bytes or kind is str:
        return len(tree) + 4
    if kind is dict and all(type(key) is str or type(key) is int for key in tree):
        return sum(len(str(key)) + 2 + _plain_size(value) for key, value in tree.items())
    if kind is list or kind is tuple:
        return sum(map(_plain_size, tree))
    if kind is int or kind is float or kind is bool or tree is None:
        return 8
    structure, leaves = flatten(tree)
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves) + _count(structure)


def _count(item: Any) -> int:
    """Walk what `flatten` made: plain values, or lists that begin with their kind."""
    match item:
        case bytes() | str():
            return len(item) + 4
        case ["dict", pairs] | ["node", _, pairs]:
            return sum(len(str(key)) + 2 + _count(value) for key, value in pairs)
        case ["list" | "tuple", values]:
            return sum(_count(value) for value in values)
        case ["tensor", *_] | ["params", *_]:
            return 16
    return 8
