"""The mutants of a module: cosmic-ray's operators, and two for what gets lost in federated code, statements and keyword arguments."""

from __future__ import annotations

import ast
import difflib
import functools
import gzip
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator

__all__ = ["Mutant", "cached_mutants", "mutants_of"]

BINARY = {("Add", "Sub"), ("Sub", "Add"), ("Mul", "Div"), ("Div", "Mul"), ("FloorDiv", "Div"), ("Mod", "FloorDiv"), ("Pow", "Mul")}
BINARY |= {("BitAnd", "BitOr"), ("BitOr", "BitAnd"), ("BitXor", "BitAnd"), ("LShift", "RShift"), ("RShift", "LShift")}
COMPARISON = {("Eq", "NotEq"), ("NotEq", "Eq"), ("Lt", "LtE"), ("LtE", "Lt"), ("Gt", "GtE"), ("GtE", "Gt")}
COMPARISON |= {
    ("Lt", "GtE"),
    ("GtE", "Lt"),
    ("Gt", "LtE"),
    ("LtE", "Gt"),
    ("In", "NotIn"),
    ("NotIn", "In"),
    ("Is", "IsNot"),
    ("IsNot", "Is"),
}
PLAIN = {"AddNot", "NumberReplacer", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"}
PLAIN |= {"ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop", "ReplaceUnaryOperator_Delete_Not"}
PLAIN |= {"ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_USub"}


@dataclass(frozen=True)
class Mutant:
    """A changed copy of a module.

    Args:
        module: path below ``src``.
        definition: the function or class that contains the change.
        operator: name of the operator.
        lines: first and last changed line of the original.
        before, after: the changed lines, without indentation.
        code: source code of the mutant.
    """

    module: str
    definition: str
    operator: str
    lines: tuple[int, int]
    before: str
    after: str
    code: str

    @property
    def key(self) -> str:
        """Return an identifier that does not depend on line numbers."""
        parts = "\0".join([self.module, self.definition, self.operator, self.before, self.after])
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


def operators() -> Iterator[tuple[str, Operator]]:
    """Yield the operators by name: one or two sensible replacements each, where cosmic-ray has a dozen."""
    for name in sorted(cosmic_ray.plugins.operator_names()):
        short = name.removeprefix("core/")
        pair = re.fullmatch(r"Replace(Binary|Comparison)Operator_(\w+?)_(\w+)", short)
        wanted = (pair[2], pair[3]) in (BINARY if pair[1] == "Binary" else COMPARISON) if pair else short in PLAIN
        if wanted:
            yield short, cosmic_ray.plugins.get_operator(name)()


def dropped(source: str) -> Iterator[tuple[str, tuple[int, int], str, str]]:
    """Yield (operator, position, definition, code) without one statement, or without one keyword argument of a call.

    The statements are calls whose result is not used, assignments to attributes and items, and augmented assignments.
    """
    lines = source.splitlines(keepends=True)
    starts = [0, *itertools.accumulate(len(line) for line in lines)]

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    for node, definition in _walk(ast.parse(source), ""):
        stored = isinstance(node, ast.Assign) and all(isinstance(t, ast.Attribute | ast.Subscript) for t in node.targets)
        if stored or isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            first, last = offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)
            yield "DropStatement", (node.lineno, node.col_offset), definition, f"{source[:first]}pass{source[last:]}"
        for keyword in node.keywords if isinstance(node, ast.Call) else ():
            if keyword.arg is not None:
                first = offset(keyword.lineno, keyword.col_offset)
                rest = source[offset(keyword.end_lineno, keyword.end_col_offset) :]
                code = source[:first] + re.sub(r"^\s*,", "", rest, count=1)
                yield "DropKeyword", (keyword.lineno, keyword.col_offset), definition, code


