"""The Python code of a template: jinja2's, with a check around each operation that could take long.

Nothing is computed while a template is compiled: jinja2 would evaluate `"x" * 10**10` then.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from localqwen.chat.sandbox.budget import MAX_ITEMS, LimitReached

#: The most nodes of a template's syntax tree, their nesting, and the characters of the Python code that they become:
#: Python compiles some 200,000 characters in 0.1 s and cannot be interrupted.
MAX_NODES, MAX_DEPTH, MAX_CODE = 20_000, 200, 2 << 20
#: The most characters of a text that is compared without a check.
_SHORT = 1_000
#: Methods of the context that the code calls by these names.
_OPERATIONS = ("text", "concat", "joined", "added", "light", "made", "cut")


class SandboxCodeGenerator(CodeGenerator):
    """Writes calls of the context's checked operations."""

    def write_commons(self) -> None:
        """Write the local names of a render function."""
        super().write_commons()
        for name in _OPERATIONS:
            self.writeline(f"{name} = context.{name}")

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        """Write statements. In a loop inside a macro, a check of how many pieces its output has so far comes first."""
        if frame.loop_frame and frame.buffer is not None:
            self.writeline(f"if len({frame.buffer}) > {MAX_ITEMS}: concat({frame.buffer}, True)")
        super().blockvisit(nodes, frame)

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, (nodes.TemplateData, nodes.Const)):
            raise nodes.Impossible()
        return super()._output_child_to_const(node, frame, finalize)

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("text(")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        """Write one call for `a + b + c`."""
        parts: list[nodes.Expr] = [node.right]
        left = node.left
        while isinstance(left, nodes.Add):
            parts.append(left.right)
            left = left.left
        self._call("added", [left, *reversed(parts)], frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Write one call for `a ~ b ~ c`."""
        self._call("joined", node.nodes, frame)

    def _call(self, operation: str, parts: list[nodes.Expr], frame: Frame) -> None:
        self.write(f"{operation}((")
        for part in parts:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """Write a comparison. Beside a constant nothing is walked for long."""
        sides = [node.expr, *(each.expr for each in node.ops)]
        checked = any(not _is_constant(one) and not _is_constant(other) for one, other in pairwise(sides))
        self.write("(")
        self._side(node.expr, frame, checked)
        for each in node.ops:
            self.write(f" {_SIGNS[each.op]} ")
            self._side(each.expr, frame, checked)
        self.write(")")

    def _side(self, node: nodes.Expr, frame: Frame, checked: bool) -> None:
        self._wrapped("light" if checked and not _is_constant(node) else "", node, frame)

    def _wrapped(self, operation: str, node: nodes.Expr, frame: Frame) -> None:
        self.write(f"{operation}(")
        self.visit(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """Write a list, which is counted."""
        self.write("made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """Write a tuple, which is counted where it is a value."""
        counted = node.ctx == "load" and not _is_constant(node)
        self.write("made(" if counted else "")
        super().visit_Tuple(node, frame)
        self.write(")" if counted else "")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """Write a dict, which is counted; its keys are hashed."""
        self.write("made({")
        for item in node.items:
            self._wrapped("" if _is_constant(item.key) else "light", item.key, frame)
            self.write(": ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("})")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """Write a subscript. A slice makes a copy."""
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("cut(")
        self.visit(node.node, frame)
        for part in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            if part is None:
                self.write("None")
            else:
                self.visit(part, frame)
        self.write(")")

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier, frame: Frame) -> None:
        """Refuse `{% autoescape %}`: prompts are not HTML."""
        self.fail("a chat template cannot use autoescape", node.lineno)


_SIGNS = {
    "eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in", "notin": "not in",
}  # fmt: skip


def _is_constant(node: nodes.Node) -> bool:
    """Return whether a node is a short constant, or a list or tuple of such: comparing a value with it, or with each
    item of a value, takes no time."""
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(isinstance(item, nodes.Const) and _is_constant(item) for item in node.items)
    return isinstance(node, nodes.Const) and not (isinstance(node.value, str) and len(node.value) > _SHORT)


def check_tree(tree: nodes.Template) -> None:
    """Raise LimitReached for a template that would become too large a program, or one that nests too deep for the
    parsers and compilers behind: they recurse in C."""
    level: list[nodes.Node] = [tree]
    count = 0
    for _ in range(MAX_DEPTH):
        count += len(level)
        if count > MAX_NODES:
            raise LimitReached(f"has more than {MAX_NODES:,} expressions and statements")
        level = [child for node in level for child in node.iter_child_nodes()]
        if not level:
            return
    raise LimitReached(f"is nested more than {MAX_DEPTH} deep")
