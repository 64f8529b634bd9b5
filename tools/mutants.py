"""Changes one thing in a function, in every way that a test should notice. Knows nothing of tests and files.

What changes: comparisons (also at their boundary), and/or, +/-, numbers by one, True/False, min/max, `not`, returned
values, and statements that are left out. What does not: annotations, decorators, f-strings (a message may change).
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

COMPARISONS: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.In: [ast.NotIn], ast.NotIn: [ast.In],
    ast.Is: [ast.IsNot], ast.IsNot: [ast.Is],
}  # fmt: skip
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
UNCHANGED = ("annotation", "returns", "decorator_list", "format_spec")


@dataclass(frozen=True)
class Mutant:
    """`file` is relative to the repository; `kind` is the sort of change, `change` what a person reads,
    `number` its place among the changes of that file."""

    file: str
    line: int
    function: str
    kind: str
    change: str
    number: int


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield a kind and a changed copy for each way in which this node alone can be changed."""
    match node:
        case ast.Compare(ops=[operator]):
            for other in COMPARISONS[type(operator)]:
                yield "comparison", changed(node, ops=[other()])
        case ast.BoolOp():
            yield "and/or", changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.BinOp(op=ast.Add() | ast.Sub()) if not (is_sequence(node.left) or is_sequence(node.right)):
            yield "+/-", changed(node, op=ast.Sub() if isinstance(node.op, ast.Add) else ast.Add())
        case ast.Constant(value=bool(value)):
            yield "true/false", changed(node, value=not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "number", changed(node, value=value + 1)
            yield "number", changed(node, value=value - 1)
        case ast.Call(func=ast.Name(id="min" | "max" as name)):
            yield "min/max", changed(node, func=ast.Name("max" if name == "min" else "min", ast.Load()))
        case ast.UnaryOp(op=ast.Not()):
            yield "not", node.operand
        case ast.Return(value=ast.expr() as returned) if not is_none(returned):
            yield "returned value", changed(node, value=ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Delete():
            yield "left out", ast.copy_location(ast.Pass(), node)


def changed(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def is_sequence(node: ast.AST) -> bool:
    """Whether + can only join here: the difference would be an error at once, which proves nothing."""
    return isinstance(node, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


Place = tuple[ast.AST, str, int | None]


def places(node: ast.AST) -> Iterator[tuple[ast.AST, Place]]:
    """Yield every node below that may be changed, and where it hangs; functions inside have mutants of their own."""
    for name, value in ast.iter_fields(node):
        several = isinstance(value, list)
        for index, child in enumerate(value if several else [value]):
            if name in UNCHANGED or not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            yield child, (node, name, index if several else None)
            if not isinstance(child, FunctionNode | ast.ClassDef):
                yield from places(child)


def put(place: Place, node: ast.AST) -> None:
    parent, name, index = place
    if index is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[index] = node


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, FunctionNode]]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, FunctionNode | ast.ClassDef):
            name = f"{prefix}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield name, child
            yield from functions(child, f"{name}.")
        else:
            yield from functions(child, prefix)


def all_changes(tree: ast.AST) -> Iterator[tuple[str, int, str, ast.AST, ast.AST, Place]]:
    """Yield function, line, kind, node, changed node and place of everything that can be changed, in a fixed order."""
    for function, node in functions(tree):
        for original, place in places(node):
            for kind, other in changes(original):
                yield function, getattr(original, "lineno", node.lineno), kind, original, other, place


def mutants(source: str, file: str) -> dict[str, list[Mutant]]:
    """Return the mutants of each function that has any."""
    found: dict[str, list[Mutant]] = {}
    for number, (function, line, kind, original, other, _) in enumerate(all_changes(ast.parse(source))):
        change = f"{ast.unparse(original)} -> {ast.unparse(other)}"
        found.setdefault(function, []).append(Mutant(file, line, function, kind, change, number))
    return found


def mutated(source: str, mutant: Mutant) -> str:
    """Return the whole source with the change of one of its mutants."""
    tree = ast.parse(source)
    *_, other, place = next(islice(all_changes(tree), mutant.number, None))
    put(place, other)
    return ast.unparse(tree)