def _walk(node: ast.AST, definition: str) -> Iterator[tuple[Any, str]]:
    """Yield all nodes with the innermost function or class that contains them."""
    for child in ast.iter_child_nodes(node):
        inner = child.name if isinstance(child, ast.FunctionDef | ast.ClassDef) else definition
        yield child, inner
        yield from _walk(child, inner)


def mutants_of(path: Path, root: Path) -> list[Mutant]:
    """Return the mutants of a module, without changes that no result can show: see `_inert`."""
    source = path.read_text()
    skipped = _inert(source)
    found: dict[str, Mutant] = {}
    for name, start, where, code in itertools.chain(_replaced(source), dropped(source)):
        if any(first <= start < last for first, last in skipped) or not _differs(code, source):
            continue
        mutant = Mutant(path.relative_to(root).as_posix(), where, name, *_change(source, code), code)
        found.setdefault(mutant.key, mutant)
    return list(found.values())


def cached_mutants(path: Path, root: Path, folder: Path) -> list[Mutant]:
    """Return `mutants_of(path, root)` from a file of a folder, which is written where the module or this one has changed."""
    versions = f"{path.relative_to(root)}\0".encode() + path.read_bytes() + Path(__file__).read_bytes()
    kept = folder / f"{hashlib.sha256(versions).hexdigest()[:24]}.json.gz"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(gzip.compress(json.dumps([asdict(mutant) for mutant in mutants_of(path, root)]).encode(), 1))
    entries = json.loads(gzip.decompress(kept.read_bytes()))
    return [Mutant(**{**entry, "lines": tuple(entry["lines"])}) for entry in entries]


def _replaced(source: str) -> Iterator[tuple[str, tuple[int, int], str, str]]:
    """Yield (operator, position, definition, code) of cosmic-ray's mutations."""
    tree = get_ast(source)
    for name, operator in operators():
        places = ((node, start) for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node))
        for occurrence, (node, start) in enumerate(places):
            code = mutate_code(source, operator, occurrence)
            if code is not None:
                yield name, start, str(ASTQuery(node).get_definition_name() or ""), code


def _inert(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the spans of what computes no result.

    These are annotations, imports, decorators, base classes, errors that are raised, warnings, formatted texts, assertions,
    ``zip(strict=True)``, which asserts equal lengths, and ``field(repr=False)``.
    """
    spans = []
    for node in ast.walk(ast.parse(source)):
        inert: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef):
            inert += [node.returns, *node.decorator_list]
        elif isinstance(node, ast.arg | ast.AnnAssign):
            inert.append(node.annotation)
        elif isinstance(node, ast.Raise):
            inert.append(node.exc)
        elif (
            isinstance(node, ast.Assert | ast.ImportFrom | ast.Import | ast.JoinedStr)
            or (isinstance(node, ast.keyword) and node.arg in ("strict", "repr"))
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
            or (isinstance(node, ast.Call) and ast.unparse(node.func) in ("TypeVar", "Literal", "warnings.warn", "cast"))
        ):
            inert.append(node)
        elif isinstance(node, ast.ClassDef):
            inert += [*node.bases, *node.decorator_list]
        spans += [((i.lineno, i.col_offset), (i.end_lineno, i.end_col_offset)) for i in inert if i is not None]
    return spans


def _differs(code: str, source: str) -> bool:
    """Return whether a mutant is valid code, and other code: 1e20 + 1 is 1e20."""
    try:
        return ast.dump(ast.parse(code)) != _dumped(source)
    except SyntaxError:
        return False


@functools.lru_cache(1)
def _dumped(source: str) -> str:
    return ast.dump(ast.parse(source))


def _change(source: str, code: str) -> tuple[tuple[int, int], str, str]:
    old, new = source.splitlines(), code.splitlines()
    blocks = [b for b in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes() if b[0] != "equal"]
    first, last = blocks[0][1], blocks[-1][2]
    before, after = old[first:last], new[blocks[0][3] : blocks[-1][4]]
    return (first + 1, max(last, first + 1)), "\n".join(map(str.strip, before)), "\n".join(map(str.strip, after))
